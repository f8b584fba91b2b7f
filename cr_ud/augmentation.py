"""Augmentation of training images as Wang et al. (CVPR 2020) did it, and the greyscale of colour-robust training.

Order: resize, blur, JPEG, crop, flip, greyscale. Every random choice comes from a generator that the caller
seeds per image, so that neither the number of workers nor a resumed run changes what is drawn.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cr_ud.options import Augmentation, words
from images.decoding import Crop
from images.distortions import INTERPOLATIONS, JPEG_ENCODERS, blur, grayscale, jpeg, resize_shorter_side
from utils.errors import UserError

GRAYSCALE_PROB = {"rgb": 0.0, "cr": 0.5, "grayscale": 1.0}
"""Share of grey training images by variant; 0.5 is colour-robust (Chandrasegaran et al., ECCV 2022, section 5)."""


class ImageTransform(Protocol):
    """From a decoded image to what is trained or validated on, uint8 (H, W, 3) each; `name` is for messages.

    Images of a micro-batch come out equally large.
    """

    @property
    def crop_size(self) -> int:
        """Side of what comes out in training."""

    def training(self, image: np.ndarray, generator: np.random.Generator, name: str) -> np.ndarray:
        """With random choices from `generator` alone."""

    def validation(self, image: np.ndarray, generator: np.random.Generator, name: str) -> np.ndarray:
        """The same at every call."""


@dataclass(frozen=True)
class Augmenter:
    """Augments as the settings say.

    Attributes:
        options: What is drawn.
        published: Blur with truncated passes, and validation images that are blurred (middle of the range), compressed
            (by Pillow, middle quality) and made grey with the same probabilities; otherwise validation images are only
            scaled and cropped, and made grey if all training images are.

    Raises:
        UserError: An encoder or interpolation is not known.
    """

    options: Augmentation = Augmentation()
    published: bool = False

    def __post_init__(self) -> None:
        for name, known in (("rz_interp", tuple(INTERPOLATIONS)), ("jpg_method", JPEG_ENCODERS)):
            given = words(getattr(self.options, name))
            if not given or set(given) - set(known):
                raise UserError(f"--{name} {getattr(self.options, name)}: use {', '.join(known)}")

    @property
    def crop_size(self) -> int:
        """Side of what comes out, pixels."""
        return self.options.crop_size

    def training(self, image: np.ndarray, generator: np.random.Generator, name: str) -> np.ndarray:
        """A training image: uint8 (H, W, 3) of any size to uint8 (crop_size, crop_size, 3).

        Raises:
            UserError: The image, called `name`, is smaller than the crop and small images are refused.
        """
        options = self.options
        image = self._resized(image, generator)
        if self._happens(options.blur_prob, generator):
            sigma = generator.uniform(options.blur_sig.low, options.blur_sig.high)
            image = blur(image, sigma, truncated=self.published)
        if self._happens(options.jpg_prob, generator):
            encoder = _drawn(options.jpg_method, generator)
            quality = generator.integers(int(options.jpg_qual.low), int(options.jpg_qual.high) + 1)
            image = jpeg(image, int(quality), encoder)
        image, size = self._large_enough(image, name), self.crop_size
        top, left = (int(generator.integers(0, side - size + 1)) for side in image.shape[:2])
        image = image[top : top + size, left : left + size]
        if options.flip and generator.random() < 0.5:
            image = image[:, ::-1]
        return grayscale(image) if generator.random() < GRAYSCALE_PROB[options.variant] else image

    def validation(self, image: np.ndarray, generator: np.random.Generator, name: str) -> np.ndarray:
        """A validation image: uint8 (H, W, 3) of any size to uint8 (crop_size, crop_size, 3).

        Raises:
            UserError: The image, called `name`, is smaller than the crop and small images are refused.
        """
        sigma, quality = self.options.blur_sig, self.options.jpg_qual
        image = self._resized(image, generator)
        if self.published and self._happens(self.options.blur_prob, generator):
            image = blur(image, (sigma.low + sigma.high) / 2, truncated=True)
        if self.published and self._happens(self.options.jpg_prob, generator):
            image = jpeg(image, int((quality.low + quality.high) / 2), "pil")
        image = Crop("center", self.crop_size)(self._large_enough(image, name), seed=0, name=name)
        share = GRAYSCALE_PROB[self.options.variant]
        is_gray = generator.random() < share if self.published else share == 1.0
        return grayscale(image) if is_gray else image

    def _happens(self, probability: float | None, generator: np.random.Generator) -> bool:
        return generator.random() < (self.options.blur_jpg if probability is None else probability)

    def _resized(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        if self.options.load_size == 0:
            return image
        return resize_shorter_side(image, self.options.load_size, _drawn(self.options.rz_interp, generator))

    def _large_enough(self, image: np.ndarray, name: str) -> np.ndarray:
        (height, width), size = image.shape[:2], self.crop_size
        if min(height, width) >= size:
            return image
        if self.options.small_images == "refuse":
            raise UserError(
                f"{name} has {width}x{height} pixels, less than the crop of {size}: "
                "scale it with --load_size, or give --small_images pad"
            )
        missing = [max(0, size - side) for side in (height, width)]
        return np.pad(image, [*((number // 2, number - number // 2) for number in missing), (0, 0)])


def _drawn(names: str, generator: np.random.Generator) -> str:
    given = words(names)
    return given[int(generator.integers(len(given)))] if len(given) > 1 else given[0]
