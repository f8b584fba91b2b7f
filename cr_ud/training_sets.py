"""Which images are trained and validated on, and what is doubtful about them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from cr_ud.options import TrainingImages
from images.composition import composition_warning, equalization_of
from images.finding import doubts, equalized
from images.sets import LABEL_NAMES, ImageItem, ImageSet, find_image_set, shared_images
from utils.errors import UserError

_HOLD_OUT = 3  # stream of random numbers, apart from those of the loader
# What numbers the tiles or frames of one source: photo7_2_3 is of photo7, video01-frame0003 of video01.
_NUMBERING = (re.compile(r"([-_. ]+[A-Za-z]*[-_. ]*\d+)+$"), re.compile(r"[-_. ]+[A-Za-z]*[-_. ]*\d+$"))


@dataclass(frozen=True)
class TrainingSets:
    """Images to train on and to validate on (None: no validation), and how they were chosen, a line each."""

    training: ImageSet
    validation: ImageSet | None
    remarks: tuple[str, ...] = ()

    @cached_property
    def warnings(self) -> list[str]:
        """What a user should read before the training; looks into all files."""
        training, validation = self.training, self.validation
        warnings = [doubt for image_set in self._named().values() for doubt in doubts(image_set)] + list(self.remarks)
        if validation is not None and (shared := shared_images(training, validation)):
            warnings.append(
                f"{shared} of the {len(validation)} validation images are among the training images, too, by content: "
                "accuracies will be too good; give --val_dir other images"
            )
        if training.equalization is None and (warning := composition_warning(training)):
            warnings.append(warning)
        return list(dict.fromkeys(warnings))

    def digests(self) -> dict[str, str]:
        """SHA-256 of each set by its name; looks into all files."""
        return {name.replace("_", " "): image_set.digest() for name, image_set in self._named().items()}

    def notes(self) -> dict[str, object]:
        """Numbers of images and warnings, for a record."""
        counts = {name: image_set.counts() for name, image_set in self._named().items()}
        return {"validation_images": {}, **counts, "warnings": self.warnings}

    def _named(self) -> dict[str, ImageSet]:
        validation = {} if self.validation is None else {"validation_images": self.validation}
        return {"training_images": self.training, **validation}


def find_sets(
    choice: TrainingImages, classes: Sequence[str] = (), *, pairs: bool = False, seed: int = 0
) -> TrainingSets:
    """The images of some classes (none: all).

    Raises:
        UserError: A folder or class is missing or empty, or an image has no partner in `pairs`.
    """
    training = find_training_set(choice.train_dir, classes, choice.num_real, choice.num_fake, choice.num_instances)
    validation = None if choice.val_dir is None else find_training_set(choice.val_dir, classes)
    remarks = []
    if choice.val_share is not None:
        training, validation, sources = split_off(training, choice.val_share, seed, pairs=pairs)
        remarks.append(
            f"--val_share: the {len(validation)} images held out are of {sources} sources by the beginnings of their "
            "names; tiles or frames of one source with other names may be on both sides"
        )
    if pairs:
        find_pairs(training)
    if choice.equalize:
        items = training.items + (validation.items if validation is not None else ())
        same = equalization_of(replace(training, items=items))
        training, remark = equalized(training, same)
        validation = None if validation is None else equalized(validation, same)[0]
        remarks.append(remark)
    return TrainingSets(training, validation, tuple(remarks))


def find_training_set(
    root: str | Path,
    classes: Sequence[str] = (),
    num_real: int | None = None,
    num_fake: int | None = None,
    num_instances: int | None = None,
) -> ImageSet:
    """Images of `<root>/[<class>/]{0_real,1_fake}/`, the layout of the ForenSynths training set.

    Args:
        root: Folder of the class folders, or of the two label folders.
        classes: Class folders to use; none: all.
        num_real, num_fake, num_instances: As `images.sets.find_image_set`.

    Raises:
        UserError: As `images.sets.find_image_set`, or a class is not there.
    """
    folder = Path(root).absolute()
    find = partial(find_image_set, num_real=num_real, num_fake=num_fake, num_instances=num_instances)
    if not folder.is_dir():
        raise UserError(f"no folder {root}: give the folder of the class folders")
    for name in classes:
        if not (folder / name).is_dir():
            there = ", ".join(sorted(entry.name for entry in folder.iterdir() if entry.is_dir())) or "no folders"
            raise UserError(f"no class {name!r} in {root}: check --classes (there: {there})")
    if not classes:
        return find(folder.parent, folder.name)
    items: list[ImageItem] = []
    warnings: list[str] = []
    for name in sorted(set(classes)):
        part = find(folder, name, have_classes=False)
        items += [
            replace(item, name=f"{folder.name}/{item.name}", class_name=name, generator=folder.name)
            for item in part.items
        ]
        warnings += (f"{name}: {warning}" for warning in part.warnings)
    return ImageSet(folder.parent, tuple(items), tuple(warnings))


def find_pairs(image_set: ImageSet) -> np.ndarray:
    """Positions of the real and of the fake image of each class and name (without suffix), (n, 2) int.

    Raises:
        UserError: An image has no partner, or several.
    """
    by_name: dict[tuple[str, str], list[int]] = {}
    for position, item in enumerate(image_set.items):
        by_name.setdefault((item.class_name, item.path.stem), []).append(position)
    pairs: list[list[int]] = []
    for names, positions in by_name.items():
        by_label = {image_set.items[position].label: position for position in positions}
        if len(positions) != 2 or by_label.keys() != {0, 1}:
            raise UserError(
                f"--pairs: {'/'.join(filter(None, names))} in {image_set.root} is not one real and one fake image of "
                "the same name: rename or remove it, or leave out --pairs"
            )
        pairs.append([by_label[0], by_label[1]])
    return np.array(pairs, dtype=int).reshape(-1, 2)


def split_off(image_set: ImageSet, share: float, seed: int, *, pairs: bool = False) -> tuple[ImageSet, ImageSet, int]:
    """Hold out a share of the images of each class and label, drawn with `seed`: kept, held out, sources of the latter.

    Images whose names differ only in the numbers at their ends count as one source and stay together, unless more
    images than are to be held out are called so. With `pairs`, so do a real image and the fake of the same name.

    Raises:
        UserError: The share leaves a class and label without images on either side, or as `find_pairs`.
    """
    generator = np.random.default_rng([seed, _HOLD_OUT])
    partners = dict(find_pairs(image_set).tolist()) if pairs else {}
    strata: dict[tuple[str, int | None], list[int]] = {}
    for position, item in enumerate(image_set.items):
        # pairs are drawn by their real images
        if not pairs or position in partners:
            strata.setdefault((item.class_name, item.label), []).append(position)
    held_out: set[int] = set()
    drawn_sources = 0
    for (class_name, label), positions in strata.items():
        number = round(share * len(positions))
        if not 0 < number < len(positions):
            raise UserError(
                f"--val_share {share} of {len(positions)} {LABEL_NAMES[label]} images of "
                f"{class_name or image_set.root} is {number}: change the share or give --val_dir"
            )
        sources = _sources(image_set, positions, number)
        drawn: list[int] = []
        for source in generator.permutation(list(range(len(sources)))):
            if len(drawn) >= number:
                break
            drawn += sources[source]
            drawn_sources += 1
        held_out.update(drawn, (partners[position] for position in drawn if pairs))
    kept = [position for position in range(len(image_set)) if position not in held_out]
    return image_set.subset(kept), image_set.subset(sorted(held_out)), drawn_sources


def _sources(image_set: ImageSet, positions: Sequence[int], largest: int) -> list[list[int]]:
    """Positions grouped by source."""
    for numbering in _NUMBERING:
        sources: dict[str, list[int]] = {}
        for position in positions:
            sources.setdefault(numbering.sub("", image_set.items[position].path.stem), []).append(position)
        if max(map(len, sources.values())) <= largest:
            return list(sources.values())
    return [[position] for position in positions]


def sample_evenly(image_set: ImageSet, number: int, seed: int) -> ImageSet:
    """About `number` images, half of them real, drawn with `seed`; all if there are not more, or `number` is 0."""
    if number == 0 or number >= len(image_set):
        return image_set
    generator = np.random.default_rng([seed, _HOLD_OUT])
    chosen: list[int] = []
    for label in (0, 1):
        positions = [position for position, item in enumerate(image_set.items) if item.label == label]
        chosen += generator.permutation(positions)[: min(len(positions), max(1, number // 2))].tolist()
    return image_set.subset(sorted(chosen))
