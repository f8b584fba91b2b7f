import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from images.choice import Reading
from images.decoding import Crop, Equalization
from images.loading import (
    Batch,
    SkippedImage,
    decode_in_workers,
    iterate_batches,
    plan_batches,
)
from images.sets import ImageSet, find_loose_images
from utils.errors import UserError

CPU = torch.device("cpu")
SIZES = [(8, 8), (8, 8), (6, 9), (8, 8), (6, 9), (8, 8), (5, 5), (8, 8), (6, 9), (8, 8)]


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """Ten images of three sizes, five real, four fake, one unlabelled; grey value 10 x position."""
    for number, (height, width) in enumerate(SIZES):
        folder = tmp_path / ("0_real" if number < 5 else "1_fake" if number < 9 else "unknown")
        folder.mkdir(exist_ok=True)
        Image.new("L", (width, height), 10 * number).save(folder / f"{number}.png")
    return find_loose_images([tmp_path])


def batches(image_set: ImageSet, **changes: object) -> list[Batch]:
    arguments: dict[str, object] = {
        "batch_size": 3,
        "crop": Crop("none"),
        "seed": 0,
        "num_workers": 0,
        "device": CPU,
    }
    return list(iterate_batches(image_set, **(arguments | changes)))


def values(batch: Batch) -> list[int]:
    return [int(image.flatten()[0]) // 10 for image in batch.images]


def test_plan_keeps_the_order_where_sizes_are_equal(images: ImageSet) -> None:
    assert plan_batches(images, 4, Crop("center")) == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9))


def test_plan_groups_by_size_within_a_window(images: ImageSet) -> None:
    assert plan_batches(images, 3, Crop("none")) == ((0, 1, 3), (5, 7, 9), (2, 4, 8), (6,))
    # With batches of one the window is eight images.
    assert plan_batches(images, 1, Crop("none")) == tuple((i,) for i in (0, 1, 3, 5, 7, 2, 4, 6, 8, 9))


def test_plan_reads_headers_only(images: ImageSet) -> None:
    path = images.items[0].path
    path.write_bytes(path.read_bytes()[:45])
    assert plan_batches(images, 3, Crop("none"))[0] == (0, 1, 3)


def test_plan_refuses_an_empty_batch(images: ImageSet) -> None:
    with pytest.raises(UserError, match="--bsize"):
        plan_batches(images, 0, Crop("none"))


def test_batches_hold_what_the_plan_says(images: ImageSet) -> None:
    got = batches(images)
    assert [batch.positions for batch in got] == list(plan_batches(images, 3, Crop("none")))
    assert [batch.index for batch in got] == [1, 2, 3, 4]
    for batch in got:
        count = len(batch.items)
        assert batch.images.dtype == torch.uint8
        assert tuple(batch.images.shape) == (count, 3, *SIZES[batch.positions[0]])
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert values(batch) == list(batch.positions)
        assert batch.items == tuple(images.items[position] for position in batch.positions)
        assert batch.labels.dtype == torch.int64
    positions = [position for batch in got for position in batch.positions]
    labels = dict(zip(positions, torch.cat([batch.labels for batch in got]).tolist(), strict=True))
    assert [labels[position] for position in range(10)] == [0] * 5 + [1] * 4 + [-1]


@pytest.mark.parametrize("kind", ["none", "center", "random"])
def test_workers_change_nothing(images: ImageSet, kind: str) -> None:
    crop = Crop(kind, size=4)
    alone, helped = batches(images, crop=crop), batches(images, crop=crop, num_workers=2)
    assert [b.positions for b in alone] == [b.positions for b in helped]
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert other.images.is_contiguous(memory_format=torch.channels_last)


