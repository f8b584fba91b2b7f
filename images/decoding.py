"""One image file to uint8 RGB, whatever its mode; damaged and hostile files; crops."""

import hashlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import UserError

CROP_KINDS = ("none", "center", "random")
# Named, so that a file cannot choose a decoder that runs other programs (EPS) or is seldom exercised.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# Crops of the published ranking script: RandomResizedCrop(224, scale=(0.99, 1), ratio=(0.99, 1)).
_RANDOM_SCALE = (0.99, 1.0)
_RANDOM_RATIO = (0.99, 1.0)
_RANDOM_ATTEMPTS = 10


def decode_image(path: str | Path) -> np.ndarray:
    """Decode an image file to uint8 RGB of shape (H, W, 3).

    Grey is repeated, palettes are looked up, CMYK is converted, alpha is dropped (not blended), of an
    animation the first frame is taken. Integer grey beyond 8 bits is read as 16 bits and scaled (65535 is
    255), where Pillow would clip; float grey is read as 0..1, or as 0..255 if it goes beyond 1. EXIF rotation
    is not applied, as in the published code (in TIFF files Pillow itself applies it).

    Raises:
        UserError: missing, unreadable, damaged or too large a file, or values that have no such reading.
    """
    return np.array(_open(Path(path), decode=True), dtype=np.uint8)


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width in pixels, from the file's header alone.

    Raises:
        UserError: missing or unreadable, not an image, or too large.
    """
    image = _open(Path(path), decode=False)
    return image.height, image.width


@dataclass(frozen=True)
class Crop:
    """Which part of an image to use: all of it, the centre, or a random part resized.

    Args:
        kind: "none" leaves the image as it is; "center" takes the central square, with black around smaller
            images, as torchvision's CenterCrop; "random" takes 99 to 100 % of the area and resizes it
            bilinearly, as torchvision's RandomResizedCrop(size, scale=(0.99, 1), ratio=(0.99, 1)).
        size: side of the square, in pixels.
    """

    kind: str = "none"
    size: int = 224

    def __post_init__(self) -> None:
        if self.kind not in CROP_KINDS:
            raise UserError(f"unknown crop {self.kind!r}: use one of {', '.join(CROP_KINDS)}")
        if self.size < 1:
            raise UserError(f"crop size is {self.size}: use at least 1 pixel")

    def __call__(self, image: np.ndarray, *, seed: int, name: str) -> np.ndarray:
        """Crop uint8 (H, W, 3); a random crop depends on `seed` and `name` only, not on order or process."""
        if self.kind == "none":
            return image
        if self.kind == "center":
            return _center(image, self.size)
        height, width = image.shape[:2]
        top, left, rows, columns = random_box(height, width, seed=seed, name=name)
        part = Image.fromarray(image[top : top + rows, left : left + columns])
        return np.array(part.resize((self.size, self.size), Image.Resampling.BILINEAR), dtype=np.uint8)


def random_box(height: int, width: int, *, seed: int, name: str) -> tuple[int, int, int, int]:
    """Draw (top, left, rows, columns) as torchvision's RandomResizedCrop does, from `seed` and `name`."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode("utf-8", errors="surrogateescape")).digest()
    generator = np.random.default_rng(int.from_bytes(digest))
    area = height * width
    for _ in range(_RANDOM_ATTEMPTS):
        target = area * generator.uniform(*_RANDOM_SCALE)
        ratio = math.exp(generator.uniform(math.log(_RANDOM_RATIO[0]), math.log(_RANDOM_RATIO[1])))
        columns, rows = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            top = int(generator.integers(0, height - rows + 1))
            left = int(generator.integers(0, width - columns + 1))
            return top, left, rows, columns
    rows, columns = height, width
    if width < height * _RANDOM_RATIO[0]:
        rows = round(width / _RANDOM_RATIO[0])
    elif width > height * _RANDOM_RATIO[1]:
        columns = round(height * _RANDOM_RATIO[1])
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _open(path: Path, *, decode: bool) -> Image.Image:
    """The opened image; decoded and converted to RGB if `decode`, else with its header read only."""
    try:
        with warnings.catch_warnings():
            # Odd metadata is no concern of ours; an image beyond Pillow's limit is refused.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                return _to_rgb(image, path) if decode else image
    except (UserError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _refusal(path, f"has more than {Image.MAX_IMAGE_PIXELS} pixels", "scale it down") from error
    except FileNotFoundError as error:
        raise UserError(f"no such image: {path}: check the path") from error
    except PermissionError as error:
        raise _refusal(path, "may not be read", "change its permissions") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder, not an image: name an image file") from error
    except Exception as error:
        # Pillow's decoders raise many types on damaged files: SyntaxError, ValueError, struct.error ...
        empty = path.is_file() and path.stat().st_size == 0
        what = "is empty" if empty else "is damaged or not an image"
        raise _refusal(path, what, "replace or remove it") from error


def _refusal(path: Path, what: str, mend: str) -> UserError:
    return UserError(f"{path} {what}: {mend}, or use --skip_bad_images")


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        return Image.fromarray(_to_eight_bits(values, path)).convert("RGB")
    if image.mode == "RGBa":
        # Pillow has no direct way from premultiplied alpha to RGB.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _to_eight_bits(values: np.ndarray, path: Path) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    top = 65535.0 if values.dtype.kind in "iu" else 1.0 if high <= 1.0 else 255.0
    if not (low >= 0.0 and high <= top):
        raise _refusal(path, f"has values from {low:g} to {high:g}, expected 0 to {top:g}", "rescale it")
    return np.rint(values.astype(np.float64) * (255.0 / top)).astype(np.uint8)


def _center(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    missing_rows, missing_columns = max(size - height, 0), max(size - width, 0)
    if missing_rows or missing_columns:
        rows = (missing_rows // 2, (missing_rows + 1) // 2)
        columns = (missing_columns // 2, (missing_columns + 1) // 2)
        image = np.pad(image, (rows, columns, (0, 0)))
        height, width = image.shape[:2]
    # Python's rounding to even decides where an odd remainder goes, as in torchvision.
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image[top : top + size, left : left + size]
