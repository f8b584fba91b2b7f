"""Under which conditions an image is scored: as it is, without colour, distorted, without some feature maps.

A condition is one object: what it asks of the forward passes, and the network's output under it. A new one is a class
with these two methods and a name.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from detectors.feature_maps import by_layer
from images.decoding import Crop
from images.distortions import blur, grayscale, jpeg, rescale
from passes.one_pass import PassBatch
from passes.shared_forward import Colour, SharedForward
from utils.errors import UserError

RGB: Colour = "rgb"
GRAYSCALE: Colour = "grayscale"
SWEEPS = ("jpeg", "blur", "rescale")


class Condition(Protocol):
    """What is done before an image is scored."""

    @property
    def name(self) -> str:
        """Column of scores."""
        ...

    def request(self, forward: SharedForward) -> None:
        """Say beforehand what is needed of the forward passes."""
        ...

    def output(self, forward: SharedForward, batch: PassBatch) -> Tensor:
        """Output of the network, (N, outputs)."""
        ...


@dataclass(frozen=True)
class InColour:
    """Images as they are (`rgb`), or by their luma in three channels (`grayscale`)."""

    name: Colour = RGB

    def request(self, forward: SharedForward) -> None:
        forward.request(self.name, output=True)

    def output(self, forward: SharedForward, batch: PassBatch) -> Tensor:
        return forward.output(batch, self.name)


@dataclass(frozen=True)
class WithoutMaps:
    """Some feature maps, (layer, index) each, are set to 0 before batch norm (Sec. 4 of the paper)."""

    name: str
    maps: tuple[tuple[str, int], ...]

    def request(self, forward: SharedForward) -> None:
        forward.request_without(self.name, by_layer(self.maps))

    def output(self, forward: SharedForward, batch: PassBatch) -> Tensor:
        return forward.output_without(batch)[self.name]


@dataclass(frozen=True)
class Distorted:
    """Whole images after JPEG (quality), Gaussian blur (sigma in pixels) or scaling (factor), cropped only then.

    With a colour as its kind it takes no value, and crops late as the others do.

    Raises:
        UserError: The value is out of its range.
    """

    kind: str
    value: float = 0.0
    encoder: str = "pil"
    crop: Crop = field(default_factory=Crop)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind == "jpeg" and not (1 <= self.value <= 100 and self.value == int(self.value)):
            raise UserError(f"JPEG quality {self.value:g}: use an integer from 1 to 100")
        if self.kind == "blur" and not 0 <= self.value <= 100:
            raise UserError(f"blur sigma {self.value:g}: use a number of pixels from 0 to 100")
        if self.kind == "rescale" and not 0 < self.value <= 10:
            raise UserError(f"scaling factor {self.value:g}: use a number above 0, up to 10")

    @property
    def name(self) -> str:
        """`jpeg-75`, `blur-1.5`, `rescale-0.5`, or the colour."""
        return f"{self.kind}-{self.value:g}" if self.kind in SWEEPS else self.kind

    def request(self, forward: SharedForward) -> None:
        """Nothing is shared with other conditions but the decoded images."""

    def output(self, forward: SharedForward, batch: PassBatch) -> Tensor:
        return forward.output_of(batch, batch.memo(self, lambda: batch.changed(self._apply)), self)

    def _apply(self, image: np.ndarray, name: str) -> np.ndarray:
        return self.crop(self._distorted(image), seed=self.seed, name=name)

    def _distorted(self, image: np.ndarray) -> np.ndarray:
        match self.kind:
            case "jpeg":
                return jpeg(image, int(self.value), self.encoder)
            case "blur":
                return blur(image, self.value)
            case "rescale":
                return rescale(image, self.value)
            case "grayscale":
                return grayscale(image)
        return image


def sweeps(
    jpeg_qualities: Iterable[float] = (),
    blur_sigmas: Iterable[float] = (),
    factors: Iterable[float] = (),
    *,
    encoder: str = "pil",
    crop: Crop | None = None,
    seed: int = 0,
) -> list[Condition]:
    """RGB, greyscale, and one condition for each value of each sweep; `crop` is applied after the distortion."""

    def distorted(kind: str, value: float = 0.0) -> Condition:
        return Distorted(kind, value, encoder, crop or Crop("none"), seed)

    plain: list[Condition] = [InColour(colour) if crop is None else distorted(colour) for colour in (RGB, GRAYSCALE)]
    values = zip(SWEEPS, (jpeg_qualities, blur_sigmas, factors), strict=True)
    return [*plain, *(distorted(kind, value) for kind, numbers in values for value in sorted(set(numbers)))]
