"""Augmentation of training images as Wang et al. (CVPR 2020) did it, and the greyscale of colour-robust training.

Order: resize, blur, JPEG, crop, flip, greyscale. Every random choice comes from a generator that the caller
seeds per image, so that neither the number of workers nor a resumed run changes what is drawn.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from images.decoding import Crop
from images.distortions import INTERPOLATIONS, JPEG_ENCODERS, blur, grayscale, jpeg, resize_shorter_side
from utils.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each image, and with which probability.

    Attributes:
        load_size: pixels the shorter side is scaled to first; 0 leaves the size as it is.
        crop_size: side of the square cut out at random (at the centre in validation).
        interpolations: of the scaling, one drawn per image.
        blur_prob: probability of a Gaussian blur.
        blur_sigma: its standard deviation in pixels is uniform between these two.
        jpeg_prob: probability of JPEG compression.
        jpeg_quality: its quality is one of the integers from the first to the second.
        jpeg_encoders: out of `cv2` and `pil`, one drawn per image.
        flip: mirror half of the images.
        grayscale_prob: probability of greyscale: 0 for a plain detector, 0.5 for a colour-robust one
            (Chandrasegaran et al., ECCV 2022, section 5), 1 for a greyscale-only one.
        small_images: what to do with images smaller than the crop: "refuse", or "pad" with black around them.
        compat: "published" restores the blur with truncated passes, and validation images that are blurred
            (middle of the range), compressed (by Pillow, middle quality) and made grey with the same
            probabilities; by default validation images are only scaled and cropped, and made grey if all
            training images are.
    """

    load_size: int = 256
    crop_size: int = 224
    interpolations: tuple[str, ...] = ("bilinear",)
    blur_prob: float = 0.5
    blur_sigma: tuple[float, float] = (0.0, 3.0)
    jpeg_prob: float = 0.5
    jpeg_quality: tuple[int, int] = (30, 100)
    jpeg_encoders: tuple[str, ...] = ("cv2", "pil")
    flip: bool = True
    grayscale_prob: float = 0.0
    small_images: Literal["refuse", "pad"] = "refuse"
    compat: Literal["none", "published"] = "none"

    def __post_init__(self) -> None:
        for name in ("blur_prob", "jpeg_prob", "grayscale_prob"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} is {getattr(self, name)}: use a probability from 0 to 1")
        if not 0.0 <= self.blur_sigma[0] <= self.blur_sigma[1] < 100.0:
            raise UserError(f"blur sigma {_range(self.blur_sigma)}: use two numbers from 0 to 100, the lower first")
        if not 1 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
            raise UserError(f"JPEG quality {_range(self.jpeg_quality)}: use two integers from 1 to 100, lower first")
        _check_names("interpolation", self.interpolations, tuple(INTERPOLATIONS))
        _check_names("JPEG encoder", self.jpeg_encoders, JPEG_ENCODERS)
        if self.crop_size < 1 or self.load_size < 0:
            raise UserError(f"crop size {self.crop_size}, load size {self.load_size}: use at least 1 pixel")
        if 0 < self.load_size < self.crop_size and self.small_images == "refuse":
            raise UserError(
                f"images of {self.load_size} pixels are smaller than the crop of {self.crop_size}: "
                "raise --load_size, lower --crop_size, or give --small_images pad"
            )

    def training(self, image: np.ndarray, generator: np.random.Generator, name: str) -> np.ndarray:
        """A training image: uint8 (H, W, 3) of any size to uint8 (crop_size, crop_size, 3).

        Raises:
            UserError: the image, called `name`, is smaller than the crop and small images are refused.
        """
        image = self._resized(image, generator)
        if generator.random() < self.blur_prob:
            image = blur(image, generator.uniform(*self.blur_sigma), truncated=self.compat == "published")
        if generator.random() < self.jpeg_prob:
            encoder = _choice(self.jpeg_encoders, generator)
            low, high = self.jpeg_quality
            image = jpeg(image, int(generator.integers(low, high + 1)), encoder)
        image = self._random_crop(self._large_enough(image, name), generator)
        if self.flip and generator.random() < 0.5:
            image = image[:, ::-1]
        if generator.random() < self.grayscale_prob:
            image = grayscale(image)
        return image

    def validation(self, image: np.ndarray, generator: np.random.Generator, name: str) -> np.ndarray:
        """A validation image: uint8 (H, W, 3) of any size to uint8 (crop_size, crop_size, 3).

        Raises:
            UserError: the image, called `name`, is smaller than the crop and small images are refused.
        """
        published = self.compat == "published"
        image = self._resized(image, generator)
        if published and generator.random() < self.blur_prob:
            image = blur(image, sum(self.blur_sigma) / 2, truncated=True)
        if published and generator.random() < self.jpeg_prob:
            image = jpeg(image, int(sum(self.jpeg_quality) / 2), "pil")
        image = Crop("center", self.crop_size)(self._large_enough(image, name), seed=0, name=name)
        make_gray = generator.random() < self.grayscale_prob if published else self.grayscale_prob == 1.0
        return grayscale(image) if make_gray else image

    def _resized(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        if self.load_size == 0:
            return image
        return resize_shorter_side(image, self.load_size, _choice(self.interpolations, generator))

    def _large_enough(self, image: np.ndarray, name: str) -> np.ndarray:
        height, width = image.shape[:2]
        size = self.crop_size
        if min(height, width) >= size:
            return image
        if self.small_images == "refuse":
            raise UserError(
                f"{name} has {width}x{height} pixels, less than the crop of {size}: "
                "scale it with --load_size, or give --small_images pad"
            )
        above, left = max(0, size - height) // 2, max(0, size - width) // 2
        below, right = max(0, size - height) - above, max(0, size - width) - left
        return np.pad(image, ((above, below), (left, right), (0, 0)))

    def _random_crop(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        size = self.crop_size
        top = int(generator.integers(0, height - size + 1))
        left = int(generator.integers(0, width - size + 1))
        return image[top : top + size, left : left + size]


def _choice(names: tuple[str, ...], generator: np.random.Generator) -> str:
    return names[int(generator.integers(len(names)))] if len(names) > 1 else names[0]


def _check_names(what: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UserError(f"unknown {what} {', '.join(unknown) or '(none given)'}: use {', '.join(known)}")


def _range(pair: tuple[float, float]) -> str:
    return f"{pair[0]} to {pair[1]}"
