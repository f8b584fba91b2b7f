"""What is done to images to test or train detectors: greyscale, blur, JPEG, scaling. uint8 RGB in and out."""

import io
from typing import Literal

import cv2
import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

JPEG_ENCODERS = ("cv2", "pil")
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
# Weights of ITU-R 601-2 luma in units of 2**-16, as Pillow has them.
_RED, _GREEN, _BLUE = 19595, 38470, 7471


def to_grayscale(images: Tensor) -> Tensor:
    """Replace colour by luma in three equal channels, to the bit as Pillow and torchvision's `Grayscale(3)` do.

    Args:
        images: (N, 3, H, W) uint8, on any device.

    Raises:
        ValueError: another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    red, green, blue = images.to(torch.int32).unbind(1)
    luma = (red * _RED + green * _GREEN + blue * _BLUE + 0x8000) >> 16
    return luma.to(torch.uint8).unsqueeze(1).expand(-1, 3, -1, -1)


def grayscale(image: np.ndarray) -> np.ndarray:
    """Colour replaced by luma in three equal channels, as `to_grayscale`: (H, W, 3) to (H, W, 3)."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return to_grayscale(planes[None])[0].permute(1, 2, 0).numpy()


def blur(image: np.ndarray, sigma: float, *, truncated: bool = False) -> np.ndarray:
    """Gaussian blur of each channel, mirrored at the border, cut at four sigma; sigma in pixels.

    Args:
        image: (H, W, 3).
        sigma: standard deviation; below 0.125 the image is unchanged.
        truncated: compute as the published code, which writes every one-dimensional pass into integers: about
            one grey level darker than rounding once at the end.
    """
    if truncated:
        result = image.copy()
        for channel in range(image.shape[2]):
            gaussian_filter(result[:, :, channel], sigma, output=result[:, :, channel])
        return result
    blurred = gaussian_filter(image.astype(np.float32), (sigma, sigma, 0.0))
    return np.rint(blurred).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int, encoder: Literal["cv2", "pil"] | str) -> np.ndarray:
    """Compress and decompress with OpenCV's or Pillow's encoder at their defaults (both 4:2:0).

    Raises:
        ValueError: for another encoder.
    """
    if encoder == "cv2":
        done, encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if done else None
        if decoded is None:
            raise ValueError(f"OpenCV cannot encode an image of shape {image.shape} as JPEG")
        return np.ascontiguousarray(decoded[:, :, ::-1])
    if encoder == "pil":
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
        with Image.open(buffer, formats=("JPEG",)) as decoded_image:
            return np.array(decoded_image)
    raise ValueError(f"unknown JPEG encoder {encoder!r}: use one of {', '.join(JPEG_ENCODERS)}")


def resize_shorter_side(image: np.ndarray, size: int, interpolation: str = "bilinear") -> np.ndarray:
    """Scale so that the shorter side has `size` pixels, as torchvision's Resize does for Pillow images."""
    height, width = image.shape[:2]
    return resize(image, *scaled_size(height, width, size), interpolation)


def scaled_size(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """Height and width after scaling the shorter of them to `shorter_side` pixels."""
    short = min(height, width)
    return shorter_side * height // short, shorter_side * width // short


def rescale(image: np.ndarray, factor: float) -> np.ndarray:
    """Scale both sides by `factor`, to at least one pixel."""
    height, width = image.shape[:2]
    return resize(image, max(1, round(height * factor)), max(1, round(width * factor)))


def resize(image: np.ndarray, height: int, width: int, interpolation: str = "bilinear") -> np.ndarray:
    """Scale to a size in pixels with Pillow, which averages over all pixels where it makes images smaller."""
    if (height, width) == image.shape[:2]:
        return image
    return np.array(Image.fromarray(image).resize((width, height), INTERPOLATIONS[interpolation]))
