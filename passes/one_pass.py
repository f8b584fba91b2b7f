"""One pass over an image set that feeds any number of collectors; interrupted and resumed without a trace.

Each image is decoded once. What several collectors need of a batch (the normalised input, the logits, the values of
a forward pass) is computed once, by whoever asks first, through `PassBatch.memo`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from images.decoding import Crop
from images.loading import Batch, Plan, SkippedImage, iterate_batches, plan_batches
from images.sets import ImageSet
from lrp import UnsupportedLayerError
from passes.interrupts import GracefulInterrupt
from passes.processes import Ranks, SeparateJob
from utils.cli import progress
from utils.errors import Interrupted, UserError
from utils.files import read_npz, write_npz

T = TypeVar("T")
State = dict[str, np.ndarray]

_SECONDS_BETWEEN_SAVES = 60.0


@dataclass
class PassBatch(Batch):
    """A batch on its way through the collectors, with what has been computed from it so far.

    Attributes:
        positions: Place of each image in the set of the pass, as arrays are indexed.
    """

    positions: list[int]
    _memory: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.positions = list(self.positions)

    def memo(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What `compute` returned when somebody first asked for `key` in this batch."""
        if key not in self._memory:
            self._memory[key] = compute()
        return self._memory[key]

    @property
    def pixels(self) -> np.ndarray:
        """The images as arrays, (N, H, W, 3) uint8."""
        return self.images.permute(0, 2, 3, 1).cpu().numpy()

    def changed(self, change: Callable[[np.ndarray, str], np.ndarray]) -> Tensor:
        """The images after a change of each (H, W, 3), which is told its name; (N, 3, h, w) uint8 on the CPU."""
        changed = [change(image, item.name) for image, item in zip(self.pixels, self.items, strict=True)]
        return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2)

    def cropped(self, crop: Crop, seed: int) -> PassBatch:
        """The batch with every image cut in another way than the pass does; made once for all that want it."""

        def cut() -> PassBatch:
            images = self.changed(lambda image, name: crop(image, seed=seed, name=name))
            return replace(self, images=images.to(self.images.device))

        return self.memo(("cropped", crop, seed), cut)


class Collector(Protocol):
    """A statistic over images. Two collectors that saw the halves of a set merge into one that saw it all."""

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


