"""The data set: which folders it has, and how each fake is made from a tile of a photograph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from images.distortions import blur
from images.sets import LABEL_FOLDERS
from mini_forensynths.generators import SPECS, SimulatedGenerator, reconstruct
from mini_forensynths.measures import TO_YCBCR
from mini_forensynths.options import Sizes
from mini_forensynths.photos import Photo, cut_tiles, usable_photos
from utils.figures import save_picture

CHROMA = "-chroma"
"""Ends the name of a positive control for colour: the generator's colours on the luma of the photograph."""
NULL, SWAPPED, BLURRED = "null", "swapped", "blurred-reals"
"""Further controls: no generator, the fakes are mirrored reals; labels exchanged; reals blurred with sigma 1 beside
fakes as they are. The last two are of the first generator."""
_BLUR_SIGMA = 1.0

Fake = Callable[[str], np.ndarray]
"""From the name of a generator to its fake of the tile at hand."""


def set_names(part: str) -> dict[str, str]:
    """Folders of a part, and the kind of pairs in each: training and validation images are of the first generator only.

    >>> set_names("val")
    {'transposed4_val': 'transposed4', 'transposed4-chroma_val': 'transposed4-chroma'}
    """
    generators = [spec.name for spec in SPECS]
    shown = generators if part == "test" else generators[:1]
    controls = [NULL, SWAPPED, BLURRED] if part == "test" else []
    suffix = "" if part == "test" else f"_{part}"
    return {kind + suffix: kind for kind in [*shown, *(name + CHROMA for name in shown), *controls]}


def make_pair(kind: str, real: np.ndarray, fake: Fake) -> tuple[np.ndarray, np.ndarray]:
    """Real and fake image of a set, uint8 (H, W, 3), from a tile of a photograph.

    Args:
        kind: Generator, generator and control, or control.
        real: The tile.
        fake: Gives the fake of the tile by the name of the generator.
    """
    if kind == NULL:
        return real, np.ascontiguousarray(real[:, ::-1])
    if kind == SWAPPED:
        return fake(SPECS[0].name), real
    if kind == BLURRED:
        return blur(real, _BLUR_SIGMA), fake(SPECS[0].name)
    if kind.endswith(CHROMA):
        return real, chroma_fake(real, fake(kind.removesuffix(CHROMA)))
    return real, fake(kind)


def chroma_fake(real: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """The fake's colours on the luma of the real: fake + Y(real) - Y(fake), uint8 (H, W, 3), rounded and clipped."""
    difference = (real.astype(np.float64) - fake) @ TO_YCBCR[0]
    return np.clip(np.rint(fake + difference[..., None]), 0, 255).astype(np.uint8)


def make_part(
    root: Path,
    part: str,
    photos: Sequence[Photo],
    generators: Mapping[str, SimulatedGenerator],
    sizes: Sizes,
    *,
    skip_bad_images: bool = False,
) -> list[str]:
    """Write `<root>/<set>/{0_real,1_fake}/<photo>_<tile>.png`; images that are there already are kept.

    A photograph is decoded once; its real and its fake pass through the same roundings and the same file format.

    Args:
        root: Folder of the data set.
        part: One of `PARTS`.
        photos: Of this part.
        generators: By name.
        sizes: Of the images.
        skip_bad_images: Leave out photographs that cannot be used.

    Returns:
        One line for each photograph left out.

    Raises:
        UserError: A photograph cannot be used, or none is left.
    """
    names, side = set_names(part), sizes.side(part)
    skipped: list[str] = []
    for photo, image in usable_photos(photos, side, part, skipped, skip_bad_images=skip_bad_images):
        for index, real in enumerate(cut_tiles(image, side, sizes.most_tiles)):
            _write_tile(root, names, f"{photo.name}_{index}.png", real, generators)
    return skipped


def _write_tile(
    root: Path, names: Mapping[str, str], file: str, real: np.ndarray, generators: Mapping[str, SimulatedGenerator]
) -> None:
    @cache
    def fake(name: str) -> np.ndarray:
        return reconstruct(generators[name], real)

    for name, kind in names.items():
        targets = [root / name / LABEL_FOLDERS[label] / file for label in (0, 1)]
        if all(target.exists() for target in targets):
            continue
        for target, image in zip(targets, make_pair(kind, real, fake), strict=True):
            if not target.exists():
                save_picture(target, image)
