"""Photographs as reals: which ones, brought to one scale, split by photograph, cut into tiles."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from images.bundled_photos import bundled_photos
from images.decoding import decode_image
from images.sets import find_loose_images
from mini_forensynths.options import PARTS
from utils.cli import progress
from utils.errors import UserError
from utils.files import safe_name, sha256_text

# Every photograph is shrunk by a whole factor (box filter) of at least 2, which removes the 8 x 8 grid and the coarser
# colour of JPEG files, so that its shorter side comes near this many pixels: large and small photographs become
# equally sharp.
_SHORTER_SIDE = 224
# Mean distance of the colour channels, in grey levels, from which on a photograph counts as one in colour.
_LEAST_COLOUR = 2.0
# bundled pictures without colour
_UNSUITABLE = frozenset({"brick", "camera", "coins", "grass", "gravel"})


@dataclass(frozen=True)
class Photo:
    """A photograph to be used.

    Attributes:
        name: Part of the names of its tiles; differs from those of all other photographs.
        path: File.
    """

    name: str
    path: Path


def find_photos(folder: Path | None) -> list[Photo]:
    """Photographs below a folder, or those that come with installed packages, sorted by name.

    Raises:
        UserError: No such folder, or no images in it.
    """
    if folder is None:
        return [Photo(name, path) for name, path in sorted(bundled_photos()) if name not in _UNSUITABLE]
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}: give --photos a folder of photographs")
    photos: dict[str, Photo] = {}
    for item in find_loose_images([folder]).items:
        name = safe_name(Path(item.name).with_suffix("").as_posix().replace("/", "-"))
        if name in photos:  # a.jpg beside a.png
            name = safe_name(item.name.replace("/", "-"))
        if name in photos:  # a-b.jpg.png beside them
            name = f"{name}-{sha256_text([item.name])[:8]}"
        photos[name] = Photo(name, item.path)
    return [photos[name] for name in sorted(photos)]


def split_photos(photos: Sequence[Photo], shares: Sequence[float], seed: int) -> dict[str, list[Photo]]:
    """Divide photographs at random among `PARTS`; no photograph is in two of them.

    Args:
        photos: To be divided.
        shares: Of each part, together 1.
        seed: Of the draw.

    Raises:
        UserError: The shares do not add up to 1, or a part that was asked for stays empty.
    """
    if len(shares) != len(PARTS) or min(shares) < 0.0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise UserError(
            f"--shares {' '.join(map(str, shares))}: give three shares of {', '.join(PARTS)} that add up to 1"
        )
    order = np.random.default_rng(seed).permutation(len(photos))
    ends = [round(len(photos) * sum(shares[: index + 1])) for index in range(len(PARTS))]
    parts: dict[str, list[Photo]] = {}
    for part, share, first, end in zip(PARTS, shares, [0, *ends[:-1]], ends, strict=True):
        if share and first == end:
            raise UserError(f"{len(photos)} photographs are too few for {part}: give more, or --shares without {part}")
        parts[part] = [photos[position] for position in sorted(order[first:end].tolist())]
    return parts


def load_photo(photo: Photo, tile: int) -> np.ndarray:
    """The photograph at the scale of the benchmark: uint8 (H, W, 3).

    Raises:
        UserError: It is unreadable, too small for one tile of `tile` pixels after shrinking, or has no colour.
    """
    image = decode_image(photo.path)
    height, width = image.shape[:2]
    factor = max(2, min(height, width) // max(tile, _SHORTER_SIDE))
    small = np.asarray(Image.fromarray(image).reduce(factor))
    if min(height, width) < tile * factor:
        raise UserError(
            f"{photo.path}: {width}x{height} pixels are too few: the shorter side must have {2 * tile}, because "
            "photographs are halved at least"
        )
    wide = small.astype(np.int16)
    if np.abs(wide - wide.mean(axis=2, keepdims=True)).mean() < _LEAST_COLOUR:
        raise UserError(f"{photo.path}: has no colour: leave it out of --photos, or give --skip_bad_images")
    return small


def cut_tiles(image: np.ndarray, tile: int, most: int) -> list[np.ndarray]:
    """Square tiles of `tile` pixels, spread evenly and covering the image where `most` are enough for that."""
    height, width = image.shape[:2]
    rows, columns = math.ceil(height / tile), math.ceil(width / tile)
    tops = np.linspace(0, height - tile, rows).round().astype(int) if rows > 1 else [(height - tile) // 2]
    lefts = np.linspace(0, width - tile, columns).round().astype(int) if columns > 1 else [(width - tile) // 2]
    corners = [(top, left) for top in tops for left in lefts]
    chosen = np.unique(np.linspace(0, len(corners) - 1, min(most, len(corners))).round().astype(int))
    return [image[top : top + tile, left : left + tile] for top, left in (corners[index] for index in chosen)]


def usable_photos(
    photos: Sequence[Photo], tile: int, purpose: str, skipped: list[str], *, skip_bad_images: bool
) -> Iterator[tuple[Photo, np.ndarray]]:
    """Photographs with their pixels, as `load_photo` gives them; `skipped` gets a line for each that is left out.

    Raises:
        UserError: A photograph cannot be used and bad ones are not skipped, or none can.
    """
    left_out: list[str] = []
    for photo in progress(photos, description=f"{purpose} images", unit="photo"):
        try:
            image = load_photo(photo, tile)
        except UserError as error:
            if not skip_bad_images:
                raise
            left_out.append(str(error))
        else:
            yield photo, image
    if len(left_out) == len(photos):
        reason = left_out[0] if left_out else "there are none"
        raise UserError(f"none of the {len(photos)} photographs for {purpose} can be used: {reason}")
    skipped += left_out
