"""Which training images make up which step, for any number of processes, workers and resumed runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from cr_ud.augmentation import ImageTransform
from cr_ud.training_sets import find_pairs
from images.decoding import decode_image
from images.loading import decode_in_workers
from images.sets import ImageItem, ImageSet
from passes.processes import Ranks
from utils.errors import UserError

# streams of random numbers that must not meet: order of an epoch, augmentation
_ORDER, _AUGMENT = 1, 2


@dataclass(frozen=True)
class MicroBatch:
    """What one process feeds forward at once.

    Attributes:
        epoch: Counted from 0.
        slots: What seeds the augmentation: places in the order of the epoch, those of pairs if there are any.
        positions: The images there, as places in the image set.
        step_size: Images in the whole step, over all processes and micro-batches.
        is_last: Whether the optimiser steps after it.
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
        image_set: The training images.
        batch_size: Images in a step, over all processes.
        accumulate: Micro-batches that each process splits its share into.
        seed: Of the order and of the augmentation.
        balance: Draw images with replacement so that real and fake are equally likely, as
            `--class_bal` of the published code; otherwise every epoch is a permutation.
        ranks: This process among others.
        pairs: A real and the fake of the same name stand one after the other and, if equally large, are augmented
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
            self.positions(0)  # complains of images without a partner
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
    """A decoded and augmented micro-batch: images (N, H, W, 3) uint8, targets (N, ...), which images, what was skipped.

    N is at least 1: where no image is left, one black image of no item keeps all processes in step.
    """

    images: np.ndarray
    targets: np.ndarray
    positions: tuple[int, ...]
    failures: tuple[str, ...]
    micro_batch: MicroBatch


def label_of(item: ImageItem) -> np.float32:
    """0 real, 1 fake."""
    assert item.label is not None
    return np.float32(item.label)


@dataclass(frozen=True)
class Loader:
    """Decodes and augments micro-batches; what comes is the same for any number of workers.

    Attributes:
        transform: Of each image.
        target: What is to be learnt of an image, a NumPy value of the same shape for each; a function that can be
            sent to workers.
        num_workers: Decoding processes.
        skip_bad_images: Leave out images that cannot be used.
        decode: From a file to what the transform takes; a function that can be sent to workers.
    """

    transform: ImageTransform
    target: Callable[[ImageItem], Any] = label_of
    num_workers: int = 0
    skip_bad_images: bool = False
    decode: Callable[[Path], np.ndarray] = decode_image

    def training(self, order: EpochOrder, epoch: int, first_step: int = 0) -> Iterator[Loaded]:
        """Yield the micro-batches of an epoch.

        Raises:
            UserError: An image cannot be used and bad images are not skipped, or a worker was killed.
        """
        images = _Images(order.image_set, self, self.transform.training, order.seed)
        return self._load(images, order.micro_batches(epoch, first_step))

    def validation(
        self, image_set: ImageSet, batch_size: int, *, epoch: int = 0, seed: int = 0, ranks: Ranks | None = None
    ) -> Iterator[Loaded]:
        """Yield the share of this process of a validation set, in order.

        Raises:
            UserError: As `training`.
        """
        ranks = ranks or Ranks()
        mine = range(ranks.rank, len(image_set), ranks.world_size)
        parts = (tuple(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size))
        images = _Images(image_set, self, self.transform.validation, seed)
        return self._load(images, (MicroBatch(epoch, part, part, len(image_set), True) for part in parts))

    def _load(self, images: _Images, micro_batches: Iterator[MicroBatch]) -> Iterator[Loaded]:
        for loaded in decode_in_workers(images, micro_batches, self.num_workers):
            if loaded.failures and not self.skip_bad_images:
                raise UserError(loaded.failures[0])
            yield loaded


class _Images(Dataset[Loaded]):
    def __init__(self, image_set: ImageSet, loader: Loader, transform: Callable[..., np.ndarray], seed: int):
        self.items, self.equalization = image_set.items, image_set.equalization
        self.loader, self.transform, self.seed = loader, transform, seed

    # Dataset asks for an index; a micro-batch is one.
    def __getitem__(self, index: MicroBatch) -> Loaded:
        images: list[np.ndarray] = []
        positions: list[int] = []
        failures: list[str] = []
        for slot, position in zip(index.slots, index.positions, strict=True):
            path = self.items[position].path
            generator = np.random.default_rng([self.seed, _AUGMENT, index.epoch, slot])
            try:
                image = self.loader.decode(path)
                image = image if self.equalization is None else self.equalization(image)
                images.append(self.transform(image, generator, str(path)))
            except UserError as error:
                failures.append(str(error))
            else:
                positions.append(position)
        side = self.loader.transform.crop_size
        targets = [self.loader.target(self.items[position]) for position in positions or (0,)]
        stacked = np.stack(images or [np.zeros((side, side, 3), np.uint8)])
        return Loaded(stacked, np.stack(targets), tuple(positions), tuple(failures), index)
