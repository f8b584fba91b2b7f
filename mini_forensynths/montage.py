"""A picture of the data set: a real beside the fake of every generator, whole, in detail, and what differs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from images.decoding import decode_image
from images.sets import LABEL_FOLDERS
from mini_forensynths.sets import set_names
from utils.pictures import picture_grid, save_grid

_PHOTOS = 2
_DETAIL = 32  # side, pixels
_GAIN = 8


def draw_montage(root: Path, path: Path, part: str, generators: Sequence[str]) -> None:
    """Draw images of `<root>/<set>/`: columns are generators, rows the image, its liveliest detail, and fake less real.

    Args:
        root: Folder of the data set.
        path: `.png` to write.
        part: One of `PARTS`; all but test have the training generators only.
        generators: Names of those in the data set.
    """
    shown = [name for name, kind in set_names(part, generators).items() if kind in generators]
    files = _different_photos(root / shown[0] / LABEL_FOLDERS[0])
    rows: list[list[np.ndarray]] = []
    for file in files:
        real = decode_image(root / shown[0] / LABEL_FOLDERS[0] / file)
        top, left = _liveliest(real)
        images = [real, *(decode_image(root / name / LABEL_FOLDERS[1] / file) for name in shown)]
        differences = [128.0 + _GAIN * (image.astype(np.float64) - real) for image in images]
        rows += [
            images,
            [image[top : top + _DETAIL, left : left + _DETAIL] for image in images],
            [np.clip(difference, 0, 255).astype(np.uint8) for difference in differences],
        ]
    figure = picture_grid(
        rows,
        title=f"Real and fakes: the image, a detail of {_DETAIL} x {_DETAIL} pixels, fake less real (x {_GAIN}, "
        "grey: equal)",
        heads=["real", *(name.rpartition("/")[2] for name in shown)],
    )
    save_grid(figure, path.with_suffix(""), formats=("png",))


def _different_photos(folder: Path) -> list[str]:
    """The first tiles of so many different photographs, evenly chosen."""
    firsts = sorted(path.name for path in folder.iterdir() if path.stem.endswith("_0"))
    places = np.unique(np.linspace(0, len(firsts) - 1, min(_PHOTOS, len(firsts))).round().astype(int))
    return [firsts[index] for index in places]


def _liveliest(image: np.ndarray) -> tuple[int, int]:
    """Corner of the window of the largest variance."""
    side = min(_DETAIL, *image.shape[:2])
    corners = [
        (top, left)
        for top in range(0, image.shape[0] - side + 1, max(1, side // 2))
        for left in range(0, image.shape[1] - side + 1, max(1, side // 2))
    ]
    return max(corners, key=lambda c: float(image[c[0] : c[0] + side, c[1] : c[1] + side].std(axis=(0, 1)).sum()))
