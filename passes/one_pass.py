"""One pass over an image set that feeds any number of collectors; interrupted and resumed without a trace.

Each image is decoded once. What several collectors need of a batch (the normalised input, the logits, the values of
a forward pass) is computed once, by whoever asks first, through `PassBatch.memo`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from images.decoding import Crop
from images.loading import Batch, Plan, SkippedImage, iterate_batches, plan_batches
from images.sets import ImageItem, ImageSet
from passes.processes import Ranks
from utils.cli import GracefulInterrupt, progress
from utils.errors import Interrupted, UserError
from utils.files import read_npz, write_npz

T = TypeVar("T")
State = dict[str, np.ndarray]

_SECONDS_BETWEEN_SAVES = 60.0


class PassBatch:
    """A batch on its way through the collectors, with what has been computed from it so far."""

    def __init__(self, batch: Batch, preprocess: Callable[[Tensor], Tensor]) -> None:
        self.batch = batch
        self.preprocess = preprocess
        self._memory: dict[Hashable, Any] = {}

    @property
    def images(self) -> Tensor:
        """Images as decoded, (N, 3, H, W) uint8."""
        return self.batch.images

    @property
    def labels(self) -> Tensor:
        """0 real, 1 fake, -1 unknown, (N,) int64."""
        return self.batch.labels

    @property
    def items(self) -> tuple[ImageItem, ...]:
        """Where each image comes from."""
        return self.batch.items

    @property
    def inputs(self) -> Tensor:
        """Normalised input of the network, (N, 3, H, W) float32; made once and not to be written to."""
        return self.memo("inputs", lambda: self.preprocess(self.batch.images))

    def memo(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What `compute` returned when somebody first asked for `key` in this batch."""
        if key not in self._memory:
            self._memory[key] = compute()
        return self._memory[key]


class Collector(Protocol):
    """A statistic over images. Two collectors that saw the halves of a set merge into one that saw it all."""

    name: str
    """Name of its part of the saved state; no two collectors of a pass share one."""

    def update(self, batch: PassBatch) -> None:
        """Add a batch."""
        ...

    def state(self) -> State:
        """All that is needed to go on later, as plain arrays."""
        ...

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replace what was collected by a saved state."""
        ...

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add the state of a collector that saw other images."""
        ...


@dataclass
class PassReport:
    """What came of a pass.

    Attributes:
        images: Number of images that the collectors saw.
        skipped: Images left out because they cannot be decoded.
        resumed_at: Number of batches that an earlier run had done.
    """

    images: int = 0
    skipped: list[SkippedImage] = field(default_factory=list)
    resumed_at: int = 0


@dataclass(frozen=True)
class PassState:
    """Where and under which conditions the state of a pass is saved.

    Attributes:
        path: An .npz file; several processes add their rank to its name.
        conditions: All that the result depends on (arguments, digests); a state saved under others is refused.
        resume: Go on from the file if it is there; otherwise start anew and overwrite it.
        hint: What to tell a user whose run was interrupted.
    """

    path: Path
    conditions: Mapping[str, str]
    resume: bool = False
    hint: str = "run the same command again with --resume"


def run_pass(
    image_set: ImageSet,
    collectors: Sequence[Collector],
    *,
    preprocess: Callable[[Tensor], Tensor],
    device: torch.device,
    batch_size: int,
    crop: Crop,
    seed: int = 0,
    num_workers: int = 0,
    skip_bad_images: bool = False,
    state: PassState | None = None,
    ranks: Ranks | None = None,
    description: str = "images",
) -> PassReport:
    """Show every image of a set to every collector, in a fixed order.

    Under `torchrun` each process takes every n-th batch, and afterwards the collectors of rank 0 hold everything.

    Args:
        image_set: The images.
        collectors: Updated in the order given.
        preprocess: From uint8 images to the network's input, e.g. `Detector.inputs`.
        device: Where batches go.
        batch_size: Most images in a batch; only images of one size share a batch.
        crop: Applied to every image.
        seed: Of random crops.
        num_workers: Decoding processes.
        skip_bad_images: Leave out images that cannot be decoded instead of stopping.
        state: Where to save the state every minute and on Ctrl-C; without it the pass cannot be resumed.
        ranks: This process among others.
        description: Shown by the progress bar.

    Raises:
        UserError: An image cannot be decoded, or the saved state belongs to another run.
        Interrupted: After Ctrl-C or SIGTERM, with the state saved.
    """
    names = [collector.name for collector in collectors]
    if len(set(names)) != len(names):
        raise ValueError(f"two collectors share a name: {names}")
    ranks = ranks or Ranks()
    plan = plan_batches(image_set, batch_size, crop)[ranks.rank :: ranks.world_size]
    saved = None if state is None else _StateFile(state, ranks, plan)
    report = PassReport()
    start = saved.load(collectors, report, image_set) if saved is not None else 0
    report.resumed_at = start
    total = sum(len(positions) for positions in plan)
    done_before = sum(len(positions) for positions in plan[:start])
    batches = iterate_batches(
        image_set,
        batch_size=batch_size,
        crop=crop,
        seed=seed,
        num_workers=num_workers,
        device=device,
        start=start,
        skip_bad_images=skip_bad_images,
        skipped=report.skipped,
        plan=plan,
    )
    finished = start
    with GracefulInterrupt() as interrupt, progress(total=total, description=description) as bar:
        bar.update(done_before)
        for batch in batches:
            view = PassBatch(batch, preprocess)
            with torch.no_grad():
                for collector in collectors:
                    collector.update(view)
            report.images += len(batch.items)
            bar.update(sum(len(positions) for positions in plan[finished : batch.index]))
            finished = batch.index
            if interrupt.requested:
                break
            if saved is not None and saved.is_due() and finished < len(plan):
                saved.save(collectors, report, finished)
        else:
            finished = len(plan)
        if saved is not None and finished > start:
            # Also after the last batch: whatever stops the writing of results, the images need not be seen again.
            saved.save(collectors, report, finished)
        if interrupt.requested:
            hint = "nothing was saved" if state is None else f"state saved, {state.hint}"
            raise Interrupted(f"after {finished} of {len(plan)} batches; {hint}")
    if ranks.world_size > 1:
        _merge_ranks(collectors, report, ranks, image_set)
    return report


