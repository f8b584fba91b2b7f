"""One forward pass of a batch for all collectors that look at the same network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from detectors.feature_maps import FeatureMapNetwork, Maps, Observation
from images.grayscale import to_grayscale
from passes.one_pass import PassBatch

Kind = Literal["rgb", "grayscale"]


@dataclass
class _Request:
    maps: dict[str, set[int]] = field(default_factory=dict)
    logits: bool = False
    look: Callable[[Tensor], Observation] | None = None
    """Prepared at the first batch, for all that was asked until then."""


class SharedForward:
    """One forward pass per batch and kind of image, whatever number of collectors look at it.

    Each collector says beforehand what it wants to see; the first that asks runs the network.
    """

    def __init__(self, network: FeatureMapNetwork) -> None:
        self.network = network
        self._requests: dict[Kind, _Request] = {}

    def request(self, kind: Kind, maps: Maps | None = None, *, logits: bool = False) -> None:
        """Ask for maps, and perhaps for the logits, of all images as they are or in greyscale.

        Raises:
            UserError: The detector lacks a map.
        """
        request = self._requests.setdefault(kind, _Request())
        for layer, indices in self.network.check(maps or {}).items():
            request.maps.setdefault(layer, set()).update(indices)
        request.logits |= logits
        request.look = None

    def of(self, batch: PassBatch, kind: Kind = "rgb") -> Observation:
        """What all collectors together asked for, of this batch."""
        request = self._requests[kind]
        look = request.look
        if look is None:
            maps = {layer: sorted(indices) for layer, indices in request.maps.items()}
            look = request.look = self.network.observing(maps, logits=request.logits)
        return batch.memo(("forward", id(self), kind), lambda: look(inputs_of(batch, kind)))


def inputs_of(batch: PassBatch, kind: Kind) -> Tensor:
    """Normalised input of the network, of the images as they are or in greyscale; made once per batch."""
    if kind == "rgb":
        return batch.inputs
    return batch.memo("grayscale inputs", lambda: batch.preprocess(to_grayscale(batch.images)))
