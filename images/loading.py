"""Batches of images of equal size, in a fixed order, decoded by worker processes."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from images.decoding import Crop, image_size, read_image
from images.sets import ImageItem, ImageSet
from utils.errors import UserError

# Images of different sizes are put into batches within this many batches' worth of neighbours: enough to
# fill batches when sizes alternate, and few enough to keep batches close to the order of the set.
_WINDOW_IN_BATCHES = 8

_CAN_WAIT_FOR_SIGNALS = hasattr(signal, "sigwaitinfo")  # not on macOS


Plan = tuple[tuple[int, ...], ...]
T = TypeVar("T")


@dataclass
class Batch:
    """Images of one size, on the device.

    Attributes:
        images: uint8 (N, 3, H, W), channels-last in memory, N >= 1.
        labels: int64 (N,); 0 real, 1 fake, -1 unknown.
        items: where each image comes from.
        positions: place of each image in the image set.
        index: number of batches of the plan that are done with after this one.
        transparent: how many of the images have transparent pixels, of which the colours below are shown.
    """

    images: Tensor
    labels: Tensor
    items: tuple[ImageItem, ...]
    positions: Sequence[int]
    index: int
    transparent: int = 0


@dataclass(frozen=True)
class SkippedImage:
    """An image left out because it cannot be decoded, and why."""

    item: ImageItem
    reason: str


def plan_batches(image_set: ImageSet, batch_size: int, crop: Crop) -> Plan:
    """Positions in the image set that make up each batch: all of one size, close to the order of the set.

    Where the size depends on the image it is worked out from the file's header. An image whose header cannot be read
    gets a batch of its own, and its error when it is decoded.

    Raises:
        UserError: `batch_size` below one.
    """
    if batch_size < 1:
        raise UserError(f"batch size is {batch_size}: use --bsize of at least 1")
    count = len(image_set)
    if crop.kind != "none" or image_set.equalization is not None:
        return tuple(tuple(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size))
    plan: list[tuple[int, ...]] = []
    window = _WINDOW_IN_BATCHES * batch_size
    for first in range(0, count, window):
        by_size: dict[object, list[int]] = {}
        for position in range(first, min(first + window, count)):
            by_size.setdefault(_size_or_own_group(image_set.items[position], position, crop), []).append(position)
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
        skip_bad_images: leave out images that cannot be decoded; a batch of none is not yielded.
        skipped: gets an entry for each image left out, when its batch is reached.
        plan: what `plan_batches` gave, if it is at hand.

    Raises:
        UserError: an image cannot be decoded (first in the order of the plan), or a worker was killed.
    """
    if plan is None:
        plan = plan_batches(image_set, batch_size, crop)
    batches = decode_in_workers(_DecodedBatches(image_set, plan, crop, seed), range(len(plan)), num_workers)
    for index, (decoded, tensors) in enumerate(_on_device(batches, device), start=1):
        for position, reason in decoded.failures:
            if not skip_bad_images:
                raise UserError(reason)
            if skipped is not None:
                skipped.append(SkippedImage(image_set.items[position], reason))
        if tensors:
            images, labels = tensors
            yield Batch(
                images=images.permute(0, 3, 1, 2),
                labels=labels,
                items=tuple(image_set.items[position] for position in decoded.positions),
                positions=decoded.positions,
                index=index,
                transparent=decoded.transparent,
            )