def discard_state(state: PassState, ranks: Ranks | None = None) -> None:
    """Remove the saved state of a pass once its results are written."""
    _state_path(state, ranks or Ranks()).unlink(missing_ok=True)


def _state_path(state: PassState, ranks: Ranks) -> Path:
    if ranks.world_size == 1:
        return state.path
    return state.path.with_name(f"{state.path.stem}.rank{ranks.rank}of{ranks.world_size}{state.path.suffix}")


class _StateFile:
    def __init__(self, state: PassState, ranks: Ranks, plan: Plan) -> None:
        self.path = _state_path(state, ranks)
        self.resume = state.resume
        # The plan fixes which images are in which batch, and so what "so many batches are done" means.
        self.conditions = {**{key: str(value) for key, value in state.conditions.items()}, "batches": str(len(plan))}
        self._last_save = time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self._last_save >= _SECONDS_BETWEEN_SAVES

    def save(self, collectors: Sequence[Collector], report: PassReport, finished: int) -> None:
        arrays: State = {
            f"{collector.name}/{key}": array for collector in collectors for key, array in collector.state().items()
        }
        skipped = [[entry.item.name, entry.reason] for entry in report.skipped]
        progress_made = {"finished": finished, "images": report.images, "skipped": skipped}
        write_npz(
            self.path,
            conditions=np.array(json.dumps(self.conditions, sort_keys=True)),
            progress=np.array(json.dumps(progress_made)),
            **arrays,
        )
        self._last_save = time.monotonic()

    def load(self, collectors: Sequence[Collector], report: PassReport, image_set: ImageSet) -> int:
        """Restore collectors and report; the number of batches done."""
        if not self.resume or not self.path.exists():
            return 0
        arrays = read_npz(self.path)
        try:
            conditions = dict(json.loads(str(arrays.pop("conditions"))))
            self._check(conditions)
            return self._restore(arrays, collectors, report, image_set)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.path} is not a saved state: remove it, or run without --resume") from error

    def _check(self, conditions: Mapping[str, str]) -> None:
        keys = sorted(conditions.keys() | self.conditions.keys())
        different = [
            f"{key} (was {conditions.get(key, 'absent')}, is {self.conditions.get(key, 'absent')})"
            for key in keys
            if conditions.get(key) != self.conditions.get(key)
        ]
        if different:
            raise UserError(
                f"{self.path} was saved under other conditions: {'; '.join(different)}: "
                "give the same arguments, or run without --resume"
            )

    @staticmethod
    def _restore(arrays: State, collectors: Sequence[Collector], report: PassReport, image_set: ImageSet) -> int:
        made = json.loads(str(arrays.pop("progress")))
        for collector in collectors:
            prefix = f"{collector.name}/"
            collector.load_state({k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})
        by_name = {item.name: item for item in image_set.items}
        report.images = int(made["images"])
        report.skipped.extend(SkippedImage(by_name[name], reason) for name, reason in made["skipped"])
        return int(made["finished"])


def _merge_ranks(collectors: Sequence[Collector], report: PassReport, ranks: Ranks, image_set: ImageSet) -> None:
    """Bring everything to rank 0, in the order of the ranks."""
    mine = (
        [collector.state() for collector in collectors],
        report.images,
        [(entry.item.name, entry.reason) for entry in report.skipped],
    )
    gathered = ranks.gather(mine)
    if gathered is None:
        return
    by_name = {item.name: item for item in image_set.items}
    for states, images, skipped in gathered[1:]:
        for collector, state in zip(collectors, states, strict=True):
            collector.merge(state)
        report.images += images
        report.skipped.extend(SkippedImage(by_name[name], reason) for name, reason in skipped)