class PerImage:
    """Some numbers of every image, in the order of the set: what most collectors are, but for `update`.

    Args:
        images: Number of images of the set.
        shape: Of the numbers of one image.
        dtype: Of the numbers.
    """

    def __init__(self, images: int, shape: tuple[int, ...], dtype: Any = np.float64) -> None:
        self.seen = np.zeros(images, dtype=bool)
        self.values = np.zeros((images, *shape), dtype=dtype)

    def put(self, positions: Sequence[int] | np.ndarray, values: np.ndarray) -> None:
        """Set the numbers (N, ...) of images that are seen now."""
        self.seen[positions] = True
        self.values[positions] = values

    def state(self) -> State:
        """`seen` (images,) and `values` (images, ...)."""
        return {"seen": self.seen.copy(), "values": self.values.copy()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replace everything by a saved state."""
        self.seen, self.values = state["seen"].copy(), state["values"].copy()

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add the images that another one saw."""
        self.put(state["seen"], state["values"][state["seen"]])


class Cropped:
    """A collector that sees the images of a pass cut in its own way."""

    def __init__(self, collector: Collector, crop: Crop, seed: int) -> None:
        self._collector, self._crop, self._seed = collector, crop, seed
        self.state, self.load_state, self.merge = collector.state, collector.load_state, collector.merge

    def update(self, batch: PassBatch) -> None:
        """Add a batch."""
        self._collector.update(batch.cropped(self._crop, self._seed))


@dataclass
class PassReport:
    """What came of a pass.

    Attributes:
        images: Number of images that the collectors saw.
        skipped: Images left out because they cannot be decoded.
        resumed_at: Number of batches that an earlier run had done.
        transparent: Images with transparent pixels, of which the colours below are shown.
    """

    images: int = 0
    skipped: list[SkippedImage] = field(default_factory=list)
    resumed_at: int = 0
    transparent: int = 0

    def skipped_names(self) -> list[list[str]]:
        """Name and reason of the images left out, as records have them."""
        return [[entry.item.name, entry.reason] for entry in self.skipped]

    def plain(self) -> dict[str, Any]:
        """As a saved state has it."""
        return {"images": self.images, "transparent": self.transparent, "skipped": self.skipped_names()}

    def add(self, plain: Mapping[str, Any], image_set: ImageSet) -> None:
        """Add what came of another part of the pass."""
        by_name = {item.name: item for item in image_set.items}
        self.images += int(plain["images"])
        self.transparent += int(plain["transparent"])
        self.skipped += [SkippedImage(by_name[name], reason) for name, reason in plain["skipped"]]


@dataclass(frozen=True)
class PassState:
    """Where and under which conditions the state of a pass is saved.

    Attributes:
        path: An .npz file; several processes add their rank to its name.
        conditions: All that the result depends on (settings, digests).
        resume: Go on from the file if it is there; otherwise start anew and overwrite it.
        lenient: Start anew where the file cannot be used, instead of refusing it.
    """

    path: Path
    conditions: Mapping[str, str]
    resume: bool = False
    lenient: bool = False


def run_pass(
    image_set: ImageSet,
    collectors: Mapping[str, Collector],
    *,
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
        collectors: By the name of its part of the saved state; updated in the order given.
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
    ranks = ranks or Ranks()
    plan = plan_batches(image_set, batch_size, crop)
    saved = None if state is None else _SavedState(state, ranks, len(plan))
    report = PassReport()
    done: Sequence[int] = ()
    numbers: Sequence[int] = range(len(plan))[ranks.rank :: ranks.world_size]
    if saved is not None:
        done, numbers = saved.load(collectors, report, image_set)
    report.resumed_at = len(done)
    todo: Plan = tuple(plan[number] for number in numbers)
    seen = sum(len(plan[number]) for number in done)
    batches = iterate_batches(
        image_set,
        batch_size=batch_size,
        crop=crop,
        seed=seed,
        num_workers=num_workers,
        device=device,
        skip_bad_images=skip_bad_images,
        skipped=report.skipped,
        plan=todo,
    )
    finished, updating = 0, False
    with (
        GracefulInterrupt() as interrupt,
        progress(total=seen + sum(map(len, todo)), description=description, shown=ranks.is_first) as bar,
    ):
        bar.update(seen)

        def keep() -> None:
            if saved is not None:
                saved.save(collectors, report, numbers[:finished])

        try:
            for batch in batches:
                view, updating = PassBatch(**vars(batch)), True
                try:
                    with torch.no_grad():
                        for collector in collectors.values():
                            collector.update(view)
                except UnsupportedLayerError as error:
                    raise UserError(f"{batch.items[0].path}: {error}; --crop and --resize choose the size") from error
                updating = False
                report.images += len(batch.items)
                report.transparent += batch.transparent
                bar.update(sum(map(len, todo[finished : batch.index])))
                finished = batch.index
                if interrupt.requested:
                    break
                if saved is not None and saved.is_due() and finished < len(todo):
                    keep()
            else:
                finished = len(todo)
        except (RuntimeError, UserError):
            # Whatever else fails while the processes of a group are told to stop, the wish to stop goes first.
            if not interrupt.requested or updating:
                raise
        # Also after the last batch: whatever stops the writing of results, the images need not be seen again.
        if finished or isinstance(ranks, SeparateJob):
            keep()
        if interrupt.requested:
            kept = state is not None and (finished or done)
            hint = "state saved, run the same command again with --resume" if kept else "nothing was saved"
            raise Interrupted(f"after {len(done) + finished} of {len(plan)} batches; {hint}")
    if ranks.meet:
        _merge_ranks(collectors, report, ranks, image_set)
    return report


class _SavedState:
    """The files of a pass's state: one, or one for each process."""

    def __init__(self, state: PassState, ranks: Ranks, batches: int) -> None:
        self._state, self._ranks = state, ranks
        # The plan fixes which images are in which batch, and so what "these batches are done" means.
        self._conditions = {**state.conditions, "batches": str(batches)}
        self._done: list[int] = []
        self._batches = range(batches)
        self._last_save = time.monotonic()
        self._path = state_part(state.path, ranks)
        group = {state_part(state.path, Ranks(rank, ranks.world_size)) for rank in range(ranks.world_size)}
        self._paths = state_files(state.path)
        # Files of another number of processes count until the first process has saved what is to be kept of them.
        self._superseded = [path for path in self._paths if path not in group]

    def is_due(self) -> bool:
        return time.monotonic() - self._last_save >= _SECONDS_BETWEEN_SAVES

    def save(self, collectors: Mapping[str, Collector], report: PassReport, finished: Sequence[int]) -> None:
        write_npz(
            self._path,
            conditions=np.array(json.dumps(self._conditions, sort_keys=True)),
            report=np.array(json.dumps(report.plain())),
            done=np.array([*self._done, *finished], dtype=np.int64),
            **joined_states(collectors),
        )
        while self._ranks.is_first and self._superseded:
            self._superseded.pop().unlink(missing_ok=True)
        self._last_save = time.monotonic()

    def load(
        self, collectors: Mapping[str, Collector], report: PassReport, image_set: ImageSet
    ) -> tuple[list[int], list[int]]:
        """Restore collectors and report; numbers of the batches that this process holds, and of those left for it.

        A state of as many processes goes back to each of them, so that the same sums are made as without the
        interruption. One of another number is merged in the first process, and the batches left are dealt anew.
        """
        parts = self._read() if self._state.resume else []
        if parts and self._superseded and isinstance(self._ranks, SeparateJob):
            raise UserError(
                f"{parts[0].path} is of another division into parts: give the same --part K/N, or remove it"
            )
        for part in parts:
            if part.path == self._path if not self._superseded else self._ranks.is_first:
                try:
                    _restore(part, collectors, report, image_set, merge=bool(self._done))
                except (KeyError, TypeError, ValueError) as error:
                    raise _unusable(part.path) from error
                self._done += part.done
        # What a process saves now is not for those to read that come to this place later.
        self._ranks.wait()
        finished = {number for part in parts for number in part.done}
        rank, size = self._ranks.rank, self._ranks.world_size
        dealt = self._batches if self._superseded else self._batches[rank::size]
        left = [number for number in dealt if number not in finished]
        return list(self._done), left[rank::size] if self._superseded else left

    def _read(self) -> list[SavedPart]:
        """What is there and fits; each batch in one part only."""
        parts: list[SavedPart] = []
        try:
            for path in self._paths:
                part = SavedPart.read(path)
                self._check(path, part.conditions)
                parts.append(part)
            return self._without_merged(parts)
        except UserError:
            if self._state.lenient:
                return []
            raise

    @staticmethod
    def _without_merged(parts: Iterable[SavedPart]) -> list[SavedPart]:
        """The parts but for those that went into another one just before the run was killed."""
        kept: list[SavedPart] = []
        for part in sorted(parts, key=lambda part: len(part.done), reverse=True):
            new = set(part.done).difference(*(other.done for other in kept))
            if new and len(new) < len(part.done):
                raise UserError(f"{part.path} and {kept[0].path} are of different runs: remove them")
            kept += [part] if new else []
        return sorted(kept, key=lambda part: part.path)

    def _check(self, path: Path, conditions: Mapping[str, str]) -> None:
        keys = sorted(conditions.keys() | self._conditions.keys())
        different = [
            f"{key} (was {conditions.get(key, 'absent')}, is {self._conditions.get(key, 'absent')})"
            for key in keys
            if conditions.get(key) != self._conditions.get(key)
        ]
        if different:
            raise UserError(
                f"{path} was saved under other conditions: {'; '.join(different)}: "
                "give the same arguments, or run without --resume"
            )


@dataclass(frozen=True)
class SavedPart:
    """What a process or a job has saved of a pass.

    Attributes:
        path: The file.
        conditions: Of `PassState`.
        report: Of the images it saw, as `PassReport.plain` has it.
        done: Numbers of its batches.
        arrays: States of the collectors.
    """

    path: Path
    conditions: dict[str, str]
    report: Mapping[str, Any]
    done: list[int]
    arrays: State

    @classmethod
    def read(cls, path: Path) -> SavedPart:
        """Read a file of a state.

        Raises:
            UserError: Missing, damaged or something else.
        """
        arrays = read_npz(path)
        try:
            conditions, report = (dict(json.loads(str(arrays.pop(name)))) for name in ("conditions", "report"))
            done = [int(number) for number in arrays.pop("done")]
            return cls(path, conditions, report, done, arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise _unusable(path) from error


def _unusable(path: Path) -> UserError:
    return UserError(f"{path} is not a saved state: remove it, or run without --resume")


def state_files(path: Path) -> list[Path]:
    """The files of a state that are there: that of one process, and those of several."""
    return [*([path] if path.exists() else []), *sorted(path.parent.glob(f"{path.stem}.rank*of*{path.suffix}"))]


def discard_state(path: Path) -> None:
    """Remove the saved state of a pass once its results are written."""
    for part in state_files(path):
        part.unlink(missing_ok=True)


def state_part(path: Path, ranks: Ranks) -> Path:
    """The file of one process or job."""
    if ranks.world_size == 1:
        return path
    return path.with_name(f"{path.stem}.rank{ranks.rank}of{ranks.world_size}{path.suffix}")


def _restore(
    part: SavedPart,
    collectors: Mapping[str, Collector],
    report: PassReport,
    image_set: ImageSet,
    *,
    merge: bool,
) -> None:
    for name, collector in collectors.items():
        (collector.merge if merge else collector.load_state)(state_of(part.arrays, name))
    report.add(part.report, image_set)


def joined_states(parts: Mapping[str, Any]) -> State:
    """The states of several collectors, or parts of one, as one state; each by its name."""
    return {f"{name}/{key}": array for name, part in parts.items() for key, array in part.state().items()}


def state_of(joined: Mapping[str, np.ndarray], name: str) -> State:
    """The state of one of them."""
    return {key.removeprefix(f"{name}/"): array for key, array in joined.items() if key.startswith(f"{name}/")}


def _merge_ranks(collectors: Mapping[str, Collector], report: PassReport, ranks: Ranks, image_set: ImageSet) -> None:
    """Bring everything to rank 0, in the order of the ranks."""
    states = [collector.state() for collector in collectors.values()]
    gathered = ranks.gather((states, report.plain()))
    if gathered is None:
        return
    for others, plain in gathered[1:]:
        for collector, state in zip(collectors.values(), others, strict=True):
            collector.merge(state)
        report.add(plain, image_set)
