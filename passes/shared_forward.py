"""What several collectors need of a network for the same batch, computed once by whoever asks first."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from detectors.detector import Detector
from images.grayscale import to_grayscale
from passes.feature_maps import FeatureMapNetwork, Maps, Observation
from passes.one_pass import PassBatch

Colour = Literal["rgb", "grayscale"]


@dataclass
class _Request:
    maps: dict[str, set[int]] = field(default_factory=dict)
    output: bool = False


class SharedForward:
    """Forward passes of one detector, shared by all that look at a batch.

    Each collector says beforehand what it wants to see; the first that asks runs the network.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self._requests: dict[Colour, _Request] = {}
        self._variants: dict[str, Maps] = {}

    @property
    def network(self) -> FeatureMapNetwork:
        """The detector's feature maps."""
        return self.detector.feature_maps()

    @staticmethod
    def images(batch: PassBatch, colour: Colour = "rgb") -> Tensor:
        """The images as they are or in greyscale, (N, 3, H, W) uint8."""
        return batch.images if colour == "rgb" else batch.memo("grayscale", lambda: to_grayscale(batch.images))

    def inputs(self, batch: PassBatch, colour: Colour = "rgb") -> Tensor:
        """Input of the network for the images as they are or in greyscale."""
        return batch.memo(("inputs", id(self), colour), lambda: self.detector.inputs(self.images(batch, colour)))

    def request(self, colour: Colour, maps: Maps | None = None, *, output: bool = False) -> None:
        """Ask for the largest values of maps, and perhaps for the network's output, on images of this colour.

        Raises:
            UserError: The detector lacks a map.
        """
        request = self._requests.setdefault(colour, _Request())
        for layer, indices in self.network.check(maps or {}).items() if maps else ():
            request.maps.setdefault(layer, set()).update(indices)
        request.output |= output

    def of(self, batch: PassBatch, colour: Colour = "rgb") -> Observation:
        """What all collectors together asked for, of this batch."""
        request = self._requests[colour]

        def look() -> Observation:
            maps = {layer: sorted(indices) for layer, indices in request.maps.items()}
            if not maps:
                return Observation({}, {}, self.detector.output(self.inputs(batch, colour)))
            return self.network.observe(self.inputs(batch, colour), maps, logits=request.output)

        return batch.memo(("forward", id(self), colour), look)

    def output(self, batch: PassBatch, colour: Colour = "rgb") -> Tensor:
        """Output of the network, (N, outputs); to be requested before."""
        output = self.of(batch, colour).logits
        assert output is not None
        return output

    def output_of(self, batch: PassBatch, images: Tensor, key: Hashable) -> Tensor:
        """Output of the network for other images (N, 3, H, W) uint8 made from the batch, known as `key`."""
        return batch.memo(("other", id(self), key), lambda: self.detector.output(self.detector.inputs(images)))

    def request_without(self, name: str, maps: Maps) -> None:
        """Ask for the output without some maps, known as `name`.

        Raises:
            UserError: The detector lacks a map.
        """
        self._variants[name] = self.network.check(maps)

    def output_without(self, batch: PassBatch) -> Mapping[str, Tensor]:
        """Outputs (N, outputs) without the maps of each request, by its name."""
        return batch.memo(
            ("without", id(self)),
            lambda: self.network.logits_with_dropout(self.inputs(batch), self._variants),
        )


def finite(values: Tensor, batch: PassBatch, what: str) -> Tensor:
    """The values (N, ...), after a look whether they are numbers.

    Raises:
        UserError: One is not; names the image.
    """
    from utils.errors import UserError

    fine = torch.isfinite(values).reshape(len(values), -1).all(dim=1)
    if not bool(fine.all()):
        place = int((~fine).int().argmax())
        raise UserError(
            f"{batch.items[place].path}: {what} is not a finite number: check the checkpoint, or use --precision fp32"
        )
    return values
