"""From a decoded image to what patch classifiers are trained and tested on; uint8 (H, W, 3) in and out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from images.choice import Reading
from images.decoding import Crop
from images.distortions import jpeg


@dataclass(frozen=True)
class PublishedCrop(Crop):
    """The published test transform: scaled with Lanczos, cut, and altered alike for robustness tests.

    Attributes:
        flip: Left and right exchanged.
        quality: Of JPEG; 0: none.
        box: Side of the box blur; 0: none.
        gamma: Exponent in percent; 0: none.
    """

    flip: bool = False
    quality: int = 0
    box: int = 0
    gamma: int = 0
    interpolation: ClassVar[str] = "lanczos"

    def __call__(self, image: np.ndarray, *, seed: int, name: str) -> np.ndarray:
        image = super().__call__(image, seed=seed, name=name)
        if self.flip:
            image = np.ascontiguousarray(image[:, ::-1])
        if self.quality:
            image = jpeg_of_swapped(image, self.quality)
        if self.box:
            image = cv2.blur(image, (self.box, self.box))
        return power(image, self.gamma / 100) if self.gamma else image


@dataclass(frozen=True)
class PatchReading(Reading):
    """Images read by the published test transform."""

    transform: PublishedCrop = PublishedCrop()

    def cropping(self, authors: Crop | None = None) -> PublishedCrop:
        return self.transform


def jpeg_of_swapped(image: np.ndarray, quality: int) -> np.ndarray:
    """JPEG by OpenCV, red taken for blue: the published code does not exchange them, so chroma is coarser for red."""
    return np.ascontiguousarray(jpeg(image[:, :, ::-1], quality, "cv2")[:, :, ::-1])


def brightness_contrast(image: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """alpha * image + beta * 255, cut to 0..255 and truncated."""
    values = np.arange(256, dtype=np.float32) * alpha + beta * 255
    return cv2.LUT(image, np.clip(values, 0, 255).astype(np.uint8))


def power(image: np.ndarray, exponent: float) -> np.ndarray:
    """Brightness in 0..1 to this power, truncated."""
    values = (np.arange(256) / 255) ** exponent * 255
    return cv2.LUT(image, values.astype(np.uint8))


def equalise(image: np.ndarray, clip: float) -> np.ndarray:
    """Contrast-limited histogram equalisation of the lightness, on 8 x 8 tiles."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lab[:, :, 0] = cv2.createCLAHE(clipLimit=clip, tileGridSize=(8, 8)).apply(lab[:, :, 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
