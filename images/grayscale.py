"""Colour ablation of decoded images, on the device that they are on."""

from __future__ import annotations

import torch
from torch import Tensor

# Weights of ITU-R 601-2 luma in units of 2**-16, as Pillow has them.
_RED, _GREEN, _BLUE = 19595, 38470, 7471


def to_grayscale(images: Tensor) -> Tensor:
    """Replace colour by luma in three equal channels, to the bit as Pillow and torchvision's `Grayscale(3)` do.

    Args:
        images: (N, 3, H, W) uint8.

    Raises:
        ValueError: Another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    red, green, blue = images.to(torch.int32).unbind(1)
    luma = (red * _RED + green * _GREEN + blue * _BLUE + 0x8000) >> 16
    return luma.to(torch.uint8).unsqueeze(1).expand(-1, 3, -1, -1)
