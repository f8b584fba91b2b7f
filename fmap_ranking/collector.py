"""FF-RS inside a pass over images: which samples count, their explanation, and the per-image record."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fmap_ranking.ffrs import FFRS
from fmap_ranking.options import LABELS, Confidence
from images.sets import ImageItem, ImageSet
from lrp import ChannelStatistics, Explainer
from passes.one_pass import PassBatch, PerImage, State, joined_states, state_of
from passes.shared_forward import SharedForward, finite

Keep = Callable[[ImageItem, np.ndarray, np.ndarray, float], None]


@dataclass(frozen=True)
class SampleCounts:
    """How many images of a label were looked at, classified correctly, and counted."""

    images: int
    correct: int
    used: int


@dataclass(frozen=True)
class Sample:
    """An image that was looked at: its label, p(fake), and whether (1) or not (0) it was used."""

    path: str
    label: int
    probability: float
    used: int


class RelevanceCollector:
    """Updates one FF-RS statistic per label; an image is run forwards once, and backwards only if it counts.

    Args:
        forward: Gives the input and p(fake) of the detector that is explained.
        explainer: Of that detector.
        image_set: The images of the pass, for their number and labels.
        confidence: Which samples count.
        labels: Labels of the samples that are looked at.
        keep: Called as keep(item, image (H, W, 3) uint8, relevance (H, W) summed over RGB, p(fake)) for every sample
            that counts; without it the input's relevance is not even computed.
    """

    def __init__(
        self,
        forward: SharedForward,
        explainer: Explainer,
        image_set: ImageSet,
        confidence: Confidence | None = None,
        labels: Collection[str] = tuple(LABELS),
        keep: Keep | None = None,
    ) -> None:
        self.statistics = {label: FFRS(explainer.layers) for label in LABELS if label in labels}
        self._forward, self._explainer, self._keep = forward, explainer, keep
        self._confidence = confidence or Confidence()
        self._image_set = image_set
        # p(fake), and 1 for a sample that counts.
        self._images = PerImage(len(image_set), (2,))

    def update(self, batch: PassBatch) -> None:
        """Score the batch and explain the samples that count, each for its own label.

        Raises:
            UserError: The detector's output is not finite.
        """
        head = self._forward.detector.head
        record = self._explainer.record(self._forward.inputs(batch))
        sane = torch.isfinite(record.output).flatten(1).all(dim=1)
        probability = head.probability(record.output)
        # The one place where a batch waits for the device: which samples are explained has to be known.
        probability = finite(torch.where(sane, probability, torch.nan).cpu(), batch, "the detector's output")
        labels = torch.tensor([-1 if item.label is None else item.label for item in batch.items])
        ours = torch.isin(labels, torch.tensor([LABELS[label] for label in self.statistics]))
        accepted = self._confidence.accepts(probability, labels) & ours
        numbers = torch.stack([probability, accepted.double()], dim=1).numpy()
        self._images.put(np.array(batch.positions)[ours.numpy()], numbers[ours.numpy()])
        rows = torch.nonzero(accepted).flatten()
        if not len(rows):
            return
        record = record.select(rows)
        labels = labels[rows]
        sums: dict[str, ChannelStatistics] = {}

        classes = labels.to(record.output.device, non_blocking=True)
        relevance = self._explainer.propagate(
            record,
            head.start_relevance(record.output, classes, published=self._explainer.published),
            layers=[name for name, _ in self._explainer.layers],
            measure=sums.__setitem__,
            input_relevance=self._keep is not None,
        )
        self._count(sums, labels.numpy())
        if self._keep is not None and relevance is not None:
            maps = self._forward.detector.on_images(relevance.float().sum(1), batch.images).cpu().numpy()
            for row, of_image in zip(rows.tolist(), maps, strict=True):
                image = batch.images[row].permute(1, 2, 0).cpu().numpy()
                self._keep(batch.items[row], image, of_image, float(probability[row]))

    def _count(self, sums: Mapping[str, ChannelStatistics], labels: np.ndarray) -> None:
        any_statistic = next(iter(self.statistics.values()))
        parts, wholes = any_statistic.stack(
            {name: of.positive for name, of in sums.items()}, {name: of.absolute for name, of in sums.items()}
        )
        for label, statistic in self.statistics.items():
            chosen = labels == LABELS[label]
            statistic.update((parts[chosen], wholes[chosen]))

    def counts(self) -> dict[str, SampleCounts]:
        """By label, how many images were looked at, were correct, and were used."""
        counts = {}
        for label in self.statistics:
            samples = [sample for sample in self.samples() if sample.label == LABELS[label]]
            correct = [s for s in samples if (s.probability > 0.5 if label == "fake" else s.probability < 0.5)]
            counts[label] = SampleCounts(len(samples), len(correct), sum(sample.used for sample in samples))
        return counts

    def samples(self) -> list[Sample]:
        """Every image looked at, in the order of the set."""
        seen = zip(self._image_set.items, self._images.seen, self._images.values, strict=True)
        return [
            Sample(item.name, item.label or 0, float(p), int(used)) for item, looked_at, (p, used) in seen if looked_at
        ]

    def state(self) -> State:
        """Statistics of every label, and p(fake) and use of every image."""
        return joined_states(self._parts())

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replace everything by a saved state."""
        for name, part in self._parts().items():
            part.load_state(state_of(state, name))

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add the state of a collector that saw other images of the same set."""
        for name, part in self._parts().items():
            part.merge(state_of(state, name))

    def _parts(self) -> dict[str, PerImage | FFRS]:
        return {"images": self._images, **self.statistics}
