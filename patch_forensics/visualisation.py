"""The images that a patch classifier is surest and least sure of: raw maps, and pictures of them drawn from the files.

Below `vis/{fakes,reals}/{hardest,easiest}/`, as published: `preds.txt`, `NNN_heatmap_1.npz`, `NNN_orig.png`,
`NNN_patch_1.png`, `heatmap_avg.{npz,png}` and `+lightbox.html`; beside them `NNN_contour.png`, `NNN_readable.png` and
a sheet of all.
The average maps of the easiest fakes and reals together are `vis/telling_places.png`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from images.decoding import Crop, decode_image
from images.distortions import resize
from images.sets import FAKE, REAL, ImageSet
from patch_forensics.averages import order_of
from patch_forensics.overlays import (
    NOTEBOOK_SIDE,
    coloured,
    combined_picture,
    notebook_overlay,
    published_overlay,
    scaled,
)
from patch_forensics.patch_page import write_lightbox
from utils.errors import UserError
from utils.figures import save_picture
from utils.files import read_npz, write_npz, write_text
from utils.heatmaps import LOOKS, probability_heatmap
from utils.pictures import ContactSheets

_FOLDERS = {FAKE: "fakes", REAL: "reals"}
_AVERAGE_SIGMA, _AVERAGE_SIDE = 2.0, 256
_GROUPS = ("hardest", "easiest")


@dataclass(frozen=True)
class Prediction:
    """A line of `preds.txt`: place among the images of its class, p(class 0) and p(class 1), path."""

    index: int
    p0: float
    p1: float
    path: str

    def __str__(self) -> str:
        return f"{self.index},{self.p0:.6f},{self.p1:.6f},{self.path}"

    @classmethod
    def read(cls, file: Path) -> list[Prediction]:
        """The lines of a file.

        Raises:
            UserError: It is damaged.
        """
        try:
            lines = [line.split(",", 3) for line in file.read_text(errors="surrogateescape").split("\n") if line]
            return [cls(int(index), float(p0), float(p1), path) for index, p0, p1, path in lines]
        except ValueError as error:
            raise UserError(f"{file} is damaged: make it anew with --force_redo") from error


def write_telling_images(
    folder: Path,
    images: ImageSet,
    scores: Mapping[int, float],
    heat_of: Callable[[int], np.ndarray],
    fake_class: int,
    count: int,
) -> None:
    """Write the numbers of the hardest and easiest images of both kinds.

    Args:
        folder: What is there is replaced.
        images: All images.
        scores: p(class 1) by position; images that could not be decoded are missing.
        heat_of: From a position to p(class 1) of patches (h, w).
        fake_class: Which class is fake.
        count: So many of each.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for label, name in _FOLDERS.items():
        mine = [position for position, item in enumerate(images.items) if item.label == label]
        seen = [position for position in mine if position in scores]
        class_id = fake_class if label == FAKE else 1 - fake_class
        of_class = [scores[position] if class_id == 1 else 1 - scores[position] for position in seen]
        for group, order in order_of(of_class, count).items():
            chosen = [seen[index] for index in order]
            lines = []
            for rank, position in enumerate(chosen, start=1):
                p1 = scores[position]
                path = str(images.items[position].path).replace("\n", " ")
                lines.append(f"{Prediction(mine.index(position), 1 - p1, p1, path)}\n")
                write_npz(folder / name / group / f"{rank:03d}_heatmap_1.npz", heatmap=heat_of(position))
            write_text(folder / name / group / "preds.txt", "".join(lines))
            # of images of several sizes there is no average
            if len({heat_of(position).shape for position in chosen}) == 1:
                average = np.mean([heat_of(position) for position in chosen], axis=0)
                write_npz(folder / name / group / "heatmap_avg.npz", heatmap=average)


def draw_telling_images(folder: Path, images: ImageSet, transform: Crop, fake_class: int) -> list[Path]:
    """Draw from the files what `write_telling_images` left."""
    drawn = []
    for label, name in _FOLDERS.items():
        items = images.with_label(label).items
        for group in _GROUPS:
            where = folder / name / group
            title = f"{group} {name}: the image, p(fake) of its patches, as published, and the published contour"
            legend = ("p(fake) 0", LOOKS["signed"].legend()[1], "1")
            sheets = ContactSheets(where / "sheet", panels=4, columns=1, rows=6, title=title, legend=legend)
            shape: tuple[int, ...] = ()
            pictures = []
            for rank, prediction in enumerate(Prediction.read(where / "preds.txt"), start=1):
                heat = read_npz(where / f"{rank:03d}_heatmap_1.npz")["heatmap"]
                path = items[prediction.index].path
                image = transform(decode_image(path), seed=0, name=items[prediction.index].name)
                shape = image.shape
                p_real = prediction.p1 if fake_class == 0 else prediction.p0
                right = (p_real > 0.5) == (label == REAL)
                small = resize(image, NOTEBOOK_SIDE, NOTEBOOK_SIDE, "lanczos")
                p_fake = heat if fake_class == 1 else 1 - heat
                readable = probability_heatmap(p_fake, image.shape[:2])
                shown = {
                    "orig": image,
                    "patch_1": published_overlay(image, heat, p_real, right=right),
                    "readable": LOOKS["signed"].overlay(image, readable),
                    "contour": notebook_overlay(small, heat, above=label == fake_class),
                }
                for kind, picture in shown.items():
                    pictures.append(where / f"{rank:03d}_{kind}.png")
                    save_picture(pictures[-1], picture)
                verdict = f"{'rightly' if right else 'wrongly'} called {'real' if p_real > 0.5 else 'fake'}"
                sheets.add(
                    [shown[k] for k in ("orig", "readable", "patch_1", "contour")],
                    [path.name, f"p(fake) {1 - p_real:.3f}, {verdict}"],
                )
            average = where / "heatmap_avg.npz"
            if average.exists():
                pictures.append(where / "heatmap_avg.png")
                save_picture(pictures[-1], coloured(scaled(read_npz(average)["heatmap"], 0.0), shape))
            names = [path.name for path in pictures]
            drawn += [*sheets.finish(), *pictures, write_lightbox(where / "+lightbox.html", names, f"{group} {name}")]
    return [*drawn, *_draw_both(folder, fake_class)]


def _draw_both(folder: Path, fake_class: int) -> list[Path]:
    """Where the easiest images of both kinds give themselves away, if all have one size."""
    files = [folder / name / "easiest" / "heatmap_avg.npz" for name in _FOLDERS.values()]
    maps = [read_npz(file)["heatmap"] for file in files if file.exists()]
    if len({heat.shape for heat in maps}) != 1 or len(maps) != len(files):
        return []
    fakes, reals = (heat if fake_class == 0 else 1 - heat for heat in maps)
    both = combined_picture(fakes, reals, _AVERAGE_SIGMA)
    scale = max(1, _AVERAGE_SIDE // min(both.shape[:2]))
    path = folder / "telling_places.png"
    save_picture(path, both.repeat(scale, axis=0).repeat(scale, axis=1))
    return [path]
