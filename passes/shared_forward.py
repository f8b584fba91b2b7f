"""What several collectors need of a network for the same batch, computed once by whoever asks first."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from detectors.detector import Detector
from detectors.feature_maps import FeatureMapNetwork, Maps, Observation
from images.distortions import to_grayscale
from lrp import UnsupportedLayerError
from passes.one_pass import PassBatch
from utils.errors import UserError

Colour = Literal["rgb", "grayscale"]


@dataclass
class _Request:
    maps: dict[str, set[int]] = field(default_factory=dict)
    output: bool = False
    look: Callable[[Tensor], Observation] | None = None
    """Prepared at the first batch, for all that was asked until then."""


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
        for layer, indices in self.network.check(maps).items() if maps else ():
            request.maps.setdefault(layer, set()).update(indices)
        request.output |= output
        request.look = None

    def of(self, batch: PassBatch, colour: Colour = "rgb") -> Observation:
        """What all collectors together asked for, of this batch."""
        request = self._requests[colour]
        look = request.look
        if look is None:
            maps = {layer: sorted(indices) for layer, indices in request.maps.items()}
            look = request.look = self.network.observing(maps, logits=request.output) if maps else self._look_at_output
        return batch.memo(("forward", id(self), colour), lambda: look(self.inputs(batch, colour)))

    def output(self, batch: PassBatch, colour: Colour = "rgb") -> Tensor:
        """Output of the network, (N, outputs) or a map of it; to be requested before."""
        output = self.of(batch, colour).logits
        assert output is not None
        return output

    def output_of(self, batch: PassBatch, images: Tensor, key: Hashable) -> Tensor:
        """Output of the network for other images (N, 3, H, W) uint8 made from the batch, known as `key`."""
        return batch.memo(("other", id(self), key), lambda: self._output(self.detector.inputs(images)))

    def request_without(self, name: str, maps: Maps) -> None:
        """Ask for the output without some maps, known as `name`.

        Raises:
            UserError: The detector lacks a map.
        """
        self._variants[name] = self.network.check(maps)

    def output_without(self, batch: PassBatch) -> Mapping[str, Tensor]:
        """Outputs (N, outputs) without the maps of each request, by its name."""
        return batch.memo(("without", id(self)), lambda: self._dropping(self.inputs(batch)))

    @cached_property
    def _dropping(self) -> Callable[[Tensor], Mapping[str, Tensor]]:
        return self.network.dropping(self._variants)

    def _look_at_output(self, inputs: Tensor) -> Observation:
        return Observation({}, {}, self._output(inputs))

    @cached_property
    def _output(self) -> Callable[[Tensor], Tensor]:
        """From inputs to output, by the program that maps are dropped in, so that all scores of a detector agree."""
        try:
            observe = self.network.observing({})
        except UnsupportedLayerError:
            return self.detector.logits

        def output(inputs: Tensor) -> Tensor:
            logits = observe(inputs).logits
            assert logits is not None
            return logits

        return output


def finite(values: Tensor, batch: PassBatch, what: str) -> Tensor:
    """The values (N, ...), after a look whether they are numbers.

    Raises:
        UserError: One is not; names the image.
    """
    fine = torch.isfinite(values).reshape(len(values), -1).all(dim=1)
    if not bool(fine.all()):
        index = int((~fine).int().argmax())
        raise UserError(
            f"{batch.items[index].path}: {what} is not a finite number: check the checkpoint, or use --precision fp32"
        )
    return values
