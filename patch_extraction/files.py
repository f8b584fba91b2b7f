"""Files of LRP-max patches: pictures, a table for each map, and the list of maps with the record of all.

Pictures are many and small, and bringing each to disk on its own takes several times as long as making it. So they are
written without that, and the record of the list holds a digest of all files: what a crash of the machine may have lost
is found missing, and made again.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fmap_ranking.names import FeatureMap, parse_key
from images.sets import ImageItem
from patch_extraction.patches import Made, Patch
from utils.errors import UserError
from utils.figures import png_bytes
from utils.files import safe_join, sha256_file, sha256_text, write_bytes
from utils.layout import Layout
from utils.provenance import describes, read_record, remove_with_record
from utils.tables import read_rows, write_rows

MAKE = "extract_max_activation_patches.py"
_LONGEST_SIDE = 256
_MAP_FOLDER = re.compile(r"[A-Za-z0-9_.]+\.#\d+", re.ASCII)


@dataclass(frozen=True)
class _Listed:
    """A row of the list of maps."""

    position: int
    key: str
    omega: float | None
    patches: int


@dataclass(frozen=True)
class PatchFiles:
    """The patches of a generator's fakes.

    Attributes:
        root: Folder of all maps.
        tag: Stands for the detector's training in file names.
    """

    root: Path
    tag: str

    @classmethod
    def of(cls, layout: Layout, gan_name: str) -> PatchFiles:
        """Those of a detector and a generator."""
        return cls(layout.patches(gan_name), layout.tag)

    @property
    def index(self) -> Path:
        """List of the maps, in the order of their rank; its record stands for all files."""
        return self.root / "maps.csv"

    def table(self, fmap: FeatureMap) -> Path:
        """Table of a map's patches; it is written after the pictures, so a folder without it is not finished."""
        return self.root / fmap.folder_name / "patches.csv"

    def picture(self, fmap: FeatureMap, rank: int) -> Path:
        """A patch."""
        return self.root / fmap.folder_name / f"{rank}.png"

    def image(self, name: str) -> Path:
        """A whole image, shared by all maps."""
        return safe_join(self.root / "images", f"{name}.png")

    def write_patch(self, fmap: FeatureMap, rank: int, picture: np.ndarray) -> int:
        """Write a patch (h, w, 3) uint8; its CRC-32."""
        return _write(self.picture(fmap, rank), picture)

    def write_image(self, item: ImageItem, image: np.ndarray) -> int:
        """Write an image (H, W, 3) uint8, scaled down if a side is longer than 256 pixels; its CRC-32."""
        picture = Image.fromarray(image)
        picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
        return _write(self.image(item.name), np.asarray(picture))

    def remove_tables(self) -> None:
        """Take away the list and the tables of an earlier run, before its pictures are overwritten."""
        remove_with_record(self.index)
        for path in self._tables():
            path.unlink(missing_ok=True)

    def write_tables(self, maps: Sequence[FeatureMap], omega: Sequence[float | None], patches: Sequence[Made]) -> str:
        """Check the pictures, write all tables, and remove what earlier runs have left; the digest of all.

        Raises:
            UserError: A picture is not there as it was written.
        """
        of_map: list[list[Patch]] = [[] for _ in maps]
        kept: dict[Path, int] = {}
        for one in patches:
            of_map[one.wanted.row].append(one.patch)
            kept[self.picture(maps[one.wanted.row], one.wanted.rank)] = one.patch_checksum
            kept[self.image(one.wanted.name)] = one.image_checksum
        for path, checksum in kept.items():
            if not path.is_file() or zlib.crc32(path.read_bytes()) != checksum:
                raise UserError(f"{path} was lost after it was written: run again without --resume")
        for fmap, rows in zip(maps, of_map, strict=True):
            write_rows(self.table(fmap), rows, Patch, durable=False)
        self._remove_others({*kept, *map(self.table, maps)})
        listed = [
            _Listed(position, fmap.key, value, len(rows))
            for position, (fmap, value, rows) in enumerate(zip(maps, omega, of_map, strict=True), start=1)
        ]
        write_rows(self.index, listed, _Listed)
        return self.digest()

    def digest(self) -> str:
        """SHA-256 over names and contents of all tables and pictures but the list."""
        return sha256_text(
            f"{path.relative_to(self.root).as_posix()} {sha256_file(path)}"
            for path in sorted([*self._tables(), *self._pictures()])
        )

    def read(self, count: int | None = None, weights: str | None = None) -> list[MapPatches]:
        """The first `count` maps of the list, or all.

        Args:
            count: Number of maps.
            weights: SHA-256 of the checkpoint that the patches should be of; without it any will do.

        Raises:
            UserError: No patches, those of another detector, fewer maps than asked for, or a damaged table.
        """
        listed = read_rows(self.index, _Listed, made_by=MAKE)
        record = read_record(self.index)
        if not describes(record, self.index):
            raise UserError(f"{self.index} is not what its record describes: make it anew with {MAKE}")
        tag, made_with = record.get("facts", {}).get("tag"), record.get("inputs", {}).get("weights")
        if tag != self.tag:
            raise UserError(f"the patches in {self.root} are of --blur_jpg {tag}, not {self.tag}: run {MAKE} again")
        if weights not in (None, made_with):
            raise UserError(f"the patches in {self.root} were made with another checkpoint: run {MAKE} again")
        if count is not None and count > len(listed):
            raise UserError(
                f"{self.index} lists {len(listed)} feature maps, fewer than {count}: "
                f"choose fewer, or run {MAKE} with --topk {count}"
            )
        return [self._read_map(entry) for entry in listed[:count]]

    def _read_map(self, entry: _Listed) -> MapPatches:
        try:
            fmap = parse_key(entry.key)
        except ValueError as error:
            raise UserError(f"{self.index}: {error}: make it anew with {MAKE}") from error
        patches = tuple(read_rows(self.table(fmap), Patch, made_by=MAKE))
        return MapPatches(self, entry.position, fmap, entry.omega, patches)

    def _map_folders(self) -> Iterator[Path]:
        yield from (path for path in sorted(self.root.glob("*.#*")) if _MAP_FOLDER.fullmatch(path.name))

    def _tables(self) -> list[Path]:
        return [path for folder in self._map_folders() if (path := folder / "patches.csv").is_file()]

    def _pictures(self) -> list[Path]:
        patches = [path for folder in self._map_folders() for path in folder.glob("*.png") if path.stem.isdecimal()]
        return [*patches, *(path for path in (self.root / "images").rglob("*.png") if path.is_file())]

    def _remove_others(self, kept: Iterable[Path]) -> None:
        """Remove tables and pictures but these, and folders that are empty then."""
        others = {*self._tables(), *self._pictures()} - {*kept}
        for path in others:
            path.unlink()
        for folder in sorted({folder for path in others for folder in path.parents}, reverse=True):
            if folder != self.root and folder.is_relative_to(self.root) and not any(folder.iterdir()):
                folder.rmdir()


@dataclass(frozen=True)
class MapPatches:
    """A feature map with its patches; `position` is its place in the list of maps, from 1."""

    files: PatchFiles
    position: int
    fmap: FeatureMap
    omega: float | None
    patches: tuple[Patch, ...]

    def picture(self, patch: Patch) -> Path:
        """The picture of a patch."""
        return self.files.picture(self.fmap, patch.rank)

    def image(self, patch: Patch) -> Path:
        """The whole image that a patch is from, scaled down if it is large."""
        return self.files.image(patch.path)


def _write(path: Path, picture: np.ndarray) -> int:
    content = png_bytes(picture)
    write_bytes(path, content, durable=False)
    return zlib.crc32(content)
