"""Which images a run is about and how they are read, as settings; the sets of images for them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from images.composition import composition_warning, duplicates_warning, equalization_of
from images.decoding import CROP_KINDS, Crop
from images.sets import FAKE, LABEL_NAMES, LABELS_OF_FOLDERS, REAL, ImageItem, ImageSet, find_image_set, label_limits
from utils.errors import UserError
from utils.files import is_plain_name
from utils.settings import boolean, count, flag, plain_name, positive
from utils.tables import read_table

_LABELS_IN_LISTS = {**LABELS_OF_FOLDERS, "0": REAL, "1": FAKE}
_LIST_FORMAT = "the columns path and label, and if you like class, generator and cluster"


def _have_classes(text: str) -> bool | str:
    return "auto" if text.strip().lower() == "auto" else boolean(text)


@dataclass(frozen=True)
class ImageChoice:
    """Images.

    Attributes:
        images_from: CSV with a line for each image: `path` (absolute, or relative to the CSV) and `label` (0 or real, 1
            or fake), and if there are such columns `class`, `generator` (each a set; without it there is one, named
            after the file) and `cluster`.
        cluster: which images are not independent: "folder" for those in one folder, label folders left out, or a
            regular expression, whose first group (or all that matches) in the file's name is the cluster within its
            class; it goes before the column of `images_from`.
        equalize: real and fake images are given one size and one compression on the way in: all are cut to the central
            square of the smallest shorter side in the set, and compressed as JPEG at the lowest quality there (95
            where none is a JPEG); `images.decoding.Equalization`.
    """

    dataset_dir: Path | None = flag(None, "folder of the generators' folders", metavar="DIR")
    gan_name: tuple[str, ...] = flag(
        (),
        "one or more folders there, each with [<class>/]0_real and [<class>/]1_fake",
        parse=plain_name,
        metavar="NAME",
    )
    have_classes: bool | Literal["auto"] = flag(
        "auto", "whether there are class folders; auto looks", parse=_have_classes, metavar="True|False|auto"
    )
    num_real: int | None = flag(None, "first N real images of each class; 0 or absent: all", parse=count)
    num_fake: int | None = flag(None, "first N fake images of each class; 0 or absent: all", parse=count)
    num_instances: int | None = flag(
        None, "first N images of each class and label, where the two above are absent; 0 or absent: all", parse=count
    )
    images_from: Path | None = flag(
        None, f"list of images instead of --dataset_dir, with {_LIST_FORMAT}", metavar="FILE.csv"
    )
    cluster: str | None = flag(
        None,
        "which images belong together in intervals: folder, or a regular expression whose group in the file's name "
        "says it, as in '(.*)_[0-9]+'",
        metavar="folder|PATTERN",
    )
    equalize: bool = flag(False, "give real and fake images one size (central part) and one JPEG quality")

    def __post_init__(self) -> None:
        if self.images_from is not None and self.dataset_dir is not None:
            raise UserError("--images_from stands for --dataset_dir: leave out one of them")
        try:
            re.compile(self.cluster or "")
        except re.error as error:
            raise UserError(f"--cluster {self.cluster}: not a regular expression ({error}): mend it") from error

    def limits(self) -> dict[int | None, int | None]:
        """Most images of each label in a class; None: all."""
        return label_limits(self.num_real, self.num_fake, self.num_instances)


@dataclass(frozen=True)
class Reading:
    """Reading of images."""

    bsize: int = flag(16, "images in a batch", parse=positive)
    crop: str = flag(
        "none",
        "random: 99 to 100 %% of the area resized to 224x224; center: the central 224x224; none: all",
        choices=CROP_KINDS,
    )
    resize: int = flag(0, "pixels of the shorter side, to which images are scaled before the crop; 0: not", parse=count)
    num_workers: int | None = flag(
        None,
        "processes that decode images, 0 for none; absent: as many as are useful on the device",
        parse=count,
        recorded=False,
    )
    skip_bad_images: bool = flag(False, "leave out images that cannot be decoded, and report them, instead of stopping")

    def cropping(self) -> Crop:
        """What is done to each image."""
        return Crop(self.crop, resize=self.resize)


def find_images(
    choice: ImageChoice, labels: tuple[int, ...] = (REAL, FAKE), *, alone: bool = False
) -> dict[str, ImageSet]:
    """The images of each generator, with all that a user should know of them in `ImageSet.warnings`.

    Args:
        choice: which generators, and which of their images.
        labels: which labels to take.
        alone: whether a set may have images of one of these labels alone.

    Raises:
        UserError: nothing is named, or something named is missing or has no images.
    """
    # What makes images alike is that of real and fake images together, whichever are shown.
    sought = (REAL, FAKE) if choice.equalize else labels
    if choice.images_from is not None:
        sets = _listed_sets(choice, choice.images_from, sought, alone=alone)
    elif choice.dataset_dir is None:
        raise UserError("no images: give --dataset_dir and --gan_name, or --images_from")
    elif not choice.gan_name:
        raise UserError(f"which images of {choice.dataset_dir}? name its folders with --gan_name")
    else:
        sets = {
            name: find_image_set(
                choice.dataset_dir,
                name,
                have_classes=choice.have_classes,
                num_real=choice.num_real,
                num_fake=choice.num_fake,
                num_instances=choice.num_instances,
                labels=sought,
                alone=alone,
            )
            for name in choice.gan_name
        }
    return {name: _prepared(choice, image_set, labels) for name, image_set in sets.items()}


def _prepared(choice: ImageChoice, image_set: ImageSet, labels: tuple[int, ...]) -> ImageSet:
    if choice.cluster is not None:
        image_set = _clustered(image_set, choice.cluster)
    warning = duplicates_warning(image_set)
    warnings = [*image_set.warnings, *([warning] if warning else [])]
    if choice.equalize:
        same = equalization_of(image_set)
        image_set = replace(image_set, equalization=same)
        size = f"{same.side}x{same.side}"
        warnings.append(f"all images are cut to {size} pixels and compressed as JPEG of quality {same.quality}")
    elif warning := composition_warning(image_set):
        warnings.append(warning)
    items = tuple(item for item in image_set.items if item.label in labels)
    return replace(image_set, items=items, warnings=tuple(warnings))


def _clustered(image_set: ImageSet, rule: str) -> ImageSet:
    clusters = [_cluster(item, rule) for item in image_set.items]
    if not any(clusters):
        raise UserError(f"--cluster {rule}: matches no file name, such as {image_set.items[0].path.name}: mend it")
    if len(set(clusters)) == 1:
        raise UserError(f"--cluster {rule}: all images of {image_set.items[0].generator} are in one: leave it out")
    warnings = list(image_set.warnings)
    if without := clusters.count(""):
        warnings.append(f"--cluster {rule} matches all but {without} of {len(clusters)} file names: each stands alone")
    items = tuple(replace(item, cluster=cluster) for item, cluster in zip(image_set.items, clusters, strict=True))
    return replace(image_set, items=items, warnings=tuple(warnings))


def _cluster(item: ImageItem, rule: str) -> str:
    if rule == "folder":
        return "/".join(part for part in item.name.split("/")[:-1] if part.lower() not in LABELS_OF_FOLDERS)
    match = re.search(rule, item.path.name)
    if match is None:
        return ""
    text = next((group for group in match.groups() if group is not None), match[0])
    return f"{item.class_name}/{text}" if item.class_name and text else text


def _listed_sets(choice: ImageChoice, file: Path, labels: tuple[int, ...], *, alone: bool) -> dict[str, ImageSet]:
    """The sets that a CSV lists, in its order."""
    by_generator: dict[str, list[ImageItem]] = {}
    for item in _listed_items(file):
        if item.label in labels and (not choice.gan_name or item.generator in choice.gan_name):
            by_generator.setdefault(item.generator, []).append(item)
    missing = [name for name in choice.gan_name if name not in by_generator]
    if missing:
        raise UserError(f"no images of {', '.join(missing)} in {file}: check --gan_name and the column generator")
    folder = file.absolute().parent
    limits = choice.limits()
    sets = {}
    for name, items in by_generator.items():
        lacking = [LABEL_NAMES[label] for label in labels if all(item.label != label for item in items)]
        if lacking and not alone:
            raise UserError(f"no {lacking[0]} images of {name} in {file}: add some to the list")
        inside = all(item.path.is_relative_to(folder) for item in items)
        root = folder if inside else Path(os.path.commonpath([item.path.parent for item in items]))
        taken: dict[tuple[str, int | None], int] = {}
        kept = []
        for item in items:
            key = item.class_name, item.label
            taken[key] = taken.get(key, 0) + 1
            if taken[key] <= (limits[item.label] or len(items)):
                kept.append(replace(item, name=item.path.relative_to(root).as_posix()))
        sets[name] = ImageSet(root, tuple(kept))
    if not sets:
        raise UserError(f"{file} lists no images: give it a line for each, with {_LIST_FORMAT}")
    return sets


def _listed_items(file: Path) -> list[ImageItem]:
    header, lines = read_table(file, made_by=_LIST_FORMAT)
    # spreadsheets put a mark before the first column
    columns = [name.removeprefix("\ufeff").strip().lower() for name in header]
    if not {"path", "label"} <= set(columns):
        raise UserError(f"{file} has the columns {', '.join(columns)}: make it anew with {_LIST_FORMAT}")
    seen: set[tuple[str, Path]] = set()
    items = []
    for number, line in enumerate(lines, start=2):
        cells = dict(zip(columns, line, strict=True))
        path = Path(os.path.normpath(file.absolute().parent / cells["path"]))
        label = _LABELS_IN_LISTS.get(cells["label"].strip().lower())
        generator, class_name = cells.get("generator") or file.stem, cells.get("class", "")
        if not cells["path"] or label is None:
            raise UserError(f"{file}, line {number}: give a path and a label, 0 or real, 1 or fake")
        # both become parts of file names
        for name in filter(None, (generator, class_name)):
            if not is_plain_name(name):
                raise UserError(f"{file}, line {number}: {name!r} is not a plain name: leave out '/' and the like")
        if (generator, path) in seen:
            raise UserError(f"{file}, line {number}: {cells['path']} is listed twice: keep one")
        seen.add((generator, path))
        items.append(ImageItem(path, "", label, class_name, generator, cells.get("cluster", "")))
    return items
