"""From a decoded image to what patch classifiers are trained and tested on; uint8 (H, W, 3) in and out."""

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from images.choice import Reading
from images.decoding import Crop, drawn_box
from images.distortions import jpeg, resize, resize_shorter_side
from patch_forensics.options import PatchTraining
from utils.errors import UserError

_RESIZED_AREA, _RESIZED_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_BOX = 3
_HALF = 0.5
_COLOUR = ("brightness", "gamma", "clahe")


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


@dataclass(frozen=True)
class PatchTransform:
    """The published training and validation transforms.

    Attributes:
        options: Which crop, and what is altered.
    """

    options: PatchTraining

    @property
    def crop_size(self) -> int:
        """Side of what comes out in training."""
        return self.options.sizes[1]

    def training(self, image: np.ndarray, generator: np.random.Generator, name: str) -> np.ndarray:
        """A training image, uint8 (H, W, 3) of any size to a square.

        Raises:
            UserError: The image, called `name`, is not scaled and smaller than the crop.
        """
        options, (load, size) = self.options, self.options.sizes
        if options.random_resized_crop:
            height, width = image.shape[:2]
            top, left, rows, columns = drawn_box(height, width, generator, _RESIZED_AREA, _RESIZED_RATIO)
            image = resize(image[top : top + rows, left : left + columns], size, size, "lanczos")
        elif options.random_crop:
            image = resize_shorter_side(image, load, "lanczos") if load else image
            if min(image.shape[:2]) < size:
                raise UserError(f"{name} is smaller than the crop of {size}: lower --fineSize or give --loadSize")
            top, left = (int(generator.integers(0, side - size + 1)) for side in image.shape[:2])
            image = image[top : top + size, left : left + size]
        else:
            image = PublishedCrop("center", size, load)(image, seed=0, name=name)
        image = self._altered(np.ascontiguousarray(image), generator)
        return image if options.no_flip or generator.random() >= _HALF else image[:, ::-1]

    def validation(self, image: np.ndarray, generator: np.random.Generator, name: str) -> np.ndarray:
        """A validation image, as in tests."""
        return PublishedCrop("center", self.options.test_size, self.options.sizes[0])(image, seed=0, name=name)

    def _altered(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        options = self.options
        wanted: list[tuple[str, float]] = []
        if options.cnn_detection_augment is not None:
            wanted += [("blur", options.cnn_detection_augment), ("jpeg", options.cnn_detection_augment)]
        wanted += [(kind, _HALF) for kind in _COLOUR if options.color_augment]
        wanted += [(kind, _HALF) for kind in ("blur", "jpeg", *_COLOUR) if options.all_augment]
        for kind, probability in wanted:
            if generator.random() < probability:
                image = altered(image, kind, generator)
        return image


def altered(image: np.ndarray, kind: str, generator: np.random.Generator) -> np.ndarray:
    """The image after `blur`, `jpeg`, `brightness` (and contrast), `gamma` or `clahe`, as strong as drawn."""
    match kind:
        case "blur":
            return PublishedCrop(box=_BOX)(image, seed=0, name="")
        case "jpeg":
            return jpeg_of_swapped(image, int(generator.integers(30, 101)))
        case "brightness":
            return brightness_contrast(image, 1 + generator.uniform(-0.2, 0.2), generator.uniform(-0.2, 0.2))
        case "gamma":
            return power(image, int(generator.integers(80, 121)) / 100)
    return equalise(image, generator.uniform(1.0, 4.0))
