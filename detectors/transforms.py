"""Input transforms: from decoded images to what a network reads, which is the input that is explained."""

from abc import ABC, abstractmethod
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
_LEAST = 1e-6
"""Contribution of a pixel at the bound of its range."""
CLIP_MEAN: Colours = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Colours = (0.26862954, 0.26130258, 0.27577711)


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

    def __call__(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Images (N, 3, H, W) uint8 to normalised floating-point numbers, channels-last.

        Raises:
            ValueError: Another type or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        x = images.to(dtype).div_(255)
        x = x.sub_(_per_channel(self.mean, dtype, x.device)).div_(_per_channel(self.std, dtype, x.device))
        return x.contiguous(memory_format=torch.channels_last)

    def bounds(self) -> Bounds:
        """Of pixels 0 and 255."""
        (r, g, b), (s, t, u) = self.mean, self.std
        return (-r / s, -g / t, -b / u), ((1 - r) / s, (1 - g) / t, (1 - b) / u)


@dataclass(frozen=True)
class Residual(ABC):
    """A linear map of normalised images in which constant images vanish: scale * (one average - another one).

    Attributes:
        normalise: Makes the images; its mean does not matter.
        scale: Factor of the difference.
    """

    normalise: Normalise = Normalise()
    scale: float = 1.0

    @abstractmethod
    def averages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two averages of images (N, 3, H, W) at each place of the residual; no weight is negative."""

    def __call__(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Images (N, 3, H, W) uint8 to the residual, channels-last."""
        first, second = self.averages(self.normalise(images, dtype))
        return first.sub(second).mul_(self.scale).contiguous(memory_format=torch.channels_last)

    def bounds(self) -> Bounds:
        """Of black where the one average is taken and white where the other is, and the reverse."""
        r, g, b = (self.scale / std for std in self.normalise.std)
        return (-r, -g, -b), (r, g, b)

    def to_pixels(self, images: Tensor, relevance: Tensor) -> Tensor:
        """Relevance of the residual handed on to the pixels by the z-box rule, in the shape of the images.

        Pixel x contributes x - low to an average that counts for the residual and high - x to one that counts against
        it (`lrp.rules.ZBox`, with the parts of both signs before they cancel). So a pixel that is its own reference,
        whose residual is always 0, keeps its relevance; where nobody contributes (black beside white), all do alike.
        Nothing is lost on the way.

        Args:
            images: (N, 3, H, W) uint8.
            relevance: Of the residual.
        """
        low, high = (_per_channel(bound, relevance.dtype, relevance.device) for bound in self.normalise.bounds())
        x = self.normalise(images.to(relevance.device), relevance.dtype)
        with torch.enable_grad():
            above, below = ((x - low).clamp(min=_LEAST), (high - x).clamp(min=_LEAST))
            above, below = above.requires_grad_(), below.requires_grad_()
            total = self.averages(above)[0] + self.averages(below)[1]
            share = relevance / total.detach()
            to_above, to_below = torch.autograd.grad(total, (above, below), share)
        return above.detach() * to_above + below.detach() * to_below


@dataclass(frozen=True)
class NearestResidual(Residual):
    """Neighbouring-pixel residual scale * (x - up(down(x))), nearest neighbour by 2 (Tan et al., CVPR 2024).

    The last row or column of an odd side is left out. A quarter of the residual, its upper left pixels, is zero.
    The published scale is 2/3.
    """

    scale: float = 2 / 3

    def averages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each pixel, and the upper left one of its block of four."""
        height, width = (side - side % 2 for side in x.shape[-2:])
        x = x[..., :height, :width]
        return x, interpolate(x[..., ::2, ::2], scale_factor=2.0, mode="nearest")


@dataclass(frozen=True)
class DiagonalDetail(Residual):
    """Diagonal detail of a one-level wavelet transform (bior1.3), scaled back to the image (Li et al., KDD 2025).

    The high-pass filter of bior1.3 is Haar's, so each coefficient is half the difference of the two diagonals of a
    block of four pixels; borders are mirrored, the edge repeated, and the scaling is bilinear.
    """

    def averages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The means of the two diagonals."""
        (top, bottom), (left, right) = (_mirrored_pairs(side, x.device) for side in x.shape[-2:])
        upper, lower = x.index_select(2, top), x.index_select(2, bottom)
        falling = upper.index_select(3, left) + lower.index_select(3, right)
        rising = upper.index_select(3, right) + lower.index_select(3, left)
        first, second = (interpolate(part / 2, x.shape[-2:], mode="bilinear") for part in (falling, rising))
        return first, second


def _mirrored_pairs(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Places of the first and the second pixel of each coefficient along a side."""
    first = 2 * torch.arange((side + 5) // 2, device=device) - 2
    pairs = [(first + offset) % (2 * side) for offset in (0, 1)]
    return torch.minimum(pairs[0], 2 * side - 1 - pairs[0]), torch.minimum(pairs[1], 2 * side - 1 - pairs[1])


@cache
def _per_channel(values: Colours, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Made once per device; outside of inference mode, so that every later use is allowed."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device).view(3, 1, 1)