def decode_in_workers(dataset: Dataset[T], indices: Iterable[Any], num_workers: int) -> Iterator[T]:
    """What `dataset` has at each of the indices, in order, read by so many processes; 0: by this one.

    The processes are started at once, and stop when the iterator is dropped.

    Raises:
        UserError: a process was killed.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=indices,
        num_workers=num_workers,
        collate_fn=_as_is,
        worker_init_fn=_prepare_worker,
    )
    with _sigterm_held_back():
        results = iter(loader)
    return _reported(results)


@contextmanager
def _sigterm_held_back() -> Iterator[None]:
    """Processes started here are born deaf to SIGTERM, until they can tell whose it is (see `_obey_parent`)."""
    if not _CAN_WAIT_FOR_SIGNALS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reported(results: Iterator[T]) -> Iterator[T]:
    try:
        yield from results
    except RuntimeError as error:
        if "killed by signal" not in str(error) and "exited unexpectedly" not in str(error):
            raise
        raise UserError(
            "a decoding process was killed, most likely for want of memory: use fewer --num_workers (or 0)"
        ) from error


def _prepare_worker(worker: int) -> None:
    # Ctrl-C and SIGTERM reach every process of the group; the main process decides when to stop, and ends these.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _CAN_WAIT_FOR_SIGNALS:
        threading.Thread(target=_obey_parent, daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _obey_parent() -> None:
    """End this process at a SIGTERM of its parent, which waits for it at its exit, and at nobody else's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


@dataclass(frozen=True)
class _Decoded:
    """What a worker sends: (N, H, W, 3) uint8, or None if no image could be decoded.

    Plain arrays travel through a pipe. Tensors would travel through shared memory, of which containers have
    64 MiB by default, and a worker that finds it full is killed.
    """

    images: np.ndarray | None
    labels: np.ndarray
    positions: tuple[int, ...]
    failures: tuple[tuple[int, str], ...]
    transparent: int


class _DecodedBatches(Dataset[_Decoded]):
    def __init__(self, image_set: ImageSet, plan: Plan, crop: Crop, seed: int) -> None:
        self.image_set = image_set
        self.plan = plan
        self.crop = crop
        self.seed = seed

    def __getitem__(self, index: int) -> _Decoded:
        images: list[np.ndarray] = []
        positions: list[int] = []
        failures: list[tuple[int, str]] = []
        transparent = 0
        for position in self.plan[index]:
            item = self.image_set.items[position]
            try:
                decoded = read_image(item.path)
            except UserError as error:
                failures.append((position, str(error)))
                continue
            equalize = self.image_set.equalization
            pixels = decoded.pixels if equalize is None else equalize(decoded.pixels)
            images.append(self.crop(pixels, seed=self.seed, name=item.name))
            positions.append(position)
            transparent += decoded.transparent
        labels = [self.image_set.items[position].label for position in positions]
        return _Decoded(
            np.stack(images) if images else None,
            np.array([-1 if label is None else label for label in labels], dtype=np.int64),
            tuple(positions),
            tuple(failures),
            transparent,
        )


def _on_device(batches: Iterator[_Decoded], device: torch.device) -> Iterator[tuple[_Decoded, list[Tensor]]]:
    """Images and labels on the device; of a batch without images nothing."""
    if device.type != "cuda":
        for decoded in batches:
            yield decoded, [tensor.to(device) for tensor in _tensors(decoded)]
        return
    # The next batch is decoded, pinned and copied while this one is computed on.
    stream = torch.cuda.Stream(device)
    with ThreadPoolExecutor(1) as thread:
        staged = thread.submit(_stage, batches, stream)
        while (entry := staged.result()) is not None:
            staged = thread.submit(_stage, batches, stream)
            decoded, tensors, copied = entry
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            for tensor in tensors:
                tensor.record_stream(current)
            yield decoded, tensors


def _stage(
    batches: Iterator[_Decoded], stream: torch.cuda.Stream
) -> tuple[_Decoded, list[Tensor], torch.cuda.Event] | None:
    decoded = next(batches, None)
    if decoded is None:
        return None
    with torch.cuda.stream(stream):
        tensors = [tensor.pin_memory().to(stream.device, non_blocking=True) for tensor in _tensors(decoded)]
        return decoded, tensors, stream.record_event()


def _tensors(decoded: _Decoded) -> list[Tensor]:
    return [] if decoded.images is None else [torch.from_numpy(decoded.images), torch.from_numpy(decoded.labels)]


def _size_or_own_group(item: ImageItem, position: int, crop: Crop) -> object:
    try:
        return crop.output_size(*image_size(item.path))
    except UserError:
        return position


def _as_is(decoded: Any) -> Any:
    return decoded
