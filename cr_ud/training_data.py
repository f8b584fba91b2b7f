"""Which training images make up which step, for any number of processes, workers and resumed runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from cr_ud.augmentation import Augmentation
from images.decoding import decode_image
from images.loading import decode_in_workers
from images.sets import LABEL_NAMES, ImageItem, ImageSet, find_image_set
from passes.processes import Ranks
from utils.errors import UserError

# streams of random numbers that must not meet: order of an epoch, augmentation, choice of held-out images
_ORDER, _AUGMENT, _HOLD_OUT = 1, 2, 3


def find_training_set(
    root: str | Path, classes: Sequence[str] = (), *, num_real: int | None = None, num_fake: int | None = None
) -> ImageSet:
    """Images of `<root>/[<class>/]{0_real,1_fake}/`, the layout of the ForenSynths training set.

    Args:
        root: folder of the class folders, or of the two label folders.
        classes: names of the class folders to use; none: all.
        num_real, num_fake: the first so many of each class; None or 0 for all.

    Raises:
        UserError: as `images.sets.find_image_set`, or a class is not there.
    """
    folder = Path(root).absolute()
    if not folder.is_dir():
        raise UserError(f"no folder {root}: give the folder of the class folders")
    for name in classes:
        if not (folder / name).is_dir():
            there = ", ".join(sorted(entry.name for entry in folder.iterdir() if entry.is_dir())) or "no folders"
            raise UserError(f"no class {name!r} in {root}: check --classes (there: {there})")
    if not classes:
        return find_image_set(folder.parent, folder.name, num_real=num_real, num_fake=num_fake)
    items: list[ImageItem] = []
    for name in sorted(set(classes)):
        found = find_image_set(folder, name, have_classes=False, num_real=num_real, num_fake=num_fake)
        items += [
            replace(item, name=f"{folder.name}/{item.name}", class_name=name, generator=folder.name)
            for item in found.items
        ]
    return ImageSet(folder.parent, tuple(items))


def find_pairs(image_set: ImageSet) -> np.ndarray:
    """Places of the real and of the fake image of each class and name (without suffix), (n, 2) int.

    Raises:
        UserError: an image has no partner, or several.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for place, item in enumerate(image_set.items):
        found.setdefault((item.class_name, item.path.stem), []).append(place)
    pairs: list[list[int]] = []
    for names, places in found.items():
        by_label = {image_set.items[place].label: place for place in places}
        if len(places) != 2 or by_label.keys() != {0, 1}:
            raise UserError(
                f"--pairs: {'/'.join(filter(None, names))} in {image_set.root} is not one real and one fake image of "
                "the same name: rename or remove it, or leave out --pairs"
            )
        pairs.append([by_label[0], by_label[1]])
    return np.array(pairs, dtype=int).reshape(-1, 2)


def split_off(image_set: ImageSet, share: float, seed: int, *, pairs: bool = False) -> tuple[ImageSet, ImageSet]:
    """Hold out a share of the images of each class and label, drawn with `seed`: (kept, held out).

    With `pairs`, a real image and the fake of the same name stay together.

    Raises:
        UserError: the share is not between 0 and 1, or leaves a class and label without images on either side; or
            as `find_pairs`.
    """
    if not 0.0 < share < 1.0:
        raise UserError(f"--val_share is {share}: use a number between 0 and 1")
    generator = np.random.default_rng([seed, _HOLD_OUT])
    groups: dict[tuple[str, int | None], list[int]] = {}
    # pairs are drawn by their real images
    partners = dict(find_pairs(image_set).tolist()) if pairs else {}
    for place, item in enumerate(image_set.items):
        if not pairs or place in partners:
            groups.setdefault((item.class_name, item.label), []).append(place)
    held_out: set[int] = set()
    for (class_name, label), places in groups.items():
        number = round(share * len(places))
        if not 0 < number < len(places):
            raise UserError(
                f"--val_share {share} of {len(places)} {LABEL_NAMES[label]} images of {class_name or image_set.root} "
                f"is {number}: change the share or give --val_dir"
            )
        drawn = generator.permutation(places)[:number].tolist()
        held_out.update(drawn, (partners[place] for place in drawn if pairs))
    kept = [place for place in range(len(image_set)) if place not in held_out]
    return image_set.subset(kept), image_set.subset(sorted(held_out))


