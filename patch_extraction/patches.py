"""LRP-max patches inside a pass over images: each image is run forwards once, whatever number of maps ask for it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch

from fmap_ranking.names import FeatureMap
from images.sets import ImageItem
from lrp import Explainer
from passes.one_pass import PassBatch, PerImage
from passes.shared_forward import SharedForward
from patch_extraction.activations import RankedImages
from utils.boxes import Box, bounding_box
from utils.errors import UserError


@dataclass(frozen=True)
class Patch:
    """A row of the table of a map.

    Attributes:
        rank: 1 for the most activating image.
        path: The image, below the data set folder.
        max_act: Maximum of the raw output of the convolution.
        row_min, row_max, col_min, col_max: The box, inclusive, in pixels of the image.
        height, width: Of the image.
        start_row, start_col: Pixel of the map where the relevance starts.
        start_value: The map's value there, batch norm folded in.
        relevance_max: Largest absolute relevance of a pixel, summed over colours.
        relevance_sum: Sum over the image.
        positive_pixels: Number of pixels with positive relevance.
        start_tensor: Where the relevance starts.
        patch, image: The pictures, as seen from the table.
    """

    rank: int
    path: str
    max_act: float
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
    start_tensor: str
    patch: str
    image: str

    @property
    def box(self) -> Box:
        """The box in the image."""
        return Box(self.row_min, self.row_max, self.col_min, self.col_max)


NUMBERS = tuple(field.name for field in fields(Patch))[3:15]
_FRACTIONS = frozenset({"start_value", "relevance_max", "relevance_sum"})
# Relevance starts in the tensor that is propagated, not in the raw one that images are ranked by.
START_TENSOR = "convolution with batch norm"


@dataclass(frozen=True)
class Wanted:
    """A patch to make: the image of rank `rank` (from 1) of the map number `row`."""

    row: int
    rank: int
    name: str
    max_act: float


def wanted_patches(rankings: RankedImages, maps: Sequence[FeatureMap], count: int) -> list[Wanted]:
    """For each map the `count` most activating images, or all there are."""
    return [
        Wanted(row, rank, image.name, image.max_act)
        for row, fmap in enumerate(maps)
        for rank, image in enumerate(rankings.of(fmap, count), start=1)
    ]


class Made(NamedTuple):
    """A patch that was made, and the checksums of its pictures."""

    wanted: Wanted
    patch: Patch
    patch_checksum: int
    image_checksum: int


KeepPatch = Callable[[Wanted, np.ndarray], int]
KeepImage = Callable[[ImageItem, np.ndarray], int]


class PatchCollector(PerImage):
    """Explains the largest activation of each map in each of its images, and cuts the patch out.

    Args:
        explainer: Of the detector.
        forward: Gives the network's input.
        maps: Feature maps.
        wanted: The patches to make; other images of the pass are passed over.
        keep_patch: Keeps a patch (h, w, 3) uint8; returns a checksum below 2**53 of what was kept.
        keep_image: The same for an image (H, W, 3) uint8, called once for each.
        batch_size: Most maps to explain at once.
    """

    def __init__(
        self,
        explainer: Explainer,
        forward: SharedForward,
        maps: Sequence[FeatureMap],
        wanted: Sequence[Wanted],
        *,
        keep_patch: KeepPatch,
        keep_image: KeepImage,
        batch_size: int = 16,
    ) -> None:
        super().__init__(len(wanted), (len(NUMBERS) + 2,))  # of each patch, with the two checksums
        self._explainer, self._forward = explainer, forward
        self._maps, self._wanted = tuple(maps), list(wanted)
        self._keep_patch, self._keep_image = keep_patch, keep_image
        self._batch_size = batch_size
        self._of_image: dict[str, list[int]] = {}
        for number, patch in enumerate(self._wanted):
            self._of_image.setdefault(patch.name, []).append(number)

    def update(self, batch: PassBatch) -> None:
        """Make all patches of the images of a batch."""
        rows = [row for row, item in enumerate(batch.items) if item.name in self._of_image]
        if not rows:
            return
        items = [batch.items[row] for row in rows]
        images = batch.pixels[rows]
        checksums = [self._keep_image(item, image) for item, image in zip(items, images, strict=True)]
        of_layer: dict[str, dict[tuple[int, int], int]] = {}
        for sample, item in enumerate(items):
            for number in self._of_image[item.name]:
                fmap = self._maps[self._wanted[number].row]
                of_layer.setdefault(fmap.layer, {})[sample, fmap.index] = number
        inputs = self._forward.inputs(batch)
        inputs = inputs if len(rows) == len(inputs) else inputs[torch.tensor(rows, device=inputs.device)]
        pairs = {layer: list(numbers) for layer, numbers in of_layer.items()}
        for maps in self._explainer.explain_feature_maps(inputs, pairs, batch_size=self._batch_size):
            relevance = maps.relevance.float().sum(1).cpu().numpy()
            places = zip(maps.samples.tolist(), maps.channels.tolist(), strict=True)
            starts = zip(maps.row.tolist(), maps.column.tolist(), maps.value.float().tolist(), strict=True)
            for pixels, (sample, channel), start in zip(relevance, places, starts, strict=True):
                number = of_layer[maps.layer][sample, channel]
                box, numbers = self._numbers(self._wanted[number], pixels)
                picture = box.cut(images[sample], half_open=self._explainer.published)
                checksum = self._keep_patch(self._wanted[number], picture)
                numbers |= dict(zip(("start_row", "start_col", "start_value"), start, strict=True))
                self.put([number], np.array([*(numbers[name] for name in NUMBERS), checksum, checksums[sample]]))

    def _numbers(self, patch: Wanted, relevance: np.ndarray) -> tuple[Box, dict[str, float]]:
        try:
            box = bounding_box(relevance)
        except ValueError as error:
            raise UserError(
                f"{patch.name}: relevance of feature map {self._maps[patch.row].key} is not finite: "
                "check the checkpoint, or use --precision fp32"
            ) from error
        height, width = relevance.shape
        return box, {
            **asdict(box),
            "height": height,
            "width": width,
            "relevance_max": float(np.abs(relevance).max()),
            "relevance_sum": float(relevance.sum(dtype=np.float64)),
            "positive_pixels": int((relevance > 0).sum()),
        }

    def result(self) -> list[Made]:
        """The patches that were made, by map and rank; those whose image was left out are missing."""
        patches = []
        for number in np.flatnonzero(self.seen):
            wanted, (*values, patch_checksum, image_checksum) = self._wanted[number], self.values[number].tolist()
            known = zip(NUMBERS, values, strict=True)
            numbers: dict[str, Any] = {name: value if name in _FRACTIONS else int(value) for name, value in known}
            patch = Patch(
                rank=wanted.rank,
                path=wanted.name,
                max_act=wanted.max_act,
                **numbers,
                start_tensor=START_TENSOR,
                patch=f"{wanted.rank}.png",
                image=f"../images/{wanted.name}.png",
            )
            patches.append(Made(wanted, patch, int(patch_checksum), int(image_checksum)))
        return patches
