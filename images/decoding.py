"""One image file to uint8 RGB, whatever its mode; what its header tells; damaged and hostile files; crops."""

import functools
import hashlib
import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
from PIL import Image

from images.distortions import jpeg, resize, scaled_size
from utils.errors import UserError

CROP_KINDS = ("none", "center", "random")
# Named, so that a file cannot choose a decoder that runs other programs (EPS) or is seldom exercised.
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")
# Crops of the published ranking script: RandomResizedCrop(224, scale=(0.99, 1), ratio=(0.99, 1)).
_RANDOM_SCALE = (0.99, 1.0)
_RANDOM_RATIO = (0.99, 1.0)
_RANDOM_ATTEMPTS = 10
# What takes back the rotation that Pillow gives to TIFF files alone, by the value of the EXIF tag.
_ORIENTATION = 0x0112
_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# A JPEG's blocks, twice as large for chroma at half resolution.
_BLOCK = 16

T = TypeVar("T")


@dataclass(frozen=True)
class DecodedImage:
    """Pixels, uint8 RGB (H, W, 3), and whether any of them is transparent in the file."""

    pixels: np.ndarray
    transparent: bool


def read_image(path: str | Path) -> DecodedImage:
    """Decode an image file.

    Grey is repeated, palettes are looked up, CMYK is converted, alpha is dropped (not blended: the colours below are
    what detectors were trained on), of an animation the first frame is taken. EXIF rotation is applied in no format, as
    in the published code. Integer grey beyond 8 bits is read as 16 bits and scaled (65535 is 255), where Pillow would
    clip; 32-bit integers, of which nothing says what white is, are read as 8 bits if none exceeds 255. Float grey is
    read as 0..1, or as 0..255 if it goes beyond 1.

    Raises:
        UserError: missing, unreadable, damaged or too large a file, or values that have no such reading.
    """
    return _opened(Path(path), lambda image: _decoded(image, Path(path)))


def decode_image(path: str | Path) -> np.ndarray:
    """The pixels that `read_image` finds, uint8 (H, W, 3).

    Raises:
        UserError: as `read_image`.
    """
    return read_image(path).pixels


@dataclass(frozen=True)
class Header:
    """What a file tells before it is decoded: size in pixels, format (as Pillow names it) and JPEG quality.

    The quality, 1 to 100, is that of libjpeg's luminance table nearest to the file's in sum; None for other formats.
    """

    height: int
    width: int
    format: str
    quality: int | None


def read_header(path: str | Path) -> Header:
    """The header of an image file.

    Raises:
        UserError: missing or unreadable, not an image, or too large.
    """
    return _opened(Path(path), _header)


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width in pixels, from the file's header alone.

    Raises:
        UserError: as `read_header`.
    """
    header = read_header(path)
    return header.height, header.width


@dataclass(frozen=True)
class Resize:
    """How images are scaled before they are cut, as torchvision's Resize does for Pillow images.

    Args:
        size: pixels of the shorter side, or of both.
        square: scale both sides, whatever the aspect.
        interpolation: one of `images.distortions.INTERPOLATIONS`.
    """

    size: int
    square: bool = False
    interpolation: str = "bilinear"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Scale uint8 (H, W, 3)."""
        return resize(image, *self.output_size(*image.shape[:2]), self.interpolation)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a scaled image."""
        return (self.size, self.size) if self.square else scaled_size(height, width, self.size)


@dataclass(frozen=True)
class Crop:
    """Which part of an image to use: all of it, the centre, or a random part resized.

    Args:
        kind: "none" leaves the image as it is; "center" takes the central square, with black around smaller
            images, as torchvision's CenterCrop; "random" takes 99 to 100 % of the area and resizes it
            bilinearly, as torchvision's RandomResizedCrop(size, scale=(0.99, 1), ratio=(0.99, 1)).
        size: side of the square, in pixels.
        resize: how images are scaled before; a number stands for bilinear scaling of the shorter side, 0 for none.
    """

    kind: str = "none"
    size: int = 224
    resize: int | Resize = 0
    interpolation: ClassVar[str] = "bilinear"

    def __post_init__(self) -> None:
        if self.kind not in CROP_KINDS:
            raise UserError(f"unknown crop {self.kind!r}: use one of {', '.join(CROP_KINDS)}")

    def __call__(self, image: np.ndarray, *, seed: int, name: str) -> np.ndarray:
        """Crop uint8 (H, W, 3); a random crop depends on `seed` and `name` only, not on order or process."""
        if self._scaling is not None:
            image = self._scaling(image)
        if self.kind == "none":
            return image
        if self.kind == "center":
            return _central(image, self.size)
        height, width = image.shape[:2]
        top, left, rows, columns = random_box(height, width, seed=seed, name=name)
        part = Image.fromarray(image[top : top + rows, left : left + columns])
        return np.array(part.resize((self.size, self.size), Image.Resampling.BILINEAR), dtype=np.uint8)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what is left of an image."""
        if self.kind != "none":
            return self.size, self.size
        return (height, width) if self._scaling is None else self._scaling.output_size(height, width)

    @property
    def _scaling(self) -> Resize | None:
        if isinstance(self.resize, Resize):
            return self.resize
        return Resize(self.resize, interpolation=self.interpolation) if self.resize else None


