"""Groups of the most predictive patches: what of a picture they show by label maps, or where they lie.

A patch shows the label of which it holds the largest share, so that small parts of a picture win over large ones. How
often a group is met by chance is told by one random place of the grid of each image.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detectors.patch_networks import build_patch_network
from evaluation.intervals import wilson_interval
from images.decoding import Crop, Resize, image_size
from images.distortions import resize
from images.sets import FAKE, LABEL_NAMES, REAL
from passes.options import RunOptions
from patch_forensics.experiments import KNOWN
from patch_forensics.figures import draw_groups
from patch_forensics.geometry import geometries
from patch_forensics.options import ClusterOptions
from patch_forensics.top_patches import PREFIXES, SCRIPT, pixels_of, read_patches, save_tiles
from utils.cli import say
from utils.errors import UserError
from utils.files import read_npz, safe_join, sha256_file, write_npz, write_text
from utils.pictures import picture_grid, save_grid
from utils.provenance import Origin, read_record, write_record
from utils.settings import plain
from utils.tables import read_rows, write_rows

_COMPUTATION = 1
FACE_LABELS = KNOWN / "face_labels.csv"
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


@dataclass(frozen=True)
class LabelGroup:
    """A row of `--groups`: a label of label maps, and its group."""

    label: int
    group: str


def shown_label(labels: np.ndarray, span: Span) -> int:
    """The label of which the largest share of all its pixels lies in the span; of equal shares the first met."""
    part = labels[span].ravel()
    present, first, inside = np.unique(part, return_index=True, return_counts=True)
    whole = np.array([np.count_nonzero(labels == label) for label in present])
    order = np.argsort(first)
    return int(present[order][np.argmax((inside / whole)[order])])


def position_group(span: Span, height: int, width: int) -> str:
    """The third of the height and of the width that the middle of a span lies in."""
    words = [
        names[min(2, 3 * (part.start + part.stop) // (2 * side))]
        for part, side, names in zip(span, (height, width), (_VERTICAL, _HORIZONTAL), strict=True)
    ]
    return " ".join(words)


def _by_labels(options: ClusterOptions, images: Mapping[int, Path], crop: Crop) -> Grouping:
    """Groups by label maps, of images in these folders."""
    assert options.real_labels is not None
    assert options.fake_labels is not None
    maps = {REAL: options.real_labels, FAKE: options.fake_labels}
    rows = read_rows(options.groups or FACE_LABELS, LabelGroup, made_by="the columns label and group")
    names = {row.label: row.group for row in rows}

    @lru_cache(maxsize=8)  # a map of a large photograph takes tens of megabytes
    def labels_of(label: int, path: Path) -> np.ndarray:
        inside = path.relative_to(images[label]) if path.is_relative_to(images[label]) else Path(path.name)
        labels = _read_labels(safe_join(maps[label], inside.with_suffix(".png").as_posix()), path)
        return crop(labels, seed=0, name=path.name)

    def group(label: int, path: str, span: Span) -> str:
        label_shown = shown_label(labels_of(label, Path(path)), span)
        return names.get(label_shown, f"label {label_shown}")

    return group


def _read_labels(file: Path, path: Path) -> np.ndarray:
    """The label map of an image, (H, W) uint8 of its size."""
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
    return resize(labels, height, width, "nearest")


def cluster_patches(options: ClusterOptions, run: RunOptions) -> list[GroupCount]:
    """Group the patches of a folder, and write and draw the groups below `clusters/` there.

    Raises:
        UserError: There are no patches, a label map is missing or does not fit, or the images have gone.
    """
    table, folder = options.path / "top_patches.csv", options.path / "clusters"
    patches = read_patches(options.path)
    recorded = read_record(table).get("settings", {})
    arrays = {label: read_npz(options.path / f"{prefix}.npz") for label, prefix in PREFIXES.items()}
    for label, prefix in PREFIXES.items():
        if len(patches[label]) != len(arrays[label]["patch"]):
            raise UserError(f"{table} has not as many rows as {prefix}.npz has patches: make both anew with {SCRIPT}")
    side = int(arrays[REAL]["finesize"])
    crop = Crop("center" if side else "none", side, Resize(side, interpolation="nearest") if side else 0)
    geometry_of = geometries(build_patch_network(str(arrays[REAL]["which_model_netD"])).eval())

    def size_of(path: str) -> tuple[int, int]:
        return crop.output_size(*image_size(path))

    def by_position(label: int, path: str, span: Span) -> str:
        return position_group(span, *size_of(path))

    grouping: Grouping = by_position
    if options.real_labels is not None:
        images = {REAL: recorded.get("real_im_path"), FAKE: recorded.get("fake_im_path")}
        folders = {label: Path(str(name)).absolute() for label, name in images.items()}
        grouping = _by_labels(options, folders, crop)
    generator = np.random.default_rng(run.seed)
    rows: list[GroupCount] = []
    strongest: dict[tuple[str, int], np.ndarray] = {}
    for label, prefix in PREFIXES.items():
        # weakest first, as the arrays are
        mine = patches[label][::-1]
        groups = np.array(
            [grouping(label, row.path, (slice(row.top, row.bottom), slice(row.left, row.right))) for row in mine]
        )
        chance: Counter[str] = Counter()
        for path in sorted({row.path for row in mine}):
            geometry = geometry_of(*size_of(path))
            drawn = (int(generator.integers(len(ends))) for ends in (geometry.rows, geometry.columns))
            chance[grouping(label, path, geometry.span(*drawn))] += 1
        counts = _counts(LABEL_NAMES[label], Counter(groups.tolist()), chance)
        rows += counts
        members = {count.group: np.flatnonzero(groups == count.group) for count in counts}
        _write(folder / f"{prefix}_clusters", counts, members, [row.path for row in mine], arrays[label])
        for group, places in members.items():
            strongest[group, label] = pixels_of(arrays[label]["patch"][places[: -_SHOWN_PATCHES - 1 : -1]])
    target = folder / "clusters.csv"
    write_rows(target, rows)
    settings = plain(options, run)
    origin = Origin(_COMPUTATION, {"top_patches": sha256_file(table)}, settings)
    write_record([target], origin, settings=settings, seed=run.seed)
    pictures = draw_groups(*_totals(rows), folder / "histogram")
    pictures += _draw_best(rows, strongest, folder / "best_patches")
    for file in (target, *pictures):
        say(str(file))
    return rows


def _counts(label: str, patches: Counter[str], random: Counter[str]) -> list[GroupCount]:
    """The groups of one label, the largest first."""
    rows = []
    for number, group in enumerate(sorted({*patches, *random}, key=lambda group: (-patches[group], group))):
        cells: list[Any] = []
        for counts in (patches, random):
            count, total = counts[group], counts.total()
            cells += [count, count / total, *wilson_interval(count, total)]
        rows.append(GroupCount(label, number, group, *cells))
    return rows


def _totals(rows: Sequence[GroupCount]) -> tuple[Counter[str], Counter[str]]:
    """Patches and random places of each group, over all labels."""
    patches: Counter[str] = Counter()
    random: Counter[str] = Counter()
    for row in rows:
        patches[row.group] += row.patches
        random[row.group] += row.random
    return patches, random


def _write(
    folder: Path,
    rows: Sequence[GroupCount],
    members: Mapping[str, np.ndarray],
    paths: Sequence[str],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """The published files of the groups of one label."""
    for stale in sorted(folder.glob("cluster_*")):
        stale.unlink()
    for row in rows:
        places = members[row.group]
        if not len(places):
            continue
        stem = folder / f"cluster_{row.cluster}"
        of_group = {key: arrays[key][places] for key in ("patch", "pos", "value")}
        write_npz(stem.with_suffix(".npz"), **{**arrays, **of_group})
        write_text(stem.with_suffix(".txt"), "".join(f"{paths[index]}\n" for index in places))
        save_tiles(stem.with_suffix(".png"), pixels_of(of_group["patch"][-_TILES:]))
    for file, column in (("counts", "patches"), ("baseline", "random")):
        lines = (f"{row.cluster}: {row.group}, {getattr(row, column)} patches\n" for row in rows)
        write_text(folder / f"{file}.txt", "".join(lines))
    draw_groups(*_totals(rows), folder / "histogram")


def _draw_best(rows: Sequence[GroupCount], strongest: Mapping[tuple[str, int], np.ndarray], stem: Path) -> list[Path]:
    """The strongest patches of the groups that hold most."""
    totals, _ = _totals(rows)
    counts = {(row.group, row.label): row.patches for row in rows}
    pictures, labels = [], []
    for group in sorted(totals, key=lambda group: (-totals[group], group))[:_SHOWN_GROUPS]:
        for label in (FAKE, REAL):
            name = LABEL_NAMES[label]
            pictures.append(list(strongest.get((group, label), ())))
            labels.append([group, f"{name}: {counts.get((group, name), 0)}"])
    title = "strongest patches of the largest groups, strongest at the left"
    return save_grid(picture_grid(pictures, labels=labels, title=title), stem, ("png",))
