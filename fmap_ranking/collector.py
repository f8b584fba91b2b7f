"""FF-RS inside a pass over images: which samples count, their explanation, and the per-image record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fmap_ranking.ffrs import FFRS
from images.sets import ImageItem, ImageSet
from lrp import ChannelStatistics, Explainer
from lrp.targets import FAKE, REAL, start_relevance
from passes.one_pass import PassBatch, State

LABELS = {REAL: 0, FAKE: 1}
Keep = Callable[[ImageItem, np.ndarray, np.ndarray, float], None]


@dataclass(frozen=True)
class Confidence:
    """Which samples enter FF-RS: those classified correctly with enough confidence (Sec. 4 of the paper).

    Attributes:
        fake: Smallest p(fake) of a fake.
        real: Largest p(fake) of a real.

    Raises:
        ValueError: A threshold outside 0..1, or one that lets misclassified samples in.
    """

    fake: float = 0.9
    real: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.real <= 0.5 <= self.fake <= 1.0:
            raise ValueError(f"need 0 <= real <= 0.5 <= fake <= 1, got real {self.real} and fake {self.fake}")

    def accepts(self, probability: Tensor, labels: Tensor) -> Tensor:
        """Mask (N,) of the samples that count, from p(fake) (N,) and labels (N,)."""
        fakes = (labels == LABELS[FAKE]) & (probability >= self.fake) & (probability > 0.5)
        reals = (labels == LABELS[REAL]) & (probability <= self.real) & (probability < 0.5)
        return fakes | reals


@dataclass(frozen=True)
class SampleCounts:
    """How many images of a label were looked at, classified correctly, and counted."""

    images: int
    correct: int
    used: int


class RelevanceCollector:
    """Updates one FF-RS statistic per label; an image is run forwards once, and backwards only if it counts.

    Args:
        explainer: Of a one-logit detector.
        image_set: The images of the pass, for their number and labels.
        confidence: Which samples count.
        keep: Called as keep(item, image (H, W, 3) uint8, relevance (H, W) summed over RGB, p(fake)) for every sample
            that counts; without it the input's relevance is not even computed.
    """

    name = "relevance"

    def __init__(
        self,
        explainer: Explainer,
        image_set: ImageSet,
        confidence: Confidence | None = None,
        keep: Keep | None = None,
    ) -> None:
        self.explainer = explainer
        self.confidence = confidence or Confidence()
        self.statistics = {label: FFRS(explainer.layers) for label in LABELS}
        self._keep = keep
        self._image_set = image_set
        self._probability = np.full(len(image_set), np.nan)
        self._used = np.zeros(len(image_set), dtype=bool)

    def update(self, batch: PassBatch) -> None:
        """Score the batch and explain the samples that count, each for its own label."""
        record = self.explainer.record(batch.inputs)
        probability = torch.sigmoid(record.output[:, 0].double())
        accepted = self.confidence.accepts(probability, batch.labels)
        positions = np.array(batch.batch.positions)
        self._probability[positions] = probability.cpu().numpy()
        self._used[positions] = accepted.cpu().numpy()
        rows = torch.nonzero(accepted).flatten()
        if not len(rows):
            return
        record = record.select(rows)
        labels = batch.labels[rows]
        targets = [FAKE if label == LABELS[FAKE] else REAL for label in labels.tolist()]
        sums: dict[str, ChannelStatistics] = {}

        relevance = self.explainer.propagate(
            record,
            start_relevance(record.output, targets, fixed=self.explainer.fixed_start),
            layers=[name for name, _ in self.explainer.layers],
            measure=sums.__setitem__,
            input_relevance=self._keep is not None,
        )
        for label, number in LABELS.items():
            of_label = torch.nonzero(labels == number).flatten()
            if len(of_label):
                self.statistics[label].update(
                    {name: s.positive[of_label] for name, s in sums.items()},
                    {name: s.absolute[of_label] for name, s in sums.items()},
                )
        if self._keep is not None and relevance is not None:
            maps = relevance.float().sum(1).cpu().numpy()
            for position, row in enumerate(rows.tolist()):
                image = batch.images[row].permute(1, 2, 0).cpu().numpy()
                self._keep(batch.items[row], image, maps[position], float(probability[row]))

    def counts(self) -> dict[str, SampleCounts]:
        """By label, how many images were looked at, were correct, and were used."""
        labels = np.array([-1 if item.label is None else item.label for item in self._image_set.items])
        seen = ~np.isnan(self._probability)
        correct = np.where(labels == LABELS[FAKE], self._probability > 0.5, self._probability < 0.5)
        return {
            label: SampleCounts(
                int((seen & (labels == number)).sum()),
                int((seen & correct & (labels == number)).sum()),
                int((self._used & (labels == number)).sum()),
            )
            for label, number in LABELS.items()
        }

    def samples(self) -> list[tuple[str, int | None, float, int]]:
        """(path, label, p(fake), used) of every image seen, in the order of the set."""
        return [
            (item.name, item.label, float(p), int(used))
            for item, p, used in zip(self._image_set.items, self._probability, self._used, strict=True)
            if not np.isnan(p)
        ]

    def state(self) -> State:
        """Statistics of both labels, and p(fake) and use of every image."""
        arrays: State = {"probability": self._probability.copy(), "used": self._used.copy()}
        for label, statistic in self.statistics.items():
            arrays |= {f"{label}/{key}": array for key, array in statistic.state().items()}
        return arrays

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replace everything by a saved state."""
        self._probability, self._used = state["probability"].copy(), state["used"].copy()
        for label, statistic in self.statistics.items():
            statistic.load_state(_of_label(state, label))

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add the state of a collector that saw other images of the same set."""
        other = ~np.isnan(state["probability"])
        self._probability[other] = state["probability"][other]
        self._used |= state["used"]
        for label, statistic in self.statistics.items():
            statistic.merge(FFRS.from_state(_of_label(state, label)))


def _of_label(state: Mapping[str, np.ndarray], label: str) -> State:
    prefix = f"{label}/"
    return {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)}
