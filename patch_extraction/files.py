"""Files of LRP-max patches: pictures, a table for each map, and the list of maps."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fmap_ranking.names import FeatureMap, parse_key
from images.sets import ImageItem
from patch_extraction.patches import NUMBERS, Numbers, Wanted
from utils.errors import UserError
from utils.figures import save_picture
from utils.files import safe_join, write_csv

MAKE = "extract_max_activation_patches.py"
_BOX = NUMBERS[:4]
_REST = NUMBERS[4:]
# Relevance starts in the tensor that is propagated, not in the raw one that images are ranked by.
START_TENSOR = "convolution with batch norm"
HEADER = ("rank", "path", "max_act", *_BOX, *_REST, "start_tensor", "patch", "image")
INDEX_HEADER = ("position", "key", "omega", "patches")
_LONGEST_SIDE = 256


@dataclass(frozen=True)
class Patch:
    """One patch as the table has it.

    Attributes:
        rank: 1 for the most activating image.
        name: The image, by its path below the data set folder.
        max_act: Maximum of the raw output of the convolution.
        numbers: Box, start and relevance.
        picture: The patch.
        image: The whole image, scaled down if it is large.
    """

    rank: int
    name: str
    max_act: float
    numbers: Numbers
    picture: Path
    image: Path


@dataclass(frozen=True)
class MapPatches:
    """A feature map with its patches; `position` is its place in the list of maps, from 1."""

    position: int
    fmap: FeatureMap
    omega: float | None
    patches: tuple[Patch, ...]


@dataclass(frozen=True)
class PatchFiles:
    """Where the patches of a generator's fakes lie.

    Attributes:
        output_dir: Folder of all results.
        arch: Canonical name of the architecture.
        gan_name: The generator.
    """

    output_dir: Path
    arch: str
    gan_name: str

    @property
    def root(self) -> Path:
        """Folder of all maps."""
        return self.output_dir / "patches" / self.arch / self.gan_name / "fake"

    @property
    def index(self) -> Path:
        """List of the maps, in the order of their rank."""
        return self.root / "maps.csv"

    @property
    def state(self) -> Path:
        """Saved state of an interrupted run."""
        return self.root / ".state.npz"

    def folder(self, fmap: FeatureMap) -> Path:
        """Folder of a map."""
        return self.root / fmap.folder_name

    def table(self, fmap: FeatureMap) -> Path:
        """Table of a map's patches; it is written last, so a folder without it is not finished."""
        return self.folder(fmap) / "patches.csv"

    def picture(self, fmap: FeatureMap, rank: int) -> Path:
        """A patch."""
        return self.folder(fmap) / f"{rank}.png"

    def image(self, name: str) -> Path:
        """A whole image, shared by all maps."""
        return safe_join(self.root / "images", f"{name}.png")

    def write_patch(self, fmap: FeatureMap, rank: int, picture: np.ndarray) -> None:
        """Write a patch (h, w, 3) uint8."""
        save_picture(self.picture(fmap, rank), picture)

    def write_image(self, item: ImageItem, image: np.ndarray) -> None:
        """Write an image (H, W, 3) uint8, scaled down if a side is longer than 256 pixels."""
        picture = Image.fromarray(image)
        picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
        save_picture(self.image(item.name), np.asarray(picture))

    def remove_tables(self, maps: Sequence[FeatureMap]) -> None:
        """Take away the list and the tables of an earlier run, before its pictures are overwritten."""
        for path in (self.index, *map(self.table, maps)):
            path.unlink(missing_ok=True)

    def write_tables(
        self,
        maps: Sequence[FeatureMap],
        omega: Sequence[float | None],
        patches: Sequence[Sequence[tuple[Wanted, Numbers]]],
    ) -> None:
        """Write the table of each map, remove pictures of an earlier, longer run, and write the list of maps."""
        for fmap, of_map in zip(maps, patches, strict=True):
            self._remove_others(fmap, {wanted.rank for wanted, _ in of_map})
            rows = [
                (
                    wanted.rank,
                    wanted.name,
                    wanted.max_act,
                    *astuple(numbers),
                    START_TENSOR,
                    f"{wanted.rank}.png",
                    f"../images/{wanted.name}.png",
                )
                for wanted, numbers in of_map
            ]
            write_csv(self.table(fmap), HEADER, rows)
        write_csv(
            self.index,
            INDEX_HEADER,
            [
                (position, fmap.key, "" if value is None else value, len(of_map))
                for position, (fmap, value, of_map) in enumerate(zip(maps, omega, patches, strict=True), start=1)
            ],
        )

    def _remove_others(self, fmap: FeatureMap, ranks: set[int]) -> None:
        for path in sorted(self.folder(fmap).glob("*.png")):
            if path.stem.isdecimal() and int(path.stem) not in ranks:
                path.unlink()

    def read(self, count: int | None = None) -> list[MapPatches]:
        """The first `count` maps of the list, or all.

        Raises:
            UserError: No patches, fewer maps than asked for, or a damaged table.
        """
        if not self.index.exists():
            raise UserError(f"no patches at {self.index}: make them with {MAKE}")
        rows = _read_table(self.index, INDEX_HEADER)
        if count is not None and count > len(rows):
            raise UserError(
                f"{self.index} lists {len(rows)} feature maps, fewer than {count}: "
                f"choose fewer, or run {MAKE} with --topk {count}"
            )
        return [self._read_map(position, row) for position, row in enumerate(rows[:count], start=1)]

    def _read_map(self, position: int, row: dict[str, str]) -> MapPatches:
        try:
            fmap = parse_key(row["key"])
            omega = float(row["omega"]) if row["omega"] else None
        except ValueError as error:
            raise UserError(f"{self.index}, line {position + 1}: {error}: make it anew with {MAKE}") from error
        table = self.table(fmap)
        patches = []
        for line, values in enumerate(_read_table(table, HEADER), start=2):
            try:
                rank = int(values["rank"])
                # Fields have their types from `Numbers`, as text here.
                numbers = Numbers(**{name: _number(values[name]) for name in NUMBERS})  # type: ignore[arg-type]
                max_act = float(values["max_act"])
            except ValueError as error:
                raise UserError(f"{table}, line {line}: {error}: make it anew with {MAKE}") from error
            place = self.picture(fmap, rank), self.image(values["path"])
            patches.append(Patch(rank, values["path"], max_act, numbers, *place))
        return MapPatches(position, fmap, omega, tuple(patches))


def _number(text: str) -> int | float:
    return int(text) if text.lstrip("-").isdecimal() else float(text)


def _read_table(path: Path, header: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}: make it with {MAKE}") from None
    except (OSError, csv.Error) as error:
        raise UserError(f"cannot read {path} ({error}): make it anew with {MAKE}") from error
    if tuple(reader.fieldnames or ()) != tuple(header) or any(None in row or None in row.values() for row in rows):
        raise UserError(f"{path} does not have the columns {','.join(header)}: make it anew with {MAKE}")
    return rows
