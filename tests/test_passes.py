"""The pass over an image set: order, sharing, interruption and resumption."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from images.decoding import Crop
from images.loading import plan_batches
from images.sets import ImageSet, find_loose_images
from passes import interrupts
from passes import one_pass as passes
from passes.interrupts import only_writer
from passes.one_pass import (
    Collector,
    PassBatch,
    PassReport,
    PassState,
    PerImage,
    State,
    discard_state,
    run_pass,
    state_files,
)
from passes.processes import Ranks
from utils.errors import Interrupted, UserError
from utils.files import read_npz, write_npz

CPU = torch.device("cpu")
SIZES = [(8, 8), (6, 9), (8, 8), (8, 8), (6, 9), (8, 8), (5, 5), (8, 8), (6, 9), (8, 8)]
BATCHES = 6
"""Number of batches of two that the images above make."""


class Sums:
    """Sums that depend on order and batches: any image lost, repeated or moved changes the last bits."""

    def __init__(self, after: Callable[[int], None] | None = None) -> None:
        self.positions: list[int] = []
        self.total = np.zeros(3)
        self.updates = 0
        self._after = after

    def update(self, batch: PassBatch) -> None:
        self.positions += batch.positions
        self.total = self.total * 1.1 + scaled(batch).double().mean((0, 2, 3)).numpy()
        self.updates += 1
        if self._after is not None:
            self._after(self.updates)

    def state(self) -> State:
        return {"positions": np.array(self.positions, dtype=np.int64), "total": self.total.copy()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.positions, self.total = state["positions"].tolist(), state["total"].copy()

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        self.positions += state["positions"].tolist()
        self.total = self.total + state["total"]


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """Ten images of three sizes, five real and five fake."""
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        folder = tmp_path / "images" / ("0_real" if number < 5 else "1_fake")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return find_loose_images([tmp_path / "images"])


@pytest.fixture
def state(tmp_path: Path) -> Callable[..., PassState]:
    def make(resume: bool = False, **conditions: str) -> PassState:
        return PassState(tmp_path / "state" / "pass.npz", {"weights": "a1", "rule": "beta0"} | conditions, resume)

    return make


def scaled(batch: PassBatch) -> Tensor:
    return batch.memo("scaled", lambda: batch.images.to(torch.float32) / 255)


def run(image_set: ImageSet, *collectors: Collector, **changes: Any) -> PassReport:
    """A pass with collectors called by their place."""
    arguments: dict[str, Any] = {"device": CPU, "batch_size": 2, "crop": Crop("none")}
    return run_pass(image_set, {str(place): one for place, one in enumerate(collectors)}, **(arguments | changes))


def interrupt_after(batch: int, times: int = 1) -> Callable[[int], None]:
    """Press Ctrl-C while the collector is at work on a batch, counted from one."""

    def after(updates: int) -> None:
        if updates == batch:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    return after


def assert_equal(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for key, array in one.items():
        np.testing.assert_array_equal(array, other[key], strict=True)


def uninterrupted(image_set: ImageSet, **changes: Any) -> State:
    collector = Sums()
    run(image_set, collector, **changes)
    return collector.state()


def test_every_image_is_seen_once_in_the_order_of_the_plan(images: ImageSet) -> None:
    plan = plan_batches(images, 2, Crop("none"))
    assert len(plan) == BATCHES
    collector = Sums()
    report = run(images, collector)
    assert collector.positions == [position for batch in plan for position in batch]
    assert sorted(collector.positions) == list(range(len(SIZES)))
    assert (report.images, report.skipped, report.resumed_at) == (len(SIZES), [], 0)


def test_a_batch_holds_images_of_one_size_with_all_that_belongs_to_them(images: ImageSet) -> None:
    seen: list[tuple[int, ...]] = []

    class Look(Sums):
        def update(self, batch: PassBatch) -> None:
            assert {SIZES[position] for position in batch.positions} == {tuple(batch.images.shape[2:])}
            assert batch.images.dtype == torch.uint8
            assert batch.items == tuple(images.items[position] for position in batch.positions)
            assert batch.labels.tolist() == [item.label for item in batch.items]
            assert not torch.is_grad_enabled()
            seen.append(tuple(batch.images.shape))

    run(images, Look())
    assert len(seen) == BATCHES


def test_what_collectors_share_is_computed_once_a_batch(images: ImageSet) -> None:
    calls: list[int] = []

    class Shares(Sums):
        def update(self, batch: PassBatch) -> None:
            super().update(batch)
            value = batch.memo(("mean", 1), lambda: (calls.append(1), scaled(batch).mean())[1])
            assert value == scaled(batch).mean()
            assert batch.memo(("mean", 2), lambda: None) is None

    run(images, Shares(), Shares())
    assert len(calls) == BATCHES


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_are_not_kept(images: ImageSet, num_workers: int) -> None:
    earlier: list[weakref.ref[object]] = []
    alive: list[int] = []

    class Watch(Sums):
        def update(self, batch: PassBatch) -> None:
            super().update(batch)
            alive.append(sum(reference() is not None for reference in earlier))
            earlier.extend([weakref.ref(batch), weakref.ref(batch.images), weakref.ref(scaled(batch))])

    run(images, Watch(), batch_size=1, num_workers=num_workers)
    assert len(alive) == len(SIZES)
    assert max(alive) == 0


@pytest.mark.parametrize("batch", range(1, BATCHES + 1))
def test_interrupted_and_resumed_is_as_uninterrupted(
    images: ImageSet, state: Callable[..., PassState], batch: int
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=f"after {batch} of {BATCHES} batches; state saved, run the same command"):
        run(images, Sums(after=interrupt_after(batch)), state=state())
    assert signal.getsignal(signal.SIGINT) == before
    assert state().path.is_file()

    collector = Sums()
    report = run(images, collector, state=state(resume=True))
    assert_equal(collector.state(), uninterrupted(images))
    assert collector.updates == BATCHES - batch
    assert (report.resumed_at, report.images) == (batch, len(SIZES))
    discard_state(state().path)
    assert list(state().path.parent.iterdir()) == []


def test_interrupted_again_and_again(images: ImageSet, state: Callable[..., PassState]) -> None:
    for done in range(1, BATCHES):
        with pytest.raises(Interrupted, match=f"after {done} of"):
            run(images, Sums(after=interrupt_after(1)), state=state(resume=True))
    collector = Sums()
    run(images, collector, state=state(resume=True))
    assert_equal(collector.state(), uninterrupted(images))


def test_each_collector_gets_its_own_part_of_the_state(images: ImageSet, state: Callable[..., PassState]) -> None:
    class Counts(Sums):
        def update(self, batch: PassBatch) -> None:
            self.positions.append(len(batch.items))

    with pytest.raises(Interrupted):
        run(images, Counts(), Sums(after=interrupt_after(2)), state=state())
    counts, sums = Counts(), Sums()
    run(images, counts, sums, state=state(resume=True))
    assert_equal(sums.state(), uninterrupted(images))
    assert counts.positions == [len(batch) for batch in plan_batches(images, 2, Crop("none"))]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing_about_resuming(
    images: ImageSet, state: Callable[..., PassState], num_workers: int
) -> None:
    with pytest.raises(Interrupted):
        run(images, Sums(after=interrupt_after(3)), state=state(), num_workers=num_workers)
    collector = Sums()
    run(images, collector, state=state(resume=True), num_workers=2 - num_workers)
    assert_equal(collector.state(), uninterrupted(images))


def test_random_crops_are_the_same_after_resuming(images: ImageSet, state: Callable[..., PassState]) -> None:
    crop = Crop("random", size=5)
    with pytest.raises(Interrupted):
        run(images, Sums(after=interrupt_after(2)), state=state(), crop=crop, seed=3)
    collector = Sums()
    run(images, collector, state=state(resume=True), crop=crop, seed=3)
    assert_equal(collector.state(), uninterrupted(images, crop=crop, seed=3))


def test_termination_is_treated_as_ctrl_c(images: ImageSet, state: Callable[..., PassState]) -> None:
    def terminate(updates: int) -> None:
        if updates == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="after 2 of"):
        run(images, Sums(after=terminate), state=state())


def test_two_signals_for_one_request(images: ImageSet, state: Callable[..., PassState]) -> None:
    """A process and its group are often told both."""
    with pytest.raises(Interrupted, match="after 3 of"):
        run(images, Sums(after=interrupt_after(3, times=2)), state=state())


def test_second_ctrl_c_stops_at_once(
    images: ImageSet, state: Callable[..., PassState], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "_SECONDS_OF_ONE_REQUEST", 0.0)
    collector = Sums(after=interrupt_after(3, times=2))
    with pytest.raises(KeyboardInterrupt) as caught:
        run(images, collector, state=state())
    assert not isinstance(caught.value, Interrupted)
    assert collector.updates == 3
    assert not state().path.exists()


def test_without_resume_the_pass_starts_anew(images: ImageSet, state: Callable[..., PassState]) -> None:
    with pytest.raises(Interrupted):
        run(images, Sums(after=interrupt_after(4)), state=state())
    collector = Sums()
    report = run(images, collector, state=state())
    assert (report.resumed_at, collector.updates) == (0, BATCHES)
    assert_equal(collector.state(), uninterrupted(images))


def test_resuming_without_a_state_starts_anew(images: ImageSet, state: Callable[..., PassState]) -> None:
    collector = Sums()
    assert run(images, collector, state=state(resume=True)).resumed_at == 0
    assert_equal(collector.state(), uninterrupted(images))


def test_nothing_is_saved_unless_asked_for(images: ImageSet, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Interrupted, match=f"after 2 of {BATCHES} batches; nothing was saved"):
        run(images, Sums(after=interrupt_after(2)))
    run(images, Sums())
    assert sorted(tmp_path.rglob("*")) == before


def test_state_of_a_finished_pass_shows_no_image_again(images: ImageSet, state: Callable[..., PassState]) -> None:
    run(images, Sums(), state=state())
    saved = state().path.read_bytes()
    collector = Sums()
    report = run(images, collector, state=state(resume=True))
    assert collector.updates == 0
    assert (report.images, report.resumed_at) == (len(SIZES), BATCHES)
    assert_equal(collector.state(), uninterrupted(images))
    assert state().path.read_bytes() == saved


@pytest.mark.parametrize(("interval", "saves"), [(0.0, BATCHES), (3600.0, 1)])
def test_state_is_saved_now_and_then(
    images: ImageSet,
    state: Callable[..., PassState],
    monkeypatch: pytest.MonkeyPatch,
    interval: float,
    saves: int,
) -> None:
    written: list[int] = []

    def write(path: Path, **arrays: np.ndarray) -> None:
        written.append(len(arrays["0/positions"]))
        write_npz(path, **arrays)

    monkeypatch.setattr(passes, "_SECONDS_BETWEEN_SAVES", interval)
    monkeypatch.setattr(passes, "write_npz", write)
    run(images, Sums(), state=state())
    assert len(written) == saves
    assert written[-1] == len(SIZES)


def test_a_crash_costs_no_more_than_since_the_last_save(
    images: ImageSet, state: Callable[..., PassState], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(updates: int) -> None:
        if updates == 4:
            raise FloatingPointError

    monkeypatch.setattr(passes, "_SECONDS_BETWEEN_SAVES", 0.0)
    with pytest.raises(FloatingPointError):
        run(images, Sums(after=crash), state=state())
    collector = Sums()
    assert run(images, collector, state=state(resume=True)).resumed_at == 3
    assert_equal(collector.state(), uninterrupted(images))


@pytest.mark.parametrize(
    ("conditions", "batch_size", "named", "unnamed"),
    [
        ({"weights": "b2"}, 2, ["weights (was a1, is b2)"], ["rule", "batches"]),
        ({"weights": "b2", "rule": "beta1"}, 2, ["rule (was beta0, is beta1)", "weights (was a1, is b2)"], []),
        ({"seed": "1"}, 2, ["seed (was absent, is 1)"], ["weights", "rule"]),
        ({}, 5, ["batches (was 6, is 4)"], ["weights", "rule"]),
    ],
)
def test_state_of_another_run_is_refused(
    images: ImageSet,
    state: Callable[..., PassState],
    conditions: dict[str, str],
    batch_size: int,
    named: list[str],
    unnamed: list[str],
) -> None:
    with pytest.raises(Interrupted):
        run(images, Sums(after=interrupt_after(2)), state=state())
    saved = state().path.read_bytes()
    collector = Sums()
    with pytest.raises(UserError, match=r"saved under other conditions.*without --resume") as caught:
        run(images, collector, state=state(resume=True, **conditions), batch_size=batch_size)
    assert all(text in str(caught.value) for text in [*named, str(state().path)])
    assert not any(f"{text} (was" in str(caught.value) for text in unnamed)
    assert collector.updates == 0
    assert state().path.read_bytes() == saved


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def not_a_zip(path: Path) -> None:
    path.write_bytes(b"nothing of the kind")


def without(*names: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        write_npz(path, **{name: array for name, array in read_npz(path).items() if name not in names})

    return damage


def with_report(text: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        write_npz(path, **(read_npz(path) | {"report": np.array(text)}))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        not_a_zip,
        without("conditions"),
        without("report"),
        without("done"),
        without("0/total"),
        with_report("no json"),
        with_report("7"),
        with_report("{}"),
        with_report('{"images": 4, "transparent": 0, "skipped": [["gone.png", "damaged"]]}'),
    ],
)
def test_damaged_state_is_refused(
    images: ImageSet, state: Callable[..., PassState], damage: Callable[[Path], None]
) -> None:
    with pytest.raises(Interrupted):
        run(images, Sums(after=interrupt_after(2)), state=state())
    damage(state().path)
    with pytest.raises(UserError, match=re.escape(str(state().path)) + ".*remove it"):
        run(images, Sums(), state=state(resume=True))
    assert run(images, Sums(), state=state()).images == len(SIZES)


def test_bad_image_stops_the_pass(images: ImageSet) -> None:
    cut(images.items[3].path)
    collector = Sums()
    with pytest.raises(UserError, match=r"3\.png"):
        run(images, collector)
    assert 3 not in collector.positions


@pytest.mark.parametrize("crop", [Crop("none"), Crop("center", size=4)])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_skipped_images_are_remembered(
    images: ImageSet, state: Callable[..., PassState], batch: int, crop: Crop
) -> None:
    """Also where no image of a batch is left: 6 and 7 make a batch of the cropped set, and 9 is in its last."""
    bad = [1, 6, 7, 8, 9]
    for position in bad:
        images.items[position].path.write_bytes(b"no image")
    whole = Sums()
    first = run(images, whole, crop=crop, skip_bad_images=True)
    assert sorted(whole.positions) == [0, 2, 3, 4, 5]
    assert sorted(entry.item.name for entry in first.skipped) == [images.items[position].name for position in bad]
    assert all(entry.item.path.name in entry.reason for entry in first.skipped)
    assert first.images == 5

    with pytest.raises(Interrupted):
        run(images, Sums(after=interrupt_after(batch)), crop=crop, skip_bad_images=True, state=state())
    resumed = Sums()
    report = run(images, resumed, crop=crop, skip_bad_images=True, state=state(resume=True))
    assert_equal(resumed.state(), whole.state())
    assert (report.skipped, report.images) == (first.skipped, first.images)
    # And once more from the state of the finished pass.
    again = run(images, Sums(), crop=crop, skip_bad_images=True, state=state(resume=True))
    assert (again.skipped, again.images) == (first.skipped, first.images)


def test_no_images(images: ImageSet, state: Callable[..., PassState]) -> None:
    collector = Sums()
    assert run(images.subset([]), collector, state=state()).images == 0
    assert collector.updates == 0
    assert not state().path.exists()


def test_state_that_cannot_be_written_is_said(images: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="is a file, not a folder"):
        run(images, Sums(), state=PassState(tmp_path / "file" / "state.npz", {}))


class Counts:
    """How often each image was seen; what others saw is added."""

    def __init__(self, crash_at: int = 0) -> None:
        self.times = np.zeros(len(SIZES), dtype=np.int64)
        self._crash_at = crash_at
        self._updates = 0

    def update(self, batch: PassBatch) -> None:
        self._updates += 1
        if self._updates == self._crash_at:
            raise FloatingPointError
        self.times[batch.positions] += 1

    def state(self) -> State:
        return {"times": self.times.copy()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.times = state["times"].copy()

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        self.times = self.times + state["times"]


class Together(Ranks):
    """Processes of a group as threads; the slow ones come late to everything."""

    def meet(self, barrier: threading.Barrier, values: list[Any]) -> Together:
        object.__setattr__(self, "_barrier", barrier)
        object.__setattr__(self, "_values", values)
        return self

    def wait(self) -> None:
        self._barrier.wait(timeout=20)

    def gather(self, value: Any) -> list[Any] | None:
        self._values[self.rank] = value
        self.wait()
        return list(self._values) if self.is_first else None


def run_together(image_set: ImageSet, processes: int, state: PassState, crash_at: int = 0) -> np.ndarray:
    """How often the first of so many processes has seen each image; it or its last peer may crash at a batch."""
    barrier, values = threading.Barrier(processes), [None] * processes
    collectors = [Counts(crash_at if rank == processes - 1 else 0) for rank in range(processes)]

    def work(rank: int) -> None:
        time.sleep(0.05 * rank)
        ranks = Together(rank, processes).meet(barrier, values)
        with contextlib.suppress(FloatingPointError, threading.BrokenBarrierError):
            try:
                run(image_set, collectors[rank], state=state, ranks=ranks)
            except FloatingPointError:
                barrier.abort()
                raise

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return collectors[0].times


@pytest.mark.parametrize("processes", [(1, 2), (2, 1), (2, 3), (3, 2), (2, 2), (1, 2, 1), (2, 1, 2), (3, 2, 1)])
def test_any_number_of_processes_goes_on(
    images: ImageSet, state: Callable[..., PassState], monkeypatch: pytest.MonkeyPatch, processes: tuple[int, ...]
) -> None:
    """Killed at its second batch every time, and saved after every batch: no image is lost or seen twice."""
    monkeypatch.setattr(passes, "_SECONDS_BETWEEN_SAVES", 0.0)
    for number in processes[:-1]:
        run_together(images, number, state(resume=True), crash_at=2)
        assert state_files(state().path)
    times = run_together(images, processes[-1], state(resume=True))
    assert times.tolist() == [1] * len(SIZES)
    discard_state(state().path)
    assert list(state().path.parent.iterdir()) == []


def test_states_of_other_runs_do_not_mix(
    images: ImageSet, state: Callable[..., PassState], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that starts anew does not go on, after an interruption, from what another one has left."""
    monkeypatch.setattr(passes, "_SECONDS_BETWEEN_SAVES", 0.0)
    run_together(images, 2, state(), crash_at=2)
    run_together(images, 1, state(), crash_at=3)
    assert state_files(state().path) == [state().path]
    assert run_together(images, 1, state(resume=True)).tolist() == [1] * len(SIZES)
    # Both are there: the first run was killed between writing and removing.
    run_together(images, 2, state(resume=True))
    parts = {path: path.read_bytes() for path in state_files(state().path)}
    run_together(images, 1, state(resume=True))
    for path, data in parts.items():
        path.write_bytes(data)
    assert run_together(images, 1, state(resume=True)).tolist() == [1] * len(SIZES)


