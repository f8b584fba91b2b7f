"""Groups of the most predictive patches: what of a picture they show by label maps, or where they lie.

A patch shows the label of which it holds the largest share, so that small parts of a picture win over large ones. How
often a group is met by chance is told by one random place of the grid of each image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from detectors.patch_networks import build_patch_network
from evaluation.intervals import wilson_interval
from images.decoding import Crop, image_size
from images.sets import FAKE, LABEL_NAMES, REAL
from passes.options import RunOptions
from patch_forensics.figures import draw_groups
from patch_forensics.geometry import Geometries
from patch_forensics.options import ClusterOptions
from patch_forensics.top_patches import PREFIXES, SCRIPT, TopPatch, pixels_of, save_tiles
from utils.cli import say
from utils.errors import UserError
from utils.files import read_npz, safe_join, sha256_file, write_npz, write_text
from utils.pictures import picture_grid, save_grid
from utils.provenance import Origin, read_record, write_record
from utils.settings import plain
from utils.tables import read_rows, read_table, write_rows

_COMPUTATION = 1
_FACE = (
    "background",
    "skin",
    "brows",
    "brows",
    "eye",
    "eye",
    "eye",
    "ear",
    "ear",
    "ear",
    "nose",
    "mouth",
    "mouth",
    "mouth",
)
FACE_GROUPS = dict(enumerate((*_FACE, "neck", "neck", "clothes", "hair", "hat")))
"""Labels of face parsers trained on CelebAMask-HQ, in the published groups."""
_VERTICAL, _HORIZONTAL = ("top", "middle", "bottom"), ("left", "centre", "right")
_TILES = 225
_SHOWN_GROUPS, _SHOWN_PATCHES = 3, 8

Span = tuple[slice, slice]
Grouping = Callable[[int, str, Span], str]
"""From the label of an image, its path and the pixels that a patch sees to a group."""


@dataclass(frozen=True)
class GroupCount:
    """A row of `clusters.csv`.

    Attributes:
        label: Of the images, `real` or `fake`.
        cluster: Number in file names, from 0, the largest first.
        patches, share, share_low, share_high: Of the most predictive patches in this group, with a 95 % interval.
        random, random_share, random_low, random_high: The same of random places, one of each image.
    """

    label: str
    cluster: int
    group: str
    patches: int
    share: float
    share_low: float
    share_high: float
    random: int
    random_share: float
    random_low: float
    random_high: float


def shown_label(labels: np.ndarray, span: Span) -> int:
    """The label of which the largest share of all its pixels lies in the span; of equal shares the first met."""
    part = labels[span].ravel()
    found, first, inside = np.unique(part, return_index=True, return_counts=True)
    whole = np.array([np.count_nonzero(labels == label) for label in found])
    order = np.argsort(first)
    return int(found[order][np.argmax((inside / whole)[order])])


def position_group(span: Span, height: int, width: int) -> str:
    """The third of the height and of the width that the middle of a span lies in."""
    words = [
        names[min(2, 3 * (part.start + part.stop) // (2 * side))]
        for part, side, names in zip(span, (height, width), (_VERTICAL, _HORIZONTAL), strict=True)
    ]
    return " ".join(words)


class _Labels:
    """Groups by label maps."""

    def __init__(self, options: ClusterOptions, folders: Mapping[int, Path], crop: Crop) -> None:
        assert options.real_labels is not None
        assert options.fake_labels is not None
        self._maps = {REAL: options.real_labels, FAKE: options.fake_labels}
        self._images, self._crop = folders, crop
        self._names = FACE_GROUPS if options.groups is None else _read_groups(options.groups)
        self._last: tuple[str, np.ndarray] = ("", np.zeros(0))

    def __call__(self, label: int, path: str, span: Span) -> str:
        if self._last[0] != path:
            self._last = path, self._read(label, Path(path))
        found = shown_label(self._last[1], span)
        return self._names.get(found, f"label {found}")

    def _read(self, label: int, path: Path) -> np.ndarray:
        folder = self._images[label]
        inside = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
        file = safe_join(self._maps[label], inside.with_suffix(".png").as_posix())
        try:
            with Image.open(file, formats=["PNG"]) as image:
                labels = np.asarray(image)
        except FileNotFoundError:
            raise UserError(f"no label map {file} for {path}: make it (docs/patch_forensics.md)") from None
        except OSError as error:
            raise UserError(f"label map {file} is damaged or no PNG: make it anew") from error
        height, width = image_size(path)
        if labels.ndim != 2 or labels.dtype != np.uint8 or labels.shape[0] * width != labels.shape[1] * height:
            raise UserError(
                f"label map {file} has the shape {labels.shape} of {labels.dtype}, its image {width}x{height} pixels: "
                "give one 8-bit number for each pixel, in the proportions of the image"
            )
        scaled = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
        return self._crop(np.asarray(scaled), seed=0, name=path.name)


def cluster_patches(options: ClusterOptions, run: RunOptions) -> list[GroupCount]:
    """Group the patches of a folder, and write and draw the groups below `clusters/` there.

    Raises:
        UserError: There are no patches, a label map is missing or does not fit, or the images have gone.
    """
    table_path = options.path / "top_patches.csv"
    table = read_rows(table_path, TopPatch, made_by=SCRIPT)
    made = read_record(table_path).get("settings", {})
    arrays = {label: read_npz(options.path / f"{prefix}.npz") for label, prefix in PREFIXES.items()}
    side = int(arrays[REAL]["finesize"])
    crop = _NearestCrop("center" if side else "none", side, side)
    geometries = Geometries(build_patch_network(str(arrays[REAL]["which_model_netD"])).eval())

    def size_of(path: str) -> tuple[int, int]:
        return crop.output_size(*image_size(path))

    def by_position(label: int, path: str, span: Span) -> str:
        return position_group(span, *size_of(path))

    folders = {
        REAL: Path(str(made.get("real_im_path"))).absolute(),
        FAKE: Path(str(made.get("fake_im_path"))).absolute(),
    }
    grouping: Grouping = by_position if options.real_labels is None else _Labels(options, folders, crop)
    generator = np.random.default_rng(run.seed)
    counts: list[GroupCount] = []
    members: dict[tuple[str, int], list[int]] = {}
    for label, name in LABEL_NAMES.items():
        if label not in PREFIXES or label is None:
            continue
        # weakest first, as the arrays are
        rows = [row for row in table if row.label == name][::-1]
        groups = defaultdict(list)
        for place, row in enumerate(rows):
            span = slice(row.top, row.bottom), slice(row.left, row.right)
            groups[grouping(label, row.path, span)].append(place)
        chance: dict[str, int] = defaultdict(int)
        paths = sorted({row.path for row in rows})
        for path in paths:
            geometry = geometries(*size_of(path))
            drawn = (int(generator.integers(len(ends))) for ends in (geometry.rows, geometry.columns))
            chance[grouping(label, path, geometry.span(*drawn))] += 1
        order = sorted({*groups, *chance}, key=lambda group: (-len(groups.get(group, ())), group))
        for number, group in enumerate(order):
            mine = groups.get(group, [])
            members[name, number] = mine
            count, met = len(mine), chance.get(group, 0)
            shares = (count, count / len(rows), *wilson_interval(count, len(rows)))
            random_shares = (met, met / len(paths), *wilson_interval(met, len(paths)))
            counts.append(GroupCount(name, number, group, *shares, *random_shares))
        _write(options.path / "clusters" / f"{PREFIXES[label]}_clusters", counts, name, members, rows, arrays[label])
    target = options.path / "clusters" / "clusters.csv"
    write_rows(target, counts)
    inputs = {"top_patches": sha256_file(table_path)}
    write_record(
        [target], Origin(_COMPUTATION, inputs, plain(options, run)), settings=plain(options, run), seed=run.seed
    )
    pictures = draw_groups(counts, options.path / "clusters" / "histogram")
    pictures += _draw_best(counts, members, arrays, options.path / "clusters" / "best_patches")
    for file in (target, *pictures):
        say(str(file))
    return counts


@dataclass(frozen=True)
class _NearestCrop(Crop):
    interpolation = "nearest"


def _write(
    folder: Path,
    counts: Sequence[GroupCount],
    name: str,
    members: Mapping[tuple[str, int], Sequence[int]],
    rows: Sequence[TopPatch],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """The published files of the groups of one label."""
    for stale in sorted(folder.glob("cluster_*")):
        stale.unlink()
    mine = [count for count in counts if count.label == name]
    for count in mine:
        places = np.array(members[name, count.cluster], dtype=int)
        if not len(places):
            continue
        stem = folder / f"cluster_{count.cluster}"
        own = {key: arrays[key][places] for key in ("patch", "pos", "value")}
        write_npz(stem.with_suffix(".npz"), **{**arrays, **own})
        write_text(stem.with_suffix(".txt"), "".join(f"{rows[place].path}\n" for place in places))
        save_tiles(stem.with_suffix(".png"), pixels_of(own["patch"][-_TILES:]))
    for file, numbers in (("counts", [c.patches for c in mine]), ("baseline", [c.random for c in mine])):
        lines = (f"{c.cluster}: {c.group}, {number} patches\n" for c, number in zip(mine, numbers, strict=True))
        write_text(folder / f"{file}.txt", "".join(lines))
    draw_groups(mine, folder / "histogram")


def _draw_best(
    counts: Sequence[GroupCount],
    members: Mapping[tuple[str, int], Sequence[int]],
    arrays: Mapping[int, Mapping[str, np.ndarray]],
    stem: Path,
) -> list[Path]:
    """The strongest patches of the groups that hold most."""
    totals: dict[str, int] = defaultdict(int)
    for count in counts:
        totals[count.group] += count.patches
    largest = sorted(totals, key=lambda group: (-totals[group], group))[:_SHOWN_GROUPS]
    pictures, labels = [], []
    for group in largest:
        for label in (FAKE, REAL):
            name = LABEL_NAMES[label]
            own = next((c for c in counts if (c.group, c.label) == (group, name)), None)
            places = [] if own is None else list(members[name, own.cluster])[: -_SHOWN_PATCHES - 1 : -1]
            pictures.append(list(pixels_of(arrays[label]["patch"][places])))
            labels.append([group, f"{name}: {0 if own is None else own.patches}"])
    title = "strongest patches of the largest groups, strongest at the left"
    return save_grid(picture_grid(pictures, labels=labels, title=title), stem, ("png",))


def _read_groups(path: Path) -> dict[int, str]:
    header, lines = read_table(path, made_by="the columns label and group")
    if header != ["label", "group"]:
        raise UserError(f"{path} has the columns {', '.join(header)}: give it label and group")
    try:
        return {int(label): group for label, group in lines}
    except ValueError as error:
        raise UserError(f"{path}: {error}: labels are whole numbers") from error