@dataclass(frozen=True)
class Equalization:
    """Makes images alike in what is not the generator's doing: a central square of one size, compressed once as JPEG.

    The square begins at multiples of 16 pixels, so that the blocks of an image that comes as JPEG stay where they are,
    and compressing it once more at its own quality changes little.

    Args:
        side: of the square, in pixels; no more than the shorter side of any image.
        quality: of Pillow's JPEG encoder.
    """

    side: int
    quality: int

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Cut and compress uint8 (H, W, 3) to (side, side, 3)."""
        top, left = ((extent - self.side) // 2 // _BLOCK * _BLOCK for extent in image.shape[:2])
        return jpeg(np.ascontiguousarray(image[top : top + self.side, left : left + self.side]), self.quality, "pil")


def _central(image: np.ndarray, side: int) -> np.ndarray:
    """The square in the middle, black where an image is smaller, to the pixel as torchvision, which imports slowly."""
    lacks = [max(side - extent, 0) for extent in image.shape[:2]]
    top, left = (round(max(extent - side, 0) / 2) for extent in image.shape[:2])
    margins = [(lack // 2, lack - lack // 2) for lack in lacks] + [(0, 0)] * (image.ndim - 2)
    return np.pad(image[top : top + side, left : left + side], margins)


def random_box(height: int, width: int, *, seed: int, name: str) -> tuple[int, int, int, int]:
    """Draw (top, left, rows, columns) as torchvision's RandomResizedCrop does, from `seed` and `name`."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode("utf-8", errors="surrogateescape")).digest()
    return drawn_box(height, width, np.random.default_rng(int.from_bytes(digest)))


def drawn_box(
    height: int,
    width: int,
    generator: np.random.Generator,
    scale: tuple[float, float] = _RANDOM_SCALE,
    ratios: tuple[float, float] = _RANDOM_RATIO,
) -> tuple[int, int, int, int]:
    """Draw (top, left, rows, columns) with a share of the area and a ratio of sides between these bounds."""
    area = height * width
    for _ in range(_RANDOM_ATTEMPTS):
        target = area * generator.uniform(*scale)
        ratio = math.exp(generator.uniform(math.log(ratios[0]), math.log(ratios[1])))
        columns, rows = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            top = int(generator.integers(0, height - rows + 1))
            left = int(generator.integers(0, width - columns + 1))
            return top, left, rows, columns
    rows, columns = height, width
    if width < height * ratios[0]:
        rows = round(width / ratios[0])
    elif width > height * ratios[1]:
        columns = round(height * ratios[1])
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _opened(path: Path, read: Callable[[Image.Image], T]) -> T:
    """What `read` gets from the opened image."""
    try:
        with warnings.catch_warnings():
            # Odd metadata is no concern of ours; an image beyond Pillow's limit is refused.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                return read(image)
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


def _decoded(image: Image.Image, path: Path) -> DecodedImage:
    # asked for first: decoding makes Pillow forget it
    undo = _UNDO.get(_tiff_orientation(image))
    transparent = False
    if image.mode == "F" or image.mode.startswith("I"):
        # Only a TIFF file leaves open what the largest of its 32-bit integers stands for.
        may_be_bytes = image.mode == "I" and image.format == "TIFF"
        rgb = Image.fromarray(_to_eight_bits(np.asarray(image), path, may_be_bytes=may_be_bytes)).convert("RGB")
    elif image.has_transparency_data:
        # Pillow has no direct way from premultiplied alpha to RGB.
        with_alpha = image.convert("RGBA")
        transparent = bool(np.asarray(with_alpha.getchannel("A")).min() < 255)
        rgb = (with_alpha if image.mode == "RGBa" else image).convert("RGB")
    else:
        rgb = image.convert("RGB")
    if undo is not None:
        rgb = rgb.transpose(undo)
    return DecodedImage(np.array(rgb, dtype=np.uint8), transparent)


def _header(image: Image.Image) -> Header:
    width, height = image.size
    if _tiff_orientation(image) >= 5:
        width, height = height, width
    tables: dict[int, list[int]] = getattr(image, "quantization", None) or {}
    kind = "JPEG" if image.format in ("JPEG", "MPO") else image.format or ""
    return Header(height, width, kind, _quality(sum(tables[0])) if 0 in tables else None)


def _tiff_orientation(image: Image.Image) -> int:
    """Which rotation Pillow applies on decoding; 1: none."""
    value = image.getexif().get(_ORIENTATION, 1) if image.format == "TIFF" else 1
    return value if value in _UNDO else 1


def _quality(table_sum: int) -> int:
    sums = _table_sums()
    return min(range(len(sums)), key=lambda index: (abs(sums[index] - table_sum), -index)) + 1


@functools.cache
def _table_sums() -> list[int]:
    """Sum of the luminance table for each quality from 1 to 100."""
    sums = []
    for quality in range(1, 101):
        buffer = io.BytesIO()
        Image.new("L", (8, 8)).save(buffer, format="JPEG", quality=quality)
        with Image.open(buffer, formats=("JPEG",)) as image:
            sums.append(sum(image.quantization[0]))  # type: ignore[attr-defined]
    return sums


def _to_eight_bits(values: np.ndarray, path: Path, *, may_be_bytes: bool) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind in "iu":
        top = 255.0 if may_be_bytes and high <= 255.0 else 65535.0
    else:
        top = 1.0 if high <= 1.0 else 255.0
    if not (low >= 0.0 and high <= top):
        raise _refusal(path, f"has values from {low:g} to {high:g}, expected 0 to {top:g}", "rescale it")
    return np.rint(values.astype(np.float64) * (255.0 / top)).astype(np.uint8)