def test_random_crops_do_not_depend_on_batches(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    image_set = find_loose_images([tmp_path])
    whole = torch.cat([b.images for b in batches(image_set, crop=Crop("random"), batch_size=4)])
    single = torch.cat([b.images for b in batches(image_set, crop=Crop("random"), batch_size=1)])
    other = torch.cat([b.images for b in batches(image_set, crop=Crop("random"), batch_size=4, seed=1)])
    assert torch.equal(whole, single)
    assert not torch.equal(whole, other)


def test_a_plan_at_hand_is_used(images: ImageSet) -> None:
    assert [b.positions for b in batches(images, plan=((9, 7), (2,)))] == [(9, 7), (2,)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_image_stops(images: ImageSet, num_workers: int) -> None:
    images.items[4].path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"4\.png is damaged.*--skip_bad_images"):
        batches(images, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("crop", [Crop("none"), Crop("center", size=4)])
def test_bad_images_are_left_out_on_request(images: ImageSet, num_workers: int, crop: Crop) -> None:
    images.items[4].path.write_bytes(b"no image")
    cut = images.items[7].path
    cut.write_bytes(cut.read_bytes()[:45])
    images.items[6].path.unlink()
    skipped: list[SkippedImage] = []
    got = batches(images, skip_bad_images=True, skipped=skipped, num_workers=num_workers, crop=crop)
    assert sorted(position for batch in got for position in batch.positions) == [0, 1, 2, 3, 5, 8, 9]
    assert all(values(batch) == list(batch.positions) for batch in got)
    assert all(len(batch.items) == len(batch.labels) == len(batch.images) > 0 for batch in got)
    assert {entry.item.name: entry.item.path.name in entry.reason for entry in skipped} == {
        "0_real/4.png": True,
        "1_fake/6.png": True,
        "1_fake/7.png": True,
    }


def test_skipped_images_are_noted_with_their_batch(images: ImageSet) -> None:
    images.items[9].path.write_bytes(b"")
    skipped: list[SkippedImage] = []
    stream = iterate_batches(
        images,
        batch_size=5,
        crop=Crop("center", size=4),
        seed=0,
        num_workers=1,
        device=CPU,
        skip_bad_images=True,
        skipped=skipped,
    )
    assert len(next(stream).items) == 5
    assert skipped == []
    assert len(next(stream).items) == 4
    assert [entry.item.path.name for entry in skipped] == ["9.png"]


def test_no_images(images: ImageSet) -> None:
    assert batches(images.subset([])) == []


def test_leaving_early_ends_the_workers(images: ImageSet) -> None:
    before = set(multiprocessing.active_children())
    stream = iterate_batches(images, batch_size=1, crop=Crop("none"), seed=0, num_workers=2, device=CPU)
    next(stream)
    assert len(set(multiprocessing.active_children()) - before) == 2
    stream.close()
    assert set(multiprocessing.active_children()) - before == set()


def test_workers_can_be_started_afresh(images: ImageSet) -> None:
    """As on systems that do not fork."""
    usual = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        helped = batches(images, num_workers=1)
    finally:
        multiprocessing.set_start_method(usual, force=True)
    assert [values(batch) for batch in helped] == [values(batch) for batch in batches(images)]


def test_killed_worker_is_reported(images: ImageSet) -> None:
    stream = iterate_batches(
        images, batch_size=1, crop=Crop("none"), seed=0, num_workers=1, device=CPU, plan=((0,),) * 500
    )
    next(stream)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(UserError, match="--num_workers"):
        list(stream)


class Faulty(Dataset[int]):
    """Raises what looks like, but is not, the end of a worker."""

    def __getitem__(self, index: int) -> int:
        raise RuntimeError("no luck")


def test_fault_in_a_worker_is_no_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="no luck"):
        list(decode_in_workers(Faulty(), range(2), 1))


STOPPED = """
import signal, sys, time, torch
from images.decoding import Crop
from images.sets import find_loose_images
from images.loading import iterate_batches

stopped = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stopped.append(True))
stream = iterate_batches(find_loose_images([sys.argv[1]]), batch_size=1, crop=Crop("none"), seed=0,
                         num_workers=2, device=torch.device("cpu"))
late = 0
for batch in stream:
    print(batch.index, flush=True)
    time.sleep(0 if stopped else 0.2)
    late += bool(stopped)
    if late == 20:
        sys.exit("stopped when ready")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_group_lets_workers_go_on(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, and what `timeout` sends, reach the decoding processes too; the main process decides when to stop."""
    for place in range(60):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{place}.png")
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    time.sleep(0.1)
    os.killpg(process.pid, number)
    # twenty batches come after the signal, of which the workers had a handful at most
    _, errors = process.communicate(timeout=120)
    assert errors == "stopped when ready\n"


def test_workers_end_with_a_program_that_fails(tmp_path: Path) -> None:
    """The traceback keeps the stream of batches alive until the end."""
    for place in range(9):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{place}.png")
    code = STOPPED.replace("print(batch.index, flush=True)", "1 / 0")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_transparent_images_are_counted(tmp_path: Path) -> None:
    for place, alpha in enumerate((255, 128, 0)):
        Image.new("RGBA", (8, 8), (1, 2, 3, alpha)).save(tmp_path / f"{place}.png")
    (batch,) = batches(find_loose_images([tmp_path]))
    assert batch.transparent == 2


def test_scaled_images_share_batches_by_their_new_size(tmp_path: Path) -> None:
    """Those of one ratio, whatever their size."""
    for place, size in enumerate([(20, 10), (10, 10), (40, 20), (30, 30)]):
        Image.new("RGB", size).save(tmp_path / f"{place}.png")
    got = batches(find_loose_images([tmp_path]), crop=Crop("none", resize=8))
    assert [(batch.positions, tuple(batch.images.shape[2:])) for batch in got] == [((0, 2), (8, 16)), ((1, 3), (8, 8))]


def test_equalized_images_share_batches(images: ImageSet) -> None:
    alike = replace(images, equalization=Equalization(5, 90))
    got = batches(alike, batch_size=4)
    assert [batch.positions for batch in got] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert {tuple(batch.images.shape[2:]) for batch in got} == {(5, 5)}
    assert alike.digest() != images.digest()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_gpu_gets_the_same_batches(images: ImageSet, num_workers: int) -> None:
    images.items[6].path.write_bytes(b"no image")
    there = batches(images, device=torch.device("cuda"), num_workers=num_workers, skip_bad_images=True)
    here = batches(images, skip_bad_images=True)
    assert [batch.positions for batch in there] == [batch.positions for batch in here]
    for one, other in zip(there, here, strict=True):
        assert one.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one.images.cpu(), other.images)
        assert torch.equal(one.labels.cpu(), other.labels)
    with pytest.raises(UserError, match="damaged"):
        batches(images, device=torch.device("cuda"), num_workers=num_workers)


@pytest.mark.parametrize(("requested", "device", "expected"), [(3, "cpu", 3), (0, "cuda", 0), (None, "cpu", 0)])
def test_number_of_workers(requested: int | None, device: str, expected: int) -> None:
    assert Reading(num_workers=requested).workers_for(device) == expected


def test_number_of_workers_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of one machine share its cores, also where the system cannot say which cores are ours."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    numbers = []
    for processes in ("1", "4", "64"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        numbers.append(Reading().workers_for("cuda"))
    assert numbers == [8, 3, 1]


def test_sample_images(shared_dir: Path) -> None:
    image_set = find_loose_images([shared_dir / "forensynths_sample" / "cyclegan"]).subset(range(4))
    (batch,) = batches(image_set, batch_size=4)
    expected = np.stack([np.asarray(Image.open(item.path).convert("RGB")) for item in image_set.items])
    np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected)