def sample_evenly(image_set: ImageSet, number: int, seed: int) -> ImageSet:
    """About `number` images, half of them real, drawn with `seed`; all if there are not more."""
    if number == 0 or number >= len(image_set):
        return image_set
    generator = np.random.default_rng([seed, _HOLD_OUT])
    chosen: list[int] = []
    for label in (0, 1):
        places = [place for place, item in enumerate(image_set.items) if item.label == label]
        size = min(len(places), max(1, number // 2))
        chosen += generator.permutation(places)[:size].tolist()
    return image_set.subset(sorted(chosen))


@dataclass(frozen=True)
class MicroBatch:
    """What one process feeds forward at once.

    Attributes:
        epoch: counted from 0.
        slots: what seeds the augmentation: places in the order of the epoch, those of pairs if there are any.
        positions: the images there, as places in the image set.
        step_size: images in the whole step, over all processes and micro-batches.
        is_last: whether the optimiser steps after it.
    """

    epoch: int
    slots: tuple[int, ...]
    positions: tuple[int, ...]
    step_size: int
    is_last: bool


@dataclass(frozen=True)
class EpochOrder:
    """The order of the images in every epoch, cut into steps, processes and micro-batches.

    The images of a step depend on neither the number of processes nor that of the micro-batches. A step holds whole
    pairs; its shares need not.

    Attributes:
        image_set: the training images.
        batch_size: images in a step, over all processes.
        accumulate: micro-batches that each process splits its share into.
        seed: of the order.
        balance: draw images with replacement so that real and fake are equally likely, as
            `--class_bal` of the published code; otherwise every epoch is a permutation.
        ranks: this process among others.
        pairs: a real and the fake of the same name stand one after the other and, if equally large, are augmented
            alike, so that what differs between them is the generator's doing alone.
    """

    image_set: ImageSet
    batch_size: int
    accumulate: int = 1
    seed: int = 0
    balance: bool = False
    ranks: Ranks = field(default_factory=Ranks)
    pairs: bool = False

    def __post_init__(self) -> None:
        if self.pairs and (self.balance or self.batch_size % 2):
            raise UserError("--pairs needs an even --bsize, and excludes --class_bal: pairs are balanced")
        if self.pairs:
            find_pairs(self.image_set)
        if self.batch_size < self.ranks.world_size * self.accumulate:
            raise UserError(
                f"--bsize {self.batch_size} is less than {self.ranks.world_size} processes times {self.accumulate} "
                "micro-batches: raise --bsize, which counts the images of all of them"
            )

    @property
    def steps(self) -> int:
        """Steps in an epoch; the last one may be smaller."""
        return -(-len(self.image_set) // self.batch_size)

    def positions(self, epoch: int) -> np.ndarray:
        """Places in the image set in the order of an epoch, (n,) int."""
        generator = np.random.default_rng([self.seed, _ORDER, epoch])
        count = len(self.image_set)
        if self.pairs:
            return find_pairs(self.image_set)[generator.permutation(count // 2)].ravel()
        if not self.balance:
            return generator.permutation(count)
        labels = np.array([item.label for item in self.image_set.items])
        weights = 1.0 / np.bincount(labels, minlength=2)[labels]
        return generator.choice(count, size=count, p=weights / weights.sum())

    def micro_batches(self, epoch: int, first_step: int = 0) -> Iterator[MicroBatch]:
        """What this process feeds forward in an epoch from step `first_step` on.

        In a last step of fewer images than processes, the processes left over get an empty micro-batch.
        """
        order = self.positions(epoch)
        for step in range(first_step, self.steps):
            slots = np.arange(step * self.batch_size, min((step + 1) * self.batch_size, len(order)))
            share = np.array_split(slots, self.ranks.world_size)[self.ranks.rank]
            parts = [part for part in np.array_split(share, self.accumulate) if len(part)] or [share]
            for number, part in enumerate(parts, start=1):
                places = tuple(order[part].tolist())
                seeds = tuple((part // 2 if self.pairs else part).tolist())
                yield MicroBatch(epoch, seeds, places, len(slots), number == len(parts))


@dataclass(frozen=True)
class Loaded:
    """A decoded and augmented micro-batch: images (N, H, W, 3) uint8, labels (N,), which images, and what was skipped.

    N is at least 1: where no image is left, one black image of no item keeps all processes in step.
    """

    images: np.ndarray
    labels: np.ndarray
    positions: tuple[int, ...]
    failures: tuple[str, ...]
    micro_batch: MicroBatch


class _Images(Dataset[Loaded]):
    def __init__(self, items: Sequence[ImageItem], augmentation: Augmentation, seed: int, *, training: bool) -> None:
        self.items = items
        self.augment = augmentation.training if training else augmentation.validation
        self.size = augmentation.crop_size
        self.seed = seed

    # Dataset asks for an index; a micro-batch is one.
    def __getitem__(self, index: MicroBatch) -> Loaded:
        images: list[np.ndarray] = []
        positions: list[int] = []
        failures: list[str] = []
        for slot, position in zip(index.slots, index.positions, strict=True):
            item = self.items[position]
            generator = np.random.default_rng([self.seed, _AUGMENT, index.epoch, slot])
            try:
                images.append(self.augment(decode_image(item.path), generator, str(item.path)))
            except UserError as error:
                failures.append(str(error))
            else:
                positions.append(position)
        labels = np.array([self.items[position].label for position in positions], dtype=np.float32)
        if not images:
            images, labels = [np.zeros((self.size, self.size, 3), np.uint8)], np.zeros(1, np.float32)
        return Loaded(np.stack(images), labels, tuple(positions), tuple(failures), index)


def load_training(
    order: EpochOrder,
    augmentation: Augmentation,
    *,
    epoch: int,
    first_step: int = 0,
    num_workers: int = 0,
    skip_bad_images: bool = False,
) -> Iterator[Loaded]:
    """Yield the micro-batches of an epoch, decoded and augmented; the same for any number of workers.

    Raises:
        UserError: an image cannot be used and bad images are not skipped, or a worker was killed.
    """
    images = _Images(order.image_set.items, augmentation, order.seed, training=True)
    return _load(images, order.micro_batches(epoch, first_step), num_workers, skip_bad_images)


def load_validation(
    image_set: ImageSet,
    augmentation: Augmentation,
    *,
    batch_size: int,
    epoch: int,
    seed: int,
    num_workers: int = 0,
    ranks: Ranks | None = None,
    skip_bad_images: bool = False,
) -> Iterator[Loaded]:
    """Yield the share of this process of a validation set, in order, as `Augmentation.validation` makes it.

    Raises:
        UserError: an image cannot be used and bad images are not skipped, or a worker was killed.
    """
    ranks = ranks or Ranks()
    mine = range(ranks.rank, len(image_set), ranks.world_size)
    parts = (tuple(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size))
    images = _Images(image_set.items, augmentation, seed, training=False)
    micro_batches = (MicroBatch(epoch, part, part, len(image_set), True) for part in parts)
    return _load(images, micro_batches, num_workers, skip_bad_images)


def _load(
    images: _Images, micro_batches: Iterator[MicroBatch], num_workers: int, skip_bad_images: bool
) -> Iterator[Loaded]:
    for loaded in decode_in_workers(images, micro_batches, num_workers):
        if loaded.failures and not skip_bad_images:
            raise UserError(loaded.failures[0])
        yield loaded
