"""Batches of images of equal size, in a fixed order, decoded by worker processes."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from images.decoding import Crop, decode_image, image_size
from images.sets import ImageItem, ImageSet
from utils.errors import UserError

# Images of different sizes are put into batches within this many batches' worth of neighbours: enough to
# fill batches when sizes alternate, and few enough to keep batches close to the order of the set.
_WINDOW_IN_BATCHES = 8

Plan = tuple[tuple[int, ...], ...]


@dataclass
class Batch:
    """Images of one size, on the device.

    Attributes:
        images: uint8 (N, 3, H, W), channels-last in memory, N >= 1.
        labels: int64 (N,); 0 real, 1 fake, -1 unknown.
        items: where each image comes from.
        positions: place of each image in the image set.
        index: number of batches of the plan that are done with after this one; as `start` it resumes there.
    """

    images: Tensor
    labels: Tensor
    items: tuple[ImageItem, ...]
    positions: tuple[int, ...]
    index: int


@dataclass(frozen=True)
class SkippedImage:
    """An image left out because it cannot be decoded, and why."""

    item: ImageItem
    reason: str


def plan_batches(image_set: ImageSet, batch_size: int, crop: Crop) -> Plan:
    """Positions in the image set that make up each batch: all of one size, close to the order of the set.

    Without a crop the sizes are read from the file headers. An image whose header cannot be read gets a batch
    of its own, and its error when it is decoded.

    Raises:
        UserError: `batch_size` below one.
    """
    if batch_size < 1:
        raise UserError(f"batch size is {batch_size}: use --bsize of at least 1")
    count = len(image_set)
    if crop.kind != "none":
        return tuple(tuple(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size))
    plan: list[tuple[int, ...]] = []
    window = _WINDOW_IN_BATCHES * batch_size
    for first in range(0, count, window):
        by_size: dict[object, list[int]] = {}
        for position in range(first, min(first + window, count)):
            by_size.setdefault(_size_or_own_group(image_set.items[position], position), []).append(position)
        for group in by_size.values():
            plan.extend(tuple(group[start : start + batch_size]) for start in range(0, len(group), batch_size))
    return tuple(plan)


def iterate_batches(
    image_set: ImageSet,
    *,
    batch_size: int,
    crop: Crop,
    seed: int,
    num_workers: int,
    device: torch.device,
    start: int = 0,
    skip_bad_images: bool = False,
    skipped: list[SkippedImage] | None = None,
    plan: Plan | None = None,
) -> Iterator[Batch]:
    """Yield the batches of the plan in order; the same for any number of workers.

    Args:
        image_set: what to read.
        batch_size: most images in a batch.
        crop: applied to each image.
        seed: of random crops.
        num_workers: decoding processes; 0 decodes in this one.
        device: where images and labels go.
        start: number of batches of the plan to pass over, `Batch.index` of the last one done.
        skip_bad_images: leave out images that cannot be decoded; a batch of none is not yielded.
        skipped: gets an entry for each image left out, when its batch is reached.
        plan: what `plan_batches` gave, if it is at hand.

    Raises:
        UserError: an image cannot be decoded (first in the order of the plan), or a worker was killed.
    """
    if plan is None:
        plan = plan_batches(image_set, batch_size, crop)
    loader = DataLoader(
        _DecodedBatches(image_set.items, plan, crop, seed),
        batch_size=None,
        sampler=range(start, len(plan)),
        num_workers=num_workers,
        collate_fn=_as_is,
        worker_init_fn=_ignore_keyboard,
    )
    for index, decoded in enumerate(_decoded(loader), start=start + 1):
        for position, reason in decoded.failures:
            if not skip_bad_images:
                raise UserError(reason)
            if skipped is not None:
                skipped.append(SkippedImage(image_set.items[position], reason))
        if decoded.images is not None:
            items = tuple(image_set.items[position] for position in decoded.positions)
            labels = [-1 if item.label is None else item.label for item in items]
            yield Batch(
                images=_to_device(decoded.images, device),
                labels=torch.tensor(labels, dtype=torch.int64).to(device),
                items=items,
                positions=decoded.positions,
                index=index,
            )


@dataclass(frozen=True)
class _Decoded:
    """What a worker sends: (N, H, W, 3) uint8, or None if no image could be decoded.

    Plain arrays travel through a pipe. Tensors would travel through shared memory, of which containers have
    64 MiB by default, and a worker that finds it full is killed.
    """

    images: np.ndarray | None
    positions: tuple[int, ...]
    failures: tuple[tuple[int, str], ...]


class _DecodedBatches(Dataset[_Decoded]):
    def __init__(self, items: Sequence[ImageItem], plan: Plan, crop: Crop, seed: int) -> None:
        self.items = items
        self.plan = plan
        self.crop = crop
        self.seed = seed

    def __getitem__(self, index: int) -> _Decoded:
        images: list[np.ndarray] = []
        positions: list[int] = []
        failures: list[tuple[int, str]] = []
        for position in self.plan[index]:
            item = self.items[position]
            try:
                images.append(self.crop(decode_image(item.path), seed=self.seed, name=item.name))
            except UserError as error:
                failures.append((position, str(error)))
            else:
                positions.append(position)
        return _Decoded(np.stack(images) if images else None, tuple(positions), tuple(failures))


def _decoded(loader: DataLoader[_Decoded]) -> Iterator[_Decoded]:
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a decoding process was killed, most likely for want of memory: use fewer --num_workers (or 0)"
        ) from error


def _to_device(images: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(images)
    if device.type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.permute(0, 3, 1, 2)


def _size_or_own_group(item: ImageItem, position: int) -> object:
    try:
        return image_size(item.path)
    except UserError:
        return position


def _as_is(decoded: Any) -> Any:
    return decoded


def _ignore_keyboard(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the main process decides when to stop, and ends these.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
