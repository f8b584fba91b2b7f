"""The patches that give away their class most: of a whole set in one pass, cut out, listed and drawn.

Below `patches_top<n>/` of a data set's results, as published: `{reals,fakes}_easiest.npz`, `..._files.txt` and
`..._grid.jpg`, weakest first; and `top_patches.csv`, strongest first, with sheets of the strongest.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from scipy.special import expit

from images.decoding import decode_image
from images.sets import FAKE, LABEL_NAMES, REAL, ImageSet
from passes.analysis import Subject
from passes.one_pass import PassBatch, PassReport, State
from passes.shared_forward import SharedForward, finite
from patch_forensics.geometry import check_sizes, geometries
from patch_forensics.options import TopPatchOptions
from patch_forensics.trained import OfTrained, run_tested
from utils.errors import UserError
from utils.files import atomic_path, read_npz, write_npz, write_text
from utils.pictures import ContactSheets
from utils.tables import read_rows, write_rows

SCRIPT = "extract_top_patches.py"
PREFIXES = {REAL: "reals_easiest", FAKE: "fakes_easiest"}
"""Published names, by label."""
_WHERE = ("position", "row", "column")
_GRID_SIDE = 8192  # pixels; a larger grid of patches leaves out the weakest
_SHOWN = 24
_YELLOW = (255, 255, 0)


class TopPatchCollector:
    """The `count` patches with the highest logit of their own class, for each class; memory does not grow with images.

    Ties are broken at random, by the seed and the place of the image, so that neither batches nor processes matter.

    Args:
        forward: Forward passes of the classifier.
        images: The images of the pass.
        count: So many of each class.
        unique: At most one of each image.
        seed: Of the order of ties.
    """

    def __init__(self, forward: SharedForward, images: ImageSet, count: int, *, unique: bool, seed: int) -> None:
        self._forward, self.images, self._count, self._unique, self._seed = forward, images, count, unique, seed
        self._best: State = {"logit": np.zeros(0, np.float32), "tie": np.zeros(0)}
        self._best |= {name: np.zeros(0, np.int64) for name in ("label", *_WHERE)}
        forward.request("rgb", output=True)

    def best(self, label: int) -> State:
        """`logit`, `tie`, `position` (in the set), `row` and `column` of each patch of a label, weakest first."""
        mine = self._best["label"] == label
        return {name: array[mine] for name, array in self._best.items()}

    def update(self, batch: PassBatch) -> None:
        """Add a batch.

        Raises:
            UserError: A logit is not a number; names the image.
        """
        logits = finite(self._forward.output(batch), batch, "the classifier's output")[:, 0].cpu().numpy()
        for item, position, heat in zip(batch.items, batch.positions, logits, strict=True):
            if item.label not in PREFIXES:
                continue
            rows, columns = np.divmod(np.arange(heat.size), heat.shape[1])
            batch_best = {
                "logit": (heat if item.label == FAKE else -heat).ravel(),
                "tie": np.random.default_rng([self._seed, position]).random(heat.size),
                "label": np.full(heat.size, item.label),
                "position": np.full(heat.size, position),
                "row": rows,
                "column": columns,
            }
            self.merge(_strongest(batch_best, 1 if self._unique else self._count))

    def state(self) -> State:
        """The arrays of `best`, both labels together."""
        return {name: array.copy() for name, array in self._best.items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        self._best = dict(state)

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        joined = {name: np.concatenate([array, state[name]]) for name, array in self._best.items()}
        self._best = _strongest(joined, self._count)


def _strongest(patches: State, count: int) -> State:
    """The `count` strongest of each label, weakest first."""
    order = np.lexsort((patches["tie"], patches["logit"]))
    kept = np.concatenate([order[patches["label"][order] == label][-count:] for label in PREFIXES])
    return {name: array[kept] for name, array in patches.items()}


@dataclass(frozen=True)
class TopPatch:
    """A row of `top_patches.csv`.

    Attributes:
        value: Softmax of the image's own class.
        row, column: In the grid of patches.
        top, bottom, left, right: Pixels that it sees, first and last + 1, of the image as the classifier sees it.
    """

    label: str
    rank: int
    path: str
    value: float
    row: int
    column: int
    top: int
    bottom: int
    left: int
    right: int


class TopPatches(OfTrained[TopPatchOptions]):
    """The most predictive patches of each class."""

    name = "top_patches"
    computation = 2

    def __init__(self, subject: Subject, options: TopPatchOptions) -> None:
        # results of several numbers lie beside each other, and so do their states
        super().__init__(replace(subject, tag=f"{subject.tag}-top{options.topn}"), options)
        if not self.trained.is_patch:
            raise UserError(
                f"{self.trained.network} classifies whole images and has no patches: use a classifier of patches"
            )
        self._geometry_of = geometries(subject.detector.model)
        check_sizes(self._geometry_of, self.images, subject.reading)

    @property
    def folder(self) -> Path:
        return super().folder / f"patches_top{self.options.topn}"

    @property
    def outputs(self) -> Sequence[Path]:
        arrays = [self.folder / f"{prefix}.npz" for prefix in PREFIXES.values()]
        return [self.folder / "top_patches.csv", *arrays]

    def facts(self) -> dict[str, object]:
        return {**super().facts(), "topn": self.options.topn, "unique": self.options.unique}

    def collector(self, forward: SharedForward, images: ImageSet) -> TopPatchCollector:
        options = self.options
        return TopPatchCollector(forward, images, options.topn, unique=options.unique, seed=self.subject.run.seed)

    def write(self, collector: TopPatchCollector, report: PassReport) -> dict[str, object]:
        table: list[TopPatch] = []
        for label in PREFIXES:
            best = collector.best(label)
            if not len(best["logit"]):
                raise UserError(f"no {LABEL_NAMES[label]} images could be used: give others")
            patches, rows = self._cut(collector.images, label, best)
            write_npz(
                self.folder / f"{PREFIXES[label]}.npz",
                patch=patches,
                pos=np.stack([best["row"], best["column"]], axis=1),
                value=np.array([row.value for row in rows], dtype=np.float32),
                outsize=self._outsize,
                rf=np.array(patches.shape[-1]),
                finesize=np.array(self.trained.load_size),
                which_model_netD=np.array(self.trained.network),
            )
            write_text(self.folder / f"{PREFIXES[label]}_files.txt", "".join(f"{row.path}\n" for row in rows))
            table += reversed(rows)
        write_rows(self.folder / "top_patches.csv", table, TopPatch)
        return {}

    def _cut(self, images: ImageSet, label: int, best: State) -> tuple[np.ndarray, list[TopPatch]]:
        """Patches (k, 3, field, field) as the classifier sees them, and their rows; each image is decoded once."""
        patches: dict[int, np.ndarray] = {}
        rows: dict[int, TopPatch] = {}
        last, count = -1, len(best["logit"])
        values = expit(best["logit"].astype(np.float64)).tolist()
        for index in np.argsort(best["position"], kind="stable").tolist():
            position, row, column = (int(best[name][index]) for name in _WHERE)
            item = images.items[position]
            if position != last:
                image, last = self._shown(item.path, item.name), position
                geometry = self._geometry_of(*image.shape[:2])
                pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
                seen = self.subject.detector.inputs(pixels)[0].permute(1, 2, 0).cpu().numpy()
            patches[index] = geometry.cut(seen, row, column, 0.0).transpose(2, 0, 1)
            vertical, horizontal = geometry.span(row, column)
            ends = (vertical.start, vertical.stop, horizontal.start, horizontal.stop)
            where = (str(item.path), values[index], row, column)
            rows[index] = TopPatch(LABEL_NAMES[label], count - index, *where, *ends)
        self._outsize = np.array([len(geometry.rows), len(geometry.columns)])
        return np.stack([patches[index] for index in range(count)]), [rows[index] for index in range(count)]

    def _shown(self, path: Path | str, name: str) -> np.ndarray:
        """The image as it is read, (H, W, 3)."""
        image = self.subject.crop(decode_image(path), seed=self.subject.run.seed, name=name)
        return np.ascontiguousarray(image)

    def draw(self) -> list[Path]:
        drawn = []
        table = read_patches(self.folder)
        for label, prefix in PREFIXES.items():
            patches = pixels_of(read_npz(self.folder / f"{prefix}.npz")["patch"])
            drawn.append(self.folder / f"{prefix}_grid.jpg")
            save_tiles(drawn[-1], patches)
            title = f"strongest patches of {LABEL_NAMES[label]} images"
            sheets = ContactSheets(self.folder / f"{prefix}_sheet", title=title, columns=4, rows=6)
            for row, patch in zip(table[label][:_SHOWN], patches[::-1], strict=False):
                outlined = self._shown(row.path, row.path)
                cv2.rectangle(outlined, (row.left, row.top), (row.right - 1, row.bottom - 1), _YELLOW, 3)
                sheets.add([patch, outlined], [Path(row.path).name, f"p({row.label}) {row.value:.4f}"])
            drawn += sheets.finish()
        return drawn

    def messages(self) -> list[str]:
        lines = []
        for label, mine in read_patches(self.folder).items():
            images = len({row.path for row in mine})
            lines.append(
                f"{self.gan_name}: {len(mine)} {LABEL_NAMES[label]} patches of {images} images, "
                f"p({LABEL_NAMES[label]}) {mine[-1].value:.4f} to {mine[0].value:.4f}"
            )
        return lines


find_top_patches = partial(run_tested, TopPatches)


def read_patches(folder: Path) -> dict[int, list[TopPatch]]:
    """The rows of `top_patches.csv` by label, strongest first.

    Raises:
        UserError: It is missing or damaged.
    """
    rows = read_rows(folder / "top_patches.csv", TopPatch, made_by=SCRIPT)
    return {label: [row for row in rows if row.label == LABEL_NAMES[label]] for label in PREFIXES}


def pixels_of(patches: np.ndarray) -> np.ndarray:
    """Patches (k, 3, H, W) of -1..1 as pictures (k, H, W, 3) uint8."""
    return np.rint(patches.transpose(0, 2, 3, 1) * 127.5 + 127.5).clip(0, 255).astype(np.uint8)


def tiled(pictures: np.ndarray) -> np.ndarray:
    """Pictures (k, H, W, 3) uint8 in rows of ceil(sqrt(k)) without gaps, white where there are none left."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures.shape[1:3]
    cells = np.full((rows * columns, height, width, 3), 255, dtype=np.uint8)
    cells[: len(pictures)] = pictures
    return cells.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def save_tiles(path: Path, pictures: np.ndarray) -> None:
    """Write `tiled` as JPEG or PNG, by the suffix; of very many pictures the last."""
    kept = max(1, _GRID_SIDE // pictures.shape[1]) ** 2
    with atomic_path(path) as temporary:
        Image.fromarray(tiled(pictures[-kept:])).save(temporary, quality=95)
