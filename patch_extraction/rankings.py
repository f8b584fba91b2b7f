"""Activation rankings: which images excite a feature map most; their files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fmap_ranking.names import FeatureMap, parse_key
from utils.errors import UserError
from utils.files import read_npz, write_csv, write_npz, write_provenance

MAKE = "get_max_activation_rankings.py"
HEADER = ("name", "max_act")


@dataclass(frozen=True)
class ActivationRankingFiles:
    """Where the activation rankings of a generator lie.

    Attributes:
        output_dir: Folder of all results.
        arch: Canonical name of the architecture.
        gan_name: The generator.
        tag: Augmentation tag of the detector.
    """

    output_dir: Path
    arch: str
    gan_name: str
    tag: str

    @property
    def folder(self) -> Path:
        """Folder of this generator."""
        return self.output_dir / "activation_rankings" / self.arch / f"{self.gan_name}_{self.tag}"

    @property
    def arrays(self) -> Path:
        """All maps in one file."""
        return self.folder / "max_activations.npz"

    @property
    def state(self) -> Path:
        """Saved state of an interrupted run."""
        return self.folder / ".state.npz"

    def table(self, fmap: FeatureMap) -> Path:
        """The ranking of one map, in the published format."""
        return self.folder / f"{fmap.key}.csv"


@dataclass(frozen=True)
class Source:
    """What rankings were made from: SHA-256 of the checkpoint, data set folder, crop."""

    weights: str = ""
    dataset_dir: str = ""
    crop: str = "none"


@dataclass(frozen=True, eq=False)
class ActivationRankings:
    """For each map, images in descending order of its value; ties in the order of the image set.

    Attributes:
        maps: M feature maps.
        names: Images, by their path below the data set folder.
        images: (M, n) int32, indices into `names`.
        values: (M, n) float32, maximum of the raw output of the convolution.
        complete: Whether n is all images that were looked at.
        source: What they were made from; the names are relative to its data set folder.
    """

    maps: tuple[FeatureMap, ...]
    names: tuple[str, ...]
    images: np.ndarray
    values: np.ndarray
    complete: bool = False
    source: Source = Source()

    @classmethod
    def of_all(
        cls,
        maps: Sequence[FeatureMap],
        names: Sequence[str],
        values: np.ndarray,
        source: Source | None = None,
    ) -> ActivationRankings:
        """Rank all images, from values (images, maps)."""
        order = np.argsort(-values, axis=0, kind="stable")
        ranked = np.take_along_axis(values, order, axis=0)
        return cls(tuple(maps), tuple(names), order.T.astype(np.int32), ranked.T, True, source or Source())

    def of(self, fmap: FeatureMap, count: int | None = None) -> list[tuple[str, float]]:
        """(image, value) of one map, the first `count` or all.

        Raises:
            KeyError: There is no ranking of this map.
        """
        row = self._rows[fmap]
        return [
            (self.names[image], float(value))
            for image, value in zip(self.images[row, :count], self.values[row, :count], strict=True)
        ]

    @cached_property
    def _rows(self) -> dict[FeatureMap, int]:
        return {fmap: row for row, fmap in enumerate(self.maps)}

    def write(self, path: Path) -> None:
        """Write one compact file: `max_act` (images, maps) of all images, or (n, maps) with `image` (n, maps)."""
        arrays: dict[str, np.ndarray] = {
            "keys": np.array([fmap.key for fmap in self.maps]),
            "names": np.array(self.names),
            **{name: np.array(value) for name, value in asdict(self.source).items()},
        }
        if self.complete:
            values = np.empty(self.values.shape[::-1], dtype=np.float32)
            np.put_along_axis(values, self.images.T, self.values.T, axis=0)
            arrays["max_act"] = values
        else:
            arrays["max_act"], arrays["image"] = self.values.T, self.images.T
        write_npz(path, **arrays)

    @classmethod
    def read(cls, path: Path) -> ActivationRankings:
        """Read what `write` wrote.

        Raises:
            UserError: Missing, damaged, or of another kind.
        """
        if not path.exists():
            raise UserError(f"no activation rankings at {path}: make them with {MAKE}")
        arrays = read_npz(path)
        try:
            maps = tuple(parse_key(key) for key in arrays["keys"].tolist())
            names = tuple(map(str, arrays["names"].tolist()))
            values = arrays["max_act"].astype(np.float32)
            source = Source(**{field.name: str(arrays[field.name]) for field in fields(Source)})
            if values.shape != (arrays["image"].shape if "image" in arrays else (len(names), len(maps))):
                raise ValueError("shapes do not fit")
            if "image" not in arrays:
                return cls.of_all(maps, names, values, source)
            images = arrays["image"].astype(np.int32)
            if images.shape[1] != len(maps) or not ((images >= 0) & (images < len(names))).all():
                raise ValueError("indices do not fit")
            return cls(maps, names, images.T, values.T, False, source)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise UserError(f"{path} does not hold activation rankings: make it anew with {MAKE}") from error

    def require(self, maps: Iterable[FeatureMap], path: Path) -> None:
        """Check that there is a ranking of every map.

        Raises:
            UserError: One is missing; names the command that makes it.
        """
        missing = [fmap for fmap in maps if fmap not in self._rows]
        if missing:
            raise UserError(
                f"{path} has no ranking of {missing[0].key} ({len(missing)} missing): "
                f"run {MAKE} with the same --topk, --layers and --relevances"
            )


def write_rankings(
    files: ActivationRankingFiles, rankings: ActivationRankings, *, tables: bool = True, **provenance: Any
) -> None:
    """Write the compact file with its provenance, and the CSV (`name,max_act`, descending) of every map.

    Args:
        files: Where to.
        rankings: What.
        tables: Write the CSVs, too.
        provenance: As `utils.files.write_provenance` takes it; one record stands for all files.
    """
    if tables:
        for fmap in rankings.maps:
            write_csv(files.table(fmap), HEADER, rankings.of(fmap))
    rankings.write(files.arrays)
    write_provenance(files.arrays, **provenance)
