"""LRP-max patches inside a pass over images: each image is run forwards once, whatever number of maps ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields

import numpy as np

from fmap_ranking.names import FeatureMap
from images.sets import ImageItem
from lrp import Explainer
from passes.one_pass import PassBatch, State
from patch_extraction.boxes import Box, bounding_box
from patch_extraction.rankings import ActivationRankings
from utils.errors import UserError


@dataclass(frozen=True)
class Numbers:
    """What is known of a patch besides its pixels.

    Attributes:
        row_min, row_max, col_min, col_max: The box, inclusive, in pixels of the image.
        height, width: Of the image.
        start_row, start_col: Pixel of the map where the relevance starts.
        start_value: The map's value there, batch norm folded in.
        relevance_max: Largest absolute relevance of a pixel, summed over colours.
        relevance_sum: Sum over the image.
        positive_pixels: Number of pixels with positive relevance.
    """

    row_min: int
    row_max: int
    col_min: int
    col_max: int
    height: int
    width: int
    start_row: int
    start_col: int
    start_value: float
    relevance_max: float
    relevance_sum: float
    positive_pixels: int

    @property
    def box(self) -> Box:
        """The box."""
        return Box(self.row_min, self.row_max, self.col_min, self.col_max)


NUMBERS = tuple(field.name for field in fields(Numbers))
_INTEGERS = frozenset(NUMBERS) - {"start_value", "relevance_max", "relevance_sum"}


@dataclass(frozen=True)
class Wanted:
    """A patch to make: the image of rank `rank` (from 1) of the map number `row`."""

    row: int
    rank: int
    name: str
    max_act: float


def wanted_patches(rankings: ActivationRankings, maps: Sequence[FeatureMap], count: int) -> list[list[Wanted]]:
    """For each map the `count` most activating images, or all there are."""
    return [
        [Wanted(row, rank, name, value) for rank, (name, value) in enumerate(rankings.of(fmap, count), start=1)]
        for row, fmap in enumerate(maps)
    ]


KeepPatch = Callable[[Wanted, np.ndarray], None]
KeepImage = Callable[[ImageItem, np.ndarray], None]


class PatchCollector:
    """Explains the largest activation of each map in each of its images, and cuts the patch out.

    Args:
        explainer: Of the detector.
        maps: Feature maps.
        wanted: For each map the patches to make.
        keep_patch: Called as keep_patch(wanted, patch (h, w, 3) uint8).
        keep_image: Called as keep_image(item, image (H, W, 3) uint8), once for each image.
        batch_size: Most maps to explain at once.
    """

    name = "patches"

    def __init__(
        self,
        explainer: Explainer,
        maps: Sequence[FeatureMap],
        wanted: Sequence[Sequence[Wanted]],
        *,
        keep_patch: KeepPatch,
        keep_image: KeepImage,
        batch_size: int = 16,
    ) -> None:
        self.explainer = explainer
        self.maps = tuple(maps)
        self.wanted = [list(of_map) for of_map in wanted]
        self._keep_patch, self._keep_image = keep_patch, keep_image
        self._batch_size = batch_size
        self._of_image: dict[str, list[Wanted]] = {}
        for of_map in self.wanted:
            for patch in of_map:
                self._of_image.setdefault(patch.name, []).append(patch)
        most = max((len(of_map) for of_map in self.wanted), default=0)
        self._numbers = np.full((len(self.maps), most, len(NUMBERS)), np.nan)

    def update(self, batch: PassBatch) -> None:
        """Make all patches of the images of a batch."""
        of_layer: dict[str, dict[tuple[int, int], Wanted]] = {}
        for sample, item in enumerate(batch.items):
            for patch in self._of_image[item.name]:
                fmap = self.maps[patch.row]
                of_layer.setdefault(fmap.layer, {})[sample, fmap.index] = patch
        images = batch.images.permute(0, 2, 3, 1).cpu().numpy()
        for item, image in zip(batch.items, images, strict=True):
            self._keep_image(item, image)
        pairs = {layer: list(patches) for layer, patches in of_layer.items()}
        for found in self.explainer.explain_feature_maps(batch.inputs, pairs, batch_size=self._batch_size):
            relevance = found.relevance.float().sum(1).cpu().numpy()
            places = zip(found.samples.tolist(), found.channels.tolist(), strict=True)
            starts = zip(found.row.tolist(), found.column.tolist(), found.value.float().tolist(), strict=True)
            for pixels, (sample, channel), start in zip(relevance, places, starts, strict=True):
                patch = of_layer[found.layer][sample, channel]
                self._add(patch, images[sample], pixels, start)

    def _add(self, patch: Wanted, image: np.ndarray, relevance: np.ndarray, start: tuple[int, int, float]) -> None:
        try:
            box = bounding_box(relevance)
        except ValueError as error:
            raise UserError(
                f"{patch.name}: relevance of feature map {self.maps[patch.row].key} is not finite: "
                "check the checkpoint, or use --precision fp32"
            ) from error
        height, width = relevance.shape
        numbers = Numbers(
            **asdict(box),
            height=height,
            width=width,
            start_row=start[0],
            start_col=start[1],
            start_value=start[2],
            relevance_max=float(np.abs(relevance).max()),
            relevance_sum=float(relevance.sum(dtype=np.float64)),
            positive_pixels=int((relevance > 0).sum()),
        )
        self._numbers[patch.row, patch.rank - 1] = astuple(numbers)
        self._keep_patch(patch, box.cut(image, half_open=self.explainer.published))

    def result(self) -> list[list[tuple[Wanted, Numbers]]]:
        """For each map its patches by rank; those whose image was left out are missing."""
        return [
            [(patch, numbers) for patch in of_map if (numbers := self._numbers_of(patch)) is not None]
            for of_map in self.wanted
        ]

    def _numbers_of(self, patch: Wanted) -> Numbers | None:
        row = self._numbers[patch.row, patch.rank - 1]
        if np.isnan(row).all():
            return None
        values = zip(NUMBERS, row.tolist(), strict=True)
        return Numbers(**{name: int(value) if name in _INTEGERS else value for name, value in values})

    def state(self) -> State:
        """The numbers of all patches, (maps, ranks, numbers) float64; NaN where one has not been made."""
        return {"numbers": self._numbers.copy()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replace the numbers by a saved state."""
        self._numbers = state["numbers"].copy()

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add the state of a collector that saw other images."""
        made = ~np.isnan(state["numbers"])
        self._numbers[made] = state["numbers"][made]
