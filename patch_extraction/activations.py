"""Which images excite a feature map most: the rankings, their file, and the collectors that make them.

The value of a map on an image is the maximum over height and width of the convolution's raw output, before batch norm,
as in the published rankings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detectors.feature_maps import Observation, by_layer
from fmap_ranking.names import FeatureMap, parse_key
from images.sets import FAKE, ImageSet
from passes.one_pass import PassBatch, PerImage, State
from passes.shared_forward import SharedForward, finite
from utils.errors import UserError
from utils.files import read_npz, write_npz

MAKE = "get_max_activation_rankings.py"
_LAST_POSITION = 2**31 - 1


@dataclass(frozen=True)
class RankedImage:
    """An image in the ranking of a map: its path below the data set folder, and its value."""

    name: str
    max_act: float


@dataclass(frozen=True, eq=False)
class RankedImages:
    """For each map, images in descending order of its value; ties in the order of the image set.

    Attributes:
        maps: M feature maps.
        names: Images, by their path below the data set folder.
        images: (M, n) int32, indices into `names`.
        values: (M, n) float32, maximum of the raw output of the convolution.
        complete: Whether n is all images that were looked at.
    """

    maps: tuple[FeatureMap, ...]
    names: tuple[str, ...]
    images: np.ndarray
    values: np.ndarray
    complete: bool = False

    @classmethod
    def of_all(cls, maps: Sequence[FeatureMap], names: Sequence[str], values: np.ndarray) -> RankedImages:
        """Rank all images, from values (images, maps)."""
        order = np.argsort(-values, axis=0, kind="stable")
        ranked = np.take_along_axis(values, order, axis=0)
        return cls(tuple(maps), tuple(names), order.T.astype(np.int32), ranked.T, True)

    def of(self, fmap: FeatureMap, count: int | None = None) -> list[RankedImage]:
        """The first `count` images of one map, or all.

        Raises:
            KeyError: There is no ranking of this map.
        """
        row = self._rows[fmap]
        ranked = zip(self.images[row, :count], self.values[row, :count], strict=True)
        return [RankedImage(self.names[image], float(value)) for image, value in ranked]

    @cached_property
    def _rows(self) -> dict[FeatureMap, int]:
        return {fmap: row for row, fmap in enumerate(self.maps)}

    def write(self, path: Path) -> None:
        """Write one compact file: `max_act` (images, maps) of all images, or (n, maps) with `image` (n, maps)."""
        arrays: dict[str, np.ndarray] = {
            "keys": np.array([fmap.key for fmap in self.maps]),
            "names": np.array(self.names),
        }
        if self.complete:
            values = np.empty(self.values.shape[::-1], dtype=np.float32)
            np.put_along_axis(values, self.images.T, self.values.T, axis=0)
            arrays["max_act"] = values
        else:
            arrays["max_act"], arrays["image"] = self.values.T, self.images.T
        write_npz(path, **arrays)

    @classmethod
    def read(cls, path: Path) -> RankedImages:
        """Read what `write` wrote.

        Raises:
            UserError: Missing, damaged, or of another kind.
        """
        if not path.exists():
            raise UserError(f"no activation rankings at {path}: make them with {MAKE}")
        arrays = read_npz(path)
        try:
            maps = tuple(parse_key(key) for key in arrays["keys"].tolist())
            names = tuple(map(str, arrays["names"].tolist()))
            values = arrays["max_act"].astype(np.float32)
            if values.shape != (arrays["image"].shape if "image" in arrays else (len(names), len(maps))):
                raise ValueError("shapes do not fit")
            if "image" not in arrays:
                return cls.of_all(maps, names, values)
            images = arrays["image"].astype(np.int32)
            if images.shape[1] != len(maps) or not ((images >= 0) & (images < len(names))).all():
                raise ValueError("indices do not fit")
            return cls(maps, names, images.T, values.T)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise UserError(f"{path} does not hold activation rankings: make it anew with {MAKE}") from error


class _MapValues:
    """Values of some maps on the fakes among the images of a pass.

    Args:
        forward: Forward passes shared with other collectors.
        maps: M feature maps.
        image_set: The images of the pass; `names` are its fakes, in its order.
    """

    def __init__(self, forward: SharedForward, maps: Sequence[FeatureMap], image_set: ImageSet) -> None:
        self.maps = tuple(maps)
        fakes = [index for index, item in enumerate(image_set.items) if item.label == FAKE]
        self.names = tuple(image_set.items[index].name for index in fakes)
        self._numbers = {index: number for number, index in enumerate(fakes)}
        self._forward = forward
        self._columns: Tensor | None = None
        forward.request("rgb", by_layer((fmap.layer, fmap.index) for fmap in maps))

    def of(self, batch: PassBatch) -> tuple[list[int], Tensor]:
        """Numbers of the fakes of a batch among all fakes, and their values (fakes, M) float32 on the network's device.

        Raises:
            UserError: A value that is not a finite number.
        """
        observation = self._forward.of(batch)
        everything = torch.cat([observation.maxima[layer] for layer in observation.indices], dim=1)
        if self._columns is None:
            self._columns = self._places(observation).to(everything.device)
        values = everything.index_select(1, self._columns)
        rows = [row for row, position in enumerate(batch.positions) if position in self._numbers]
        values = finite(values, batch, "the largest value of a feature map")
        return [self._numbers[batch.positions[row]] for row in rows], values[rows] if len(rows) < len(
            values
        ) else values

    def _places(self, observation: Observation) -> Tensor:
        pairs = [(layer, index) for layer, indices in observation.indices.items() for index in indices]
        places = {pair: number for number, pair in enumerate(pairs)}
        return torch.tensor([places[fmap.layer, fmap.index] for fmap in self.maps])


class MaxActivations(_MapValues, PerImage):
    """The value of each map on each fake; 4 bytes for each pair of the two."""

    def __init__(self, forward: SharedForward, maps: Sequence[FeatureMap], image_set: ImageSet) -> None:
        _MapValues.__init__(self, forward, maps, image_set)
        PerImage.__init__(self, len(self.names), (len(self.maps),), np.float32)

    def update(self, batch: PassBatch) -> None:
        """Add a batch."""
        numbers, values = self.of(batch)
        self.put(numbers, values.cpu().numpy())

    def result(self) -> RankedImages:
        """Rankings of all images that were seen."""
        names = [self.names[number] for number in np.flatnonzero(self.seen)]
        return RankedImages.of_all(self.maps, names, self.values[self.seen])


class TopActivations(_MapValues):
    """The n fakes that excite each map most; memory does not grow with the number of images."""

    def __init__(self, forward: SharedForward, maps: Sequence[FeatureMap], image_set: ImageSet, count: int) -> None:
        super().__init__(forward, maps, image_set)
        self._count = min(count, len(self.names))
        self._best = torch.zeros((len(self.maps), 0), dtype=torch.int64)

    def update(self, batch: PassBatch) -> None:
        """Add a batch."""
        numbers, values = self.of(batch)
        self._add(_packed(values.T, torch.tensor(numbers, dtype=torch.int64, device=values.device)))

    def _add(self, candidates: Tensor) -> None:
        both = torch.cat([self._best.to(candidates.device), candidates], dim=1)
        self._best = both.topk(min(self._count, both.shape[1]), dim=1).values

    def state(self) -> State:
        """The images kept, (maps, at most n) int64, packed with their values."""
        return {"best": self._best.cpu().numpy().copy()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replace what was collected by a saved state."""
        self._best = torch.from_numpy(state["best"].copy())

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add the state of a collector that saw other images of the same set."""
        self._add(torch.from_numpy(state["best"].copy()))

    def result(self) -> RankedImages:
        """Rankings of the images kept."""
        values, numbers = _unpacked(self._best.cpu())
        used, images = np.unique(numbers, return_inverse=True)
        names = tuple(self.names[number] for number in used)
        ranked = images.reshape(numbers.shape).astype(np.int32)
        return RankedImages(self.maps, names, ranked, values)


def _packed(values: Tensor, positions: Tensor) -> Tensor:
    """One integer for value and position, so that sorting breaks ties by position wherever it is done.

    The bits of a float32 compare like integers once those of negative numbers are turned over.
    """
    bits = (values.contiguous() + 0.0).view(torch.int32)  # + 0.0: no negative zero
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) + (_LAST_POSITION - positions)


def _unpacked(packed: Tensor) -> tuple[np.ndarray, np.ndarray]:
    ordered = (packed >> 32).int()
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    positions = _LAST_POSITION - (packed & 0xFFFFFFFF)
    return bits.view(torch.float32).numpy(), positions.numpy()