@pytest.mark.parametrize("damage", [cut, without("done")])
def test_a_lenient_pass_starts_anew_where_the_state_does_not_fit(
    images: ImageSet, state: Callable[..., PassState], damage: Callable[[Path], None]
) -> None:
    def lenient(**conditions: str) -> PassState:
        return replace(state(resume=True, **conditions), lenient=True)

    with pytest.raises(Interrupted):
        run(images, Sums(after=interrupt_after(2)), state=lenient())
    assert run(images, Sums(), state=lenient()).resumed_at == 2
    collector = Sums()
    assert run(images, collector, state=lenient(weights="b2")).resumed_at == 0
    assert_equal(collector.state(), uninterrupted(images))
    damage(state().path)
    assert run(images, Sums(), state=lenient(weights="b2")).resumed_at == 0


def test_numbers_of_images_merge_by_place() -> None:
    halves = [PerImage(4, (2,), np.float32) for _ in range(2)]
    halves[0].put([0, 2], np.array([[1, np.nan], [3, 4]]))
    halves[1].put([3], np.array([[7, 8]]))
    whole = PerImage(4, (2,), np.float32)
    whole.load_state(halves[0].state())
    whole.merge(halves[1].state())
    assert whole.seen.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(whole.values, np.array([[1, np.nan], [0, 0], [3, 4], [7, 8]], np.float32))


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "states" / "pass.npz"
    code = (
        f"from pathlib import Path; from passes.interrupts import only_writer\nwith only_writer(Path({str(path)!r})):"
    )
    with only_writer(path):
        other = subprocess.run([sys.executable, "-c", f"{code} pass"], capture_output=True, text=True, check=False)
        assert "another run is writing these results" in other.stderr
        with only_writer(path.with_name("other.npz")):
            pass
    killed = f"import os\n{code} os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -9
    with only_writer(path):
        pass
    assert list(path.parent.iterdir()) == []
