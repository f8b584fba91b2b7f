"""Input transforms: from decoded images to what a network reads, which is the input that is explained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Colours = tuple[float, float, float]
Bounds = tuple[Colours, Colours]
"""Lowest and highest value of the network's input, by channel."""

IMAGENET_MEAN: Colours = (0.485, 0.456, 0.406)
IMAGENET_STD: Colours = (0.229, 0.224, 0.225)


class InputTransform(Protocol):
    """What a registered network asks of its transform; a frozen dataclass, so that settings can be compared."""

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) uint8 to the network's input, float32, channels-last, on the same device."""
        ...

    def bounds(self) -> Bounds | None:
        """What the z-box rule at the input needs; None where the input has no bounds of its own."""
        ...


@dataclass(frozen=True)
class Normalise:
    """(x / 255 - mean) / std; the arithmetic is that of torchvision's ToTensor and Normalize, step by step."""

    mean: Colours = IMAGENET_MEAN
    std: Colours = IMAGENET_STD

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) uint8 to normalised float32, channels-last.

        Raises:
            ValueError: Another type or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        x = images.to(torch.float32).div_(255)
        x = x.sub_(_per_channel(self.mean, x.device)).div_(_per_channel(self.std, x.device))
        return x.contiguous(memory_format=torch.channels_last)

    def bounds(self) -> Bounds:
        """Of pixels 0 and 255."""
        (r, g, b), (s, t, u) = self.mean, self.std
        return (-r / s, -g / t, -b / u), ((1 - r) / s, (1 - g) / t, (1 - b) / u)


@dataclass(frozen=True)
class NearestResidual:
    """Neighbouring-pixel residual scale * (x - up(down(x))), nearest neighbour by 2 (Tan et al., CVPR 2024).

    The last row or column of an odd side is left out. A quarter of the residual, its upper left pixels, is zero.

    Attributes:
        normalise: Makes x; its mean does not matter, since the residual of a constant is zero.
        scale: Factor of the residual; published 2/3.
    """

    normalise: Normalise = Normalise()
    scale: float = 2 / 3

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) uint8 to the residual float32, channels-last, sides even."""
        height, width = (side - side % 2 for side in images.shape[-2:])
        x = self.normalise(images[..., :height, :width])
        coarse = interpolate(x[..., ::2, ::2], scale_factor=2.0, mode="nearest")
        return x.sub_(coarse).mul_(self.scale).contiguous(memory_format=torch.channels_last)

    def bounds(self) -> Bounds:
        """Of a black pixel beside a white one, and the reverse."""
        r, g, b = (self.scale / std for std in self.normalise.std)
        return (-r, -g, -b), (r, g, b)


@cache
def _per_channel(values: Colours, device: torch.device) -> Tensor:
    """Made once per device; outside of inference mode, so that every later use is allowed."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(3, 1, 1)
