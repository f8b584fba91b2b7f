"""The image sets for an `ImageChoice`: from folders or a list, in clusters, made alike, with what there is to say."""

import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from images.choice import LIST_FORMAT, ImageChoice
from images.composition import composition_warning, equalization_of
from images.decoding import Equalization
from images.sets import (
    FAKE,
    LABEL_NAMES,
    LABELS_OF_FOLDERS,
    REAL,
    ImageItem,
    ImageSet,
    duplicates,
    find_image_set,
    label_limits,
)
from utils.errors import UserError
from utils.files import is_plain_name
from utils.tables import read_table

_LABELS_IN_LISTS = {**LABELS_OF_FOLDERS, "0": REAL, "1": FAKE}


def find_images(
    choice: ImageChoice, labels: Collection[int] = (REAL, FAKE), *, alone: bool = False
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


def doubts(image_set: ImageSet) -> list[str]:
    """What a user should know of a set: its warnings, and whether images are both real and fake."""
    warnings = list(image_set.warnings)
    if twice := duplicates(image_set):
        earlier, item = twice[0]
        warnings.append(
            f"{len(twice)} of the images are both {LABEL_NAMES[earlier.label]} and {LABEL_NAMES[item.label]}, by "
            f"content (first {earlier.name} and {item.name})"
        )
    return warnings


def described(image_set: ImageSet) -> ImageSet:
    """The set with all that a user should know of it in `ImageSet.warnings`."""
    more = [warning] if (warning := composition_warning(image_set)) else []
    return replace(image_set, warnings=(*doubts(image_set), *more))


def equalized(image_set: ImageSet, same: Equalization) -> tuple[ImageSet, str]:
    """The set with images made alike, and what to say of it."""
    size = f"{same.side}x{same.side}"
    text = f"all images are cut to {size} pixels and compressed as JPEG of quality {same.quality}"
    return replace(image_set, equalization=same), text


def _prepared(choice: ImageChoice, image_set: ImageSet, labels: Collection[int]) -> ImageSet:
    if choice.cluster is not None:
        image_set = _clustered(image_set, choice.cluster)
    if choice.equalize:
        image_set, text = equalized(image_set, equalization_of(image_set))
        image_set = replace(image_set, warnings=(*doubts(image_set), text))
    else:
        image_set = described(image_set)
    return replace(image_set, items=tuple(item for item in image_set.items if item.label in labels))


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


def _listed_sets(choice: ImageChoice, file: Path, labels: Collection[int], *, alone: bool) -> dict[str, ImageSet]:
    """The sets that a CSV lists, in its order."""
    by_generator: dict[str, list[ImageItem]] = {}
    for item in _listed_items(file):
        if item.label in labels and (not choice.gan_name or item.generator in choice.gan_name):
            by_generator.setdefault(item.generator, []).append(item)
    missing = [name for name in choice.gan_name if name not in by_generator]
    if missing:
        raise UserError(f"no images of {', '.join(missing)} in {file}: check --gan_name and the column generator")
    folder = file.absolute().parent
    limits = label_limits(choice.num_real, choice.num_fake, choice.num_instances)
    sets = {}
    for name, items in by_generator.items():
        lacking = [LABEL_NAMES[label] for label in labels if all(item.label != label for item in items)]
        if lacking and not alone:
            raise UserError(f"no {lacking[0]} images of {name} in {file}: add some to the list")
        inside = all(item.path.is_relative_to(folder) for item in items)
        root = folder if inside else Path(os.path.commonpath([item.path.parent for item in items]))
        taken: Counter[tuple[str, int | None]] = Counter()
        kept = []
        for item in items:
            key = item.class_name, item.label
            taken[key] += 1
            if taken[key] <= (limits[item.label] or len(items)):
                kept.append(replace(item, name=item.path.relative_to(root).as_posix()))
        sets[name] = ImageSet(root, tuple(kept))
    if not sets:
        raise UserError(f"{file} lists no images: give it a line for each, with {LIST_FORMAT}")
    return sets


def _listed_items(file: Path) -> list[ImageItem]:
    header, lines = read_table(file, made_by=LIST_FORMAT)
    # spreadsheets put a mark before the first column
    columns = [name.removeprefix("\ufeff").strip().lower() for name in header]
    if not {"path", "label"} <= set(columns):
        raise UserError(f"{file} has the columns {', '.join(columns)}: make it anew with {LIST_FORMAT}")
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
