"""LRP heat maps: relevance of the pixels, and where relevance is lost on its way to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attribution.attribution import Attribution, AttributionCollector, Explanation
from attribution.options import LrpOptions
from attribution.strongest_maps import patches_of_maps, strongest_maps
from attribution.targets import Target
from detectors.transforms import Residual
from images.sets import ImageSet
from lrp import Absorption, ChannelStatistics, Explainer
from passes.analysis import Subject
from passes.one_pass import PassBatch, PassReport, State
from passes.shared_forward import SharedForward
from utils.errors import UserError
from utils.provenance import remove_with_record
from utils.tables import write_rows

# ResNets and EfficientNets halve the size five times; their dots lie so far apart.
_STRIDE = 32
# The inverse of the plastic number.
_R2 = 0.7548776662466927


class LrpHeatMaps(Attribution[LrpOptions]):
    """Relevance of every pixel for the target's score."""

    name = "lrp"
    default_target = "label"

    def __init__(self, subject: Subject, options: LrpOptions) -> None:
        super().__init__(subject, options)
        self._residual = subject.detector.architecture.transform if options.pixels else None
        if options.pixels and not isinstance(self._residual, Residual):
            raise UserError(f"--pixels: {subject.detector.arch} reads pixels, not a residual of them: leave it out")

    @cached_property
    def explainer(self) -> Explainer:
        """Of the network."""
        return self.options.of(self.subject.detector, published=self.subject.run.published)

    @property
    def details(self) -> Sequence[str]:
        """Rule, target, and what else changes the numbers."""
        options = self.options
        others = [f"shifts{options.shifts}"] if options.shifts > 1 else []
        others += ["pixels"] if options.pixels else []
        others += [f"maps{options.maps}"] if options.maps else []
        return [options.rule, self.target.name, *(["published"] if self.subject.run.published else []), *others]

    @property
    def shown_beside(self) -> Sequence[str]:
        """Of the residual, where the relevance is that of the pixels."""
        return ["relevance_residual"] if self.options.pixels else []

    @property
    def patches_shown(self) -> int:  # type: ignore[override]
        """Of the feature maps with the largest share of the relevance."""
        return self.options.maps

    def patches(self, arrays: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
        """Name and share of each of these maps, and its patch."""
        return patches_of_maps(self.explainer, arrays)

    @property
    def title(self) -> str:
        """Rule and network, and what positive relevance speaks for, which the published start leaves to the logit."""
        reads = self.subject.detector.architecture.reads.partition(":")[0]
        title = f"LRP {self.options.rule} of {self.subject.detector.arch}" + (f" on {reads}" if reads else "")
        if self.options.shifts > 1:
            title += f", mean over {self.options.shifts} shifts"
        if isinstance(self._residual, Residual):
            title += ", relevance of the pixels (last picture: of the residual)"
        published = self.subject.run.published
        return title + (", computed as published" if published else f": evidence for {self.target.description()}")

    @property
    def _conservation(self) -> Path:
        return self.folder / "conservation.csv"

    @property
    def outputs(self) -> Sequence[Path]:
        """The table, and the conservation report if it is asked for."""
        return [*super().outputs, *([self._conservation] if self.options.conservation else [])]

    def inputs(self) -> dict[str, str]:
        """Squeeze-and-excitation weights from elsewhere."""
        return self.options.inputs()

    def facts(self) -> dict[str, object]:
        """Rule, target, shifts, and whether pixels are explained."""
        pixels = {"pixels": True} if self.options.pixels else {}
        maps = {"maps": self.options.maps} if self.options.maps else {}
        return {**super().facts(), "rule": self.options.rule, "shifts": self.options.shifts, **pixels, **maps}

    def explain(self, images: Tensor, labels: Tensor, conservation: list[Absorption] | None = None) -> Explanation:
        """Relevance for the class of each image, averaged over shifts; rows of the unshifted images if asked for."""
        shifts = self.options.shifts
        channels: dict[str, ChannelStatistics] | None = {} if self.options.maps else None
        result = self._explain(images, labels, conservation=conservation, channels=channels)
        if channels is not None:
            inputs = self.subject.detector.inputs(images)
            maps = strongest_maps(self.explainer, inputs, channels, self.options.maps)
            result = replace(result, arrays={**result.arrays, **maps})
        if shifts == 1:
            return result
        mean = result.arrays["relevance_rgb"] / shifts
        for offsets in spread_shifts(shifts)[1:]:
            rows, columns = map(_mirrored, images.shape[2:], offsets)
            rows, columns = rows.to(images.device), columns.to(images.device)
            shifted = images[:, :, rows][..., columns]
            one = self._explain(shifted, labels, result.classes).arrays["relevance_rgb"]
            # What a pixel gets goes back to where the pixel comes from, also from the mirrored border.
            mean.index_add_(3, columns, torch.zeros_like(mean).index_add_(2, rows, one / shifts))
        return replace(result, relevance=mean.sum(1), arrays={**result.arrays, "relevance_rgb": mean})

    def _explain(
        self,
        images: Tensor,
        labels: Tensor,
        classes: Tensor | None = None,
        conservation: list[Absorption] | None = None,
        channels: dict[str, ChannelStatistics] | None = None,
    ) -> Explanation:
        """As `explain_input`, in the size of the images; of their pixels if that is asked for."""
        detector = self.subject.detector
        inputs = detector.inputs(images)
        result = explain_input(self.explainer, inputs, self.target, labels, classes, conservation, channels)
        relevance = result.arrays["relevance_rgb"]
        of_input = detector.on_images(relevance, images)
        if not isinstance(self._residual, Residual):
            return replace(result, relevance=of_input.sum(1), arrays={**result.arrays, "relevance_rgb": of_input})
        of_pixels = self._residual.to_pixels(images, relevance)
        if conservation is not None:
            sums = [part.flatten(1).sum(1, dtype=torch.float64) for part in (relevance, of_pixels)]
            conservation.append(Absorption("input", "residual", "ZBox", *sums))
        arrays = {"relevance_rgb": of_pixels, "relevance_residual": of_input.sum(1)}
        return replace(result, relevance=of_pixels.sum(1), arrays={**result.arrays, **arrays})

    def collector(self, forward: SharedForward, images: ImageSet) -> AttributionCollector:
        """One that also follows the relevance on its way, if that is asked for."""
        _ = self.explainer
        return _LrpCollector(self, images) if self.options.conservation else AttributionCollector(self, images)

    def write(self, collector: Any, report: PassReport) -> dict[str, object]:
        """The table and the conservation report; one of an earlier run would not belong to these images."""
        notes = super().write(collector, report)
        if isinstance(collector, _LrpCollector):
            write_rows(self._conservation, collector.conservation())
        else:
            remove_with_record(self._conservation)
        return notes


def explain_input(
    explainer: Explainer,
    inputs: Tensor,
    target: Target,
    labels: Tensor,
    classes: Tensor | None = None,
    conservation: list[Absorption] | None = None,
    channels: dict[str, ChannelStatistics] | None = None,
) -> Explanation:
    """Relevance of the input, summed over its channels; `arrays` holds it per channel, logits and start relevance.

    Args:
        explainer: Of the network.
        inputs: (N, 3, H, W), of the network.
        target: The score explained.
        labels: (N,): 1 fake, 0 real, -1 unknown.
        classes: (N,), explained instead of those of the target.
        conservation: Gets a row for every step.
        channels: Gets the relevance of the feature maps of every layer.
    """
    record = explainer.record(inputs)
    output = record.output.float()
    classes = target.classes(output, labels) if classes is None else classes
    start = target.head.start_relevance(output, classes, published=explainer.published)
    relevance = explainer.propagate(
        record,
        start.to(record.output.dtype),
        layers=[] if channels is None else [name for name, _ in explainer.layers],
        measure=None if channels is None else channels.__setitem__,
        conservation=conservation,
    )
    assert relevance is not None
    relevance, sign = relevance.float(), start.flatten(1).sum(1)
    return Explanation(
        relevance.sum(1),
        output,
        classes,
        {"relevance_rgb": relevance, "logits": output, "start": sign},
        # The published start does not look at the sign of the logit.
        reversed=sign * target.head.score(output, classes) < 0,
    )


@dataclass(frozen=True)
class ConservationRow:
    """A line of `conservation.csv`: a step from the output to the input.

    Attributes:
        received, passed, absorbed: Absolute value of each image's relevance that reaches the step, that it hands on,
            and of the difference, summed over the images; every image starts with 1. Relevance of opposite sign in
            two images so does not cancel.
    """

    layer: str
    kind: str
    rule: str
    received: float
    passed: float
    absorbed: float


class _LrpCollector(AttributionCollector):
    """Also keeps what becomes of the relevance on its way."""

    analysis: LrpHeatMaps

    def __init__(self, analysis: LrpHeatMaps, images: ImageSet) -> None:
        super().__init__(analysis, images)
        self._amounts: dict[tuple[str, ...], np.ndarray] = {}

    def explain(self, batch: PassBatch) -> Explanation:
        steps: list[Absorption] = []
        result = self.analysis.explain(batch.images, batch.labels, steps)
        names = [(step.layer, step.kind, step.rule) for step in steps]
        amounts = [torch.stack([step.received, step.passed, step.absorbed]).abs().sum(1) for step in steps]
        self._add(names, torch.stack(amounts).cpu().numpy())
        return result

    def conservation(self) -> list[ConservationRow]:
        """The report."""
        return [
            ConservationRow(layer, kind, rule, *amounts.tolist())
            for (layer, kind, rule), amounts in self._amounts.items()
        ]

    def state(self) -> State:
        steps, amounts = list(self._amounts), list(self._amounts.values())
        report = {"steps": np.array(steps, dtype=str), "amounts": np.array(amounts, dtype=np.float64)}
        return {**super().state(), **report}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        super().load_state(state)
        self._amounts.clear()
        self._add(state["steps"].tolist(), state["amounts"])

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        super().merge(state)
        self._add(state["steps"].tolist(), state["amounts"])

    def _add(self, steps: Sequence[Sequence[str]], amounts: np.ndarray) -> None:
        for step, amount in zip(map(tuple, steps), amounts, strict=True):
            self._amounts[step] = self._amounts.get(step, 0) + amount


def spread_shifts(number: int) -> list[tuple[int, int]]:
    """Offsets in pixels, first none at all, that cover the stride of the networks evenly in two dimensions.

    They are the additive recurrence with the least discrepancy (Roberts 2018, R2), from -16 to 15.
    """
    return [
        (int((0.5 + k * _R2) % 1 * _STRIDE) - _STRIDE // 2, int((0.5 + k * _R2**2) % 1 * _STRIDE) - _STRIDE // 2)
        for k in range(number)
    ]


def _mirrored(size: int, offset: int) -> Tensor:
    """Where the pixels of shifted rows or columns come from, (size,); mirrored at the border."""
    last = size - 1
    return (last - (last - (torch.arange(size) + offset).abs()).abs()).clamp(min=0)
