"""From any image to the square that a network of this room reads, to the byte as published; and augmentation.

Khoo, Lim, Phan 2022, section 4; what their code does where it differs is in docs/source_attribution.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from images.distortions import jpeg
from source_attribution.options import Augmentation
from utils.errors import UserError

_CELEBA = (slice(57, 185), slice(25, 153))
"""Rows and columns of an aligned CelebA image, 128 x 128 around the face."""
_CELEBA_SIZE = (218, 178)
_ROUNDING = 1e-9
_PROBABILITY = 0.5
_KERNELS = (3, 5, 7, 9)
_CUT = (0.05, 0.2)
_QUALITIES = (10, 75)
_NOISE = (5.0, 20.0)
# What runs in the published code instead: a border constant as sigma; a factor as the name of an option.
_PUBLISHED_SIGMA = 4.0
_PUBLISHED_QUALITY = 95


def square(image: np.ndarray, side: int) -> np.ndarray:
    """The central square of uint8 (H, W, 3) in `side` pixels; an image of that size as it is.

    As scikit-image's `resize` of floats does it by default: a Gaussian with sigma (factor - 1) / 2 where it shrinks,
    mirrored at the border, then bilinear interpolation; decimals are cut off.
    """
    height, width = image.shape[:2]
    if (height, width) == (side, side):
        return image
    less = abs(height - width) // 2
    whole = slice(None)
    rows, columns = (slice(less, height - less), whole) if height > width else (whole, slice(less, width - less))
    part = image[rows, columns].astype(np.float64)
    factors = (part.shape[0] / side, part.shape[1] / side, 1.0)
    if max(factors) > 1.0:
        part = gaussian_filter(part, [max(0.0, (factor - 1.0) / 2.0) for factor in factors], mode="mirror")
    scaled = zoom(part, [1.0 / factor for factor in factors], order=1, mode="mirror", grid_mode=True)
    # where the image is even, rounding errors of either sign must not decide
    return np.clip(scaled + _ROUNDING, 0.0, 255.0).astype(np.uint8)


def celeba_face(image: np.ndarray, name: str) -> np.ndarray:
    """The central 128 x 128 pixels of an aligned CelebA image (218, 178, 3).

    Raises:
        UserError: The image, called `name`, has another size.
    """
    if image.shape[:2] != _CELEBA_SIZE:
        raise UserError(f"{name} has {image.shape[1]}x{image.shape[0]} pixels: --celeba is for aligned ones of 178x218")
    return image[_CELEBA]


def _blur(image: np.ndarray, generator: np.random.Generator, published: bool) -> tuple[np.ndarray, float]:
    size = int(generator.choice(_KERNELS))
    # 0: from the size of the kernel
    return cv2.GaussianBlur(image, (size, size), _PUBLISHED_SIGMA if published else 0.0), size


def _cut(image: np.ndarray, generator: np.random.Generator, published: bool) -> tuple[np.ndarray, float]:
    height, width = image.shape[:2]
    share = generator.uniform(*_CUT)
    spans = []
    for length in (height, width):
        less = int(length * share)
        start = int(less * generator.random())
        spans.append(slice(start, length - (less - start)))
    part = np.ascontiguousarray(image[spans[0], spans[1]])
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC), 100 * share


def _compress(image: np.ndarray, generator: np.random.Generator, published: bool) -> tuple[np.ndarray, float]:
    quality = int(generator.integers(_QUALITIES[0], _QUALITIES[1] + (not published)))
    if not published:
        return jpeg(image, quality, "cv2"), quality
    # red and blue are exchanged on the way
    return np.ascontiguousarray(jpeg(image[..., ::-1], _PUBLISHED_QUALITY, "cv2")[..., ::-1]), quality


def _add_noise(image: np.ndarray, generator: np.random.Generator, published: bool) -> tuple[np.ndarray, float]:
    sigma = generator.uniform(*_NOISE)
    return np.clip(image + sigma * generator.standard_normal(image.shape), 0, 255).astype(np.uint8), sigma


_Operation = Callable[[np.ndarray, np.random.Generator, bool], tuple[np.ndarray, float]]
_OPERATIONS: Mapping[str, _Operation] = {"blur": _blur, "crop": _cut, "jpeg": _compress, "noise": _add_noise}


def augmented(
    image: np.ndarray, mode: str, generator: np.random.Generator, *, published: bool = False
) -> tuple[np.ndarray, str]:
    """The image after one operation, or after each of the four with probability 0.5 (`multi`); and what was done.

    Args:
        image: uint8 (H, W, 3).
        mode: Which, `multi` for each of them.
        generator: Of all random choices.
        published: As the published code runs, not as it is described: blur of sigma 4 whatever its kernel, JPEG of
            quality 95 with red and blue exchanged.

    Returns:
        uint8 (H, W, 3), and the end of the file's name: `_<operation><whole part of its parameter>` for each.
    """
    done = ""
    for name, operation in _OPERATIONS.items():
        if mode == name or (mode == "multi" and generator.random() < _PROBABILITY):
            image, parameter = operation(image, generator, published)
            done += f"_{name}{int(parameter)}"
    return image, done


@dataclass(frozen=True)
class Preparation:
    """What an image goes through before a network sees it; an `ImageTransform` of training.

    Attributes:
        crop_size: Side of the square, pixels.
        augmentation: In training only.
        published: As the published code augments.
    """

    crop_size: int
    augmentation: Augmentation = "none"
    published: bool = False

    def training(self, image: np.ndarray, generator: np.random.Generator, name: str) -> np.ndarray:
        """Square and augmented; values that are no pixels any more (spectra) as they are."""
        prepared = self.validation(image, generator, name)
        if self.augmentation == "none":
            return prepared
        if prepared.dtype != np.uint8:
            raise UserError(f"{name} holds no pixels, so it cannot be augmented: give images, or --augment none")
        return augmented(prepared, self.augmentation, generator, published=self.published)[0]

    def validation(self, image: np.ndarray, generator: np.random.Generator, name: str) -> np.ndarray:
        """Square.

        Raises:
            UserError: A spectrum has another size.
        """
        if image.dtype == np.uint8:
            return square(image, self.crop_size)
        if image.shape[:2] != (self.crop_size, self.crop_size):
            raise UserError(f"{name} is {image.shape[1]} wide, the network reads {self.crop_size}: give --image_size")
        return image
