"""The data set: which folders it has, and how each fake is made from a photograph."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np

from images.distortions import blur, grayscale, jpeg
from images.sets import LABEL_FOLDERS
from mini_forensynths.generators import SPECS
from mini_forensynths.measures import TO_YCBCR
from mini_forensynths.options import Sizes
from mini_forensynths.photos import Photo, cut_tiles, usable_photos
from mini_forensynths.real_generators import ENLARGEMENTS, enlarge
from utils.figures import save_picture

Way = Callable[[np.ndarray], np.ndarray]
"""From a photograph to its fake, both uint8 (H, W, 3)."""
Fake = Callable[[str], np.ndarray]
"""From the name of a generator to its fake of the photograph at hand."""

SIMULATED = tuple(spec.name for spec in SPECS)
REAL = tuple(way.name for way in ENLARGEMENTS if way.weights)
TRAINING = (SIMULATED[0], REAL[0])
"""The generators that train detectors, one of each family; every other one is unseen."""
CHROMA, LUMA = "-chroma", "-luma"
"""End the names of halves of a fake: the generator's colours on the luma of the photograph, and the other way round."""
SWAPPED = "swapped"
"""Control: fakes of the first generator and reals with their labels exchanged."""
CONTROLS: dict[str, Way] = {
    "null": lambda photo: np.ascontiguousarray(photo[:, ::-1]),
    "blur": lambda photo: blur(photo, 1.0),
    "jpeg-90": lambda photo: jpeg(photo, 90, "pil"),
    "grey": grayscale,
    **{way.name: partial(enlarge, way, None) for way in ENLARGEMENTS if not way.weights},
}
"""Photographs altered without any generator, in the place of fakes: none is a fake. `null` mirrors them."""


def part_name(part: str) -> str:
    """The folder of training or validation images, with a class for each training generator."""
    return f"both_{part}"


def set_names(part: str, generators: Sequence[str]) -> dict[str, str]:
    """Folders of a part, and the kind of pairs in each: training and validation images are of `TRAINING` only.

    >>> set_names("val", ["transposed4", "x4plus-anime", "skip"])
    {'both_val/transposed4': 'transposed4', 'both_val/x4plus-anime': 'x4plus-anime'}
    """
    if part != "test":
        return {f"{part_name(part)}/{name}": name for name in TRAINING if name in generators}
    halves = [name + half for name in TRAINING if name in generators for half in (CHROMA, LUMA)]
    return {name: name for name in (*generators, *halves, *CONTROLS, SWAPPED)}


def make_pair(kind: str, photo: np.ndarray, fake: Fake) -> tuple[np.ndarray, np.ndarray]:
    """Real and fake of a set, uint8 (H, W, 3), from a photograph.

    Args:
        kind: Generator, half of one, or control.
        photo: The photograph.
        fake: Gives the fake of the photograph by the name of the generator.
    """
    if kind == SWAPPED:
        return fake(TRAINING[0]), photo
    if kind in CONTROLS:
        return photo, CONTROLS[kind](photo)
    if kind.endswith(CHROMA):
        return photo, with_luma_of(photo, fake(kind.removesuffix(CHROMA)))
    if kind.endswith(LUMA):
        return photo, with_luma_of(fake(kind.removesuffix(LUMA)), photo)
    return photo, fake(kind)


def with_luma_of(luma: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """`colours` + Y(`luma`) - Y(`colours`), uint8 (H, W, 3), rounded and clipped."""
    difference = (luma.astype(np.float64) - colours) @ TO_YCBCR[0]
    return np.clip(np.rint(colours + difference[..., None]), 0, 255).astype(np.uint8)


def make_part(
    root: Path,
    part: str,
    photos: Sequence[Photo],
    generators: Mapping[str, Way],
    sizes: Sizes,
    *,
    skip_bad_images: bool = False,
) -> list[str]:
    """Write `<root>/<set>/{0_real,1_fake}/<photo>_<tile>.png`; images that are there already are kept.

    A photograph is decoded once and altered as a whole, then cut into tiles: real and fake pass through the same
    roundings and the same file format, and where a tile begins says nothing about the grid of a generator.

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
    names, side = set_names(part, list(generators)), sizes.side(part)
    skipped: list[str] = []
    for photo, image in usable_photos(photos, side, part, skipped, skip_bad_images=skip_bad_images):
        fake = cache(partial(_fake, generators, image))
        files = [f"{photo.name}_{index}.png" for index in range(len(cut_tiles(image, side, sizes.most_tiles)))]
        for name, kind in names.items():
            folders = [root / name / LABEL_FOLDERS[label] for label in (0, 1)]
            if all((folder / file).exists() for folder in folders for file in files):
                continue
            for folder, whole in zip(folders, make_pair(kind, image, fake), strict=True):
                for file, tile in zip(files, cut_tiles(whole, side, sizes.most_tiles), strict=True):
                    if not (folder / file).exists():
                        save_picture(folder / file, tile)
    return skipped


def _fake(generators: Mapping[str, Way], image: np.ndarray, name: str) -> np.ndarray:
    return generators[name](image)
