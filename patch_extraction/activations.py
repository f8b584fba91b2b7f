"""Collectors of the largest activations of feature maps: of every image, or of the n that excite a map most.

The value of a map on an image is the maximum over height and width of the convolution's raw output, before batch norm,
as in the published rankings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from detectors.feature_maps import Observation, by_layer
from fmap_ranking.names import FeatureMap
from images.sets import ImageSet
from passes.one_pass import PassBatch, State
from passes.shared_forward import SharedForward
from patch_extraction.rankings import ActivationRankings, Source
from utils.errors import UserError

_LAST_POSITION = 2**31 - 1


class _MapValues:
    """What an observation says of some maps, in their order."""

    def __init__(self, forward: SharedForward, maps: Sequence[FeatureMap]) -> None:
        self._forward = forward
        self._maps = maps
        self._columns: Tensor | None = None
        forward.request("rgb", by_layer((fmap.layer, fmap.index) for fmap in maps))

    def of(self, batch: PassBatch) -> Tensor:
        """(N, maps) float32 on the device of the network.

        Raises:
            UserError: A value that is not a finite number.
        """
        observation = self._forward.of(batch)
        everything = torch.cat([observation.maxima[layer] for layer in observation.indices], dim=1)
        if self._columns is None:
            self._columns = self._places(observation).to(everything.device)
        values = everything.index_select(1, self._columns)
        if not bool(torch.isfinite(values).all()):
            row, column = torch.nonzero(~torch.isfinite(values))[0].tolist()
            raise UserError(
                f"{batch.items[row].path}: feature map {self._maps[column].key} has no finite maximum: "
                "check the checkpoint, or use --precision fp32"
            )
        return values

    def _places(self, observation: Observation) -> Tensor:
        pairs = [(layer, index) for layer, indices in observation.indices.items() for index in indices]
        places = {pair: place for place, pair in enumerate(pairs)}
        return torch.tensor([places[fmap.layer, fmap.index] for fmap in self._maps])


class MaxActivations:
    """The value of each map on each image; 4 bytes for each pair of the two.

    Args:
        forward: Forward passes shared with other collectors.
        maps: Feature maps.
        image_set: The images of the pass.
    """

    name = "max_activations"

    def __init__(self, forward: SharedForward, maps: Sequence[FeatureMap], image_set: ImageSet) -> None:
        self.maps = tuple(maps)
        self._image_set = image_set
        self._map_values = _MapValues(forward, self.maps)
        self._values = np.full((len(image_set), len(self.maps)), np.nan, dtype=np.float32)

    def update(self, batch: PassBatch) -> None:
        """Add a batch."""
        self._values[list(batch.batch.positions)] = self._map_values.of(batch).cpu().numpy()

    def state(self) -> State:
        """Values, (images, maps) float32; NaN where an image has not been seen."""
        return {"values": self._values.copy()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replace what was collected by a saved state."""
        self._values = state["values"].copy()

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add the state of a collector that saw other images of the same set."""
        seen = ~np.isnan(state["values"]).all(axis=1)
        self._values[seen] = state["values"][seen]

    def result(self, source: Source | None = None) -> ActivationRankings:
        """Rankings of all images that were seen; `source` is kept with them."""
        seen = ~np.isnan(self._values).all(axis=1)
        names = [self._image_set.items[position].name for position in np.flatnonzero(seen)]
        return ActivationRankings.of_all(self.maps, names, self._values[seen], source)


class TopActivations:
    """The n images that excite each map most; memory does not grow with the number of images.

    Args:
        forward: Forward passes shared with other collectors.
        maps: Feature maps.
        image_set: The images of the pass.
        count: n, at least 1.
    """

    name = "top_activations"

    def __init__(self, forward: SharedForward, maps: Sequence[FeatureMap], image_set: ImageSet, count: int) -> None:
        self.maps = tuple(maps)
        self._image_set = image_set
        self._map_values = _MapValues(forward, self.maps)
        self._count = min(count, len(image_set))
        self._best = torch.full((len(self.maps), 0), 0, dtype=torch.int64)

    def update(self, batch: PassBatch) -> None:
        """Add a batch."""
        values = self._map_values.of(batch).T
        positions = torch.tensor(batch.batch.positions, device=values.device)
        self._add(_packed(values, positions))

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

    def result(self, source: Source | None = None) -> ActivationRankings:
        """Rankings of the images kept; `source` is kept with them."""
        values, positions = _unpacked(self._best.cpu())
        used, images = np.unique(positions, return_inverse=True)
        names = tuple(self._image_set.items[position].name for position in used)
        ranked = images.reshape(positions.shape).astype(np.int32)
        return ActivationRankings(self.maps, names, ranked, values, False, source or Source())


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
