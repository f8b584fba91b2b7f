"""Training runs of a tiny network: resuming, processes, failures, outputs."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from ranking_runs import run_main
from torch import nn
from torch.nn.functional import conv2d, cross_entropy
from training_helpers import register_tiny, write_images

from cr_ud import checkpointing
from cr_ud.augmentation import Augmenter
from cr_ud.initialisation import initial_model, make_high_pass
from cr_ud.options import Augmentation, Monitoring, Optimisation, TrainingImages
from cr_ud.schedule import PlateauSchedule
from cr_ud.task import Task
from cr_ud.trainer import Trainer, Training
from cr_ud.training_data import EpochOrder, Loader
from cr_ud.training_log import LogRow, read_log
from cr_ud.training_run import run_training
from cr_ud.training_sets import find_pairs, find_sets, find_training_set
from detectors.checkpoints import read_state
from detectors.detector import load_detector
from detectors.networks import build_model
from images.sets import ImageItem
from passes.options import RunOptions
from passes.processes import Ranks
from utils.errors import Interrupted, UserError
from utils.figures import figure_formats

HELPERS = Path(__file__).with_name("training_helpers.py")
TINY = ["--init", "scratch", "--load_size", "24", "--crop_size", "16", "--bsize", "8", "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> None:
    register_tiny()


@pytest.fixture(scope="module", autouse=True)
def _no_figures() -> Iterator[None]:
    """Drawing curves takes longer than all else about these runs: only tests with `png` or `pdf_too` do."""
    with figure_formats():
        yield


@pytest.fixture
def png(_no_figures: None) -> Iterator[None]:
    with figure_formats("png"):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_images(root / "train")
    write_images(root / "val", number=4)
    return root


def arguments(data: Path, output_dir: Path, *more: str, arch: str = "tiny-dropout") -> list[str]:
    folders = ["--train_dir", str(data / "train"), "--val_dir", str(data / "val"), "--output_dir", str(output_dir)]
    return ["--arch", arch, *folders, *TINY, "--lr", "0.01", "--log_every", "1", *more]


def train(data: Path, output_dir: Path, *more: str, arch: str = "tiny-dropout") -> Path:
    """Run the script in this process; the folder of the run."""
    run_main("train_cr_ud", *arguments(data, output_dir, *more, arch=arch))
    return output_dir / "training" / arch / "rgb"


def timeless(folder: Path) -> list[LogRow]:
    return [replace(row, images_per_s=None) for row in read_log(folder / "log.csv")]


def weights(folder: Path, name: str = "final.pth") -> dict[str, torch.Tensor]:
    return read_state(folder / name)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.usefixtures("pdf_too")
def test_training_learns_and_leaves_everything_behind(data: Path, tmp_path: Path) -> None:
    folder = train(data, tmp_path, "--epochs", "8", "--val_every", "4", "--blur_jpg", "0", "--export_fp16", arch="tiny")
    rows = read_log(folder / "log.csv")
    last = rows[-1]
    assert (last.kind, last.step, last.epoch, last.images) == ("epoch", 48, 8, 16)
    assert last.metrics["ap"] > 0.95
    assert [row.step for row in rows if row.kind == "train"] == list(range(1, 49))
    assert [row.step for row in rows if row.kind == "validation"] == [step for step in range(4, 48, 4) if step % 6]
    detector = load_detector("tiny", folder / "final.pth", "cpu")
    half = load_detector("tiny", folder / "final.safetensors", "cpu")
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    logits = detector.model(detector.inputs(images))
    torch.testing.assert_close(half.model(half.inputs(images)), logits, atol=1e-2, rtol=1e-2)
    assert list(torch.load(folder / "final.pth", weights_only=True)) == ["model"]
    for name in ("best.pth", "checkpoint.pth"):
        load_detector("tiny", folder / name, "cpu")
    for name in ("curves.png", "curves.pdf"):
        assert (folder / name).stat().st_size > 1000
    facts = json.loads((folder / "final.pth.json").read_text())
    assert facts["training_images"] == {"cat": {"fake": 12, "real": 12}, "dog": {"fake": 12, "real": 12}}
    assert facts["steps"] == 48


def test_best_is_the_epoch_of_the_highest_accuracy(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[tuple[float, dict[str, torch.Tensor]]] = []
    judge = Trainer._judge

    def spy(self: Trainer, result: Any, schedule: Any) -> bool:
        state = self.network.model.state_dict()
        states.append((result[1]["acc"], {key: value.clone() for key, value in state.items()}))
        return judge(self, result, schedule)

    monkeypatch.setattr(Trainer, "_judge", spy)
    folder = train(data, tmp_path, "--epochs", "6", arch="tiny")
    best = max(accuracy for accuracy, _ in states)
    first = next(state for accuracy, state in states if accuracy == best)
    assert equal(weights(folder, "best.pth"), first)
    assert equal(weights(folder), states[-1][1])


@pytest.mark.parametrize("stop_after", [2, 6, 9])
def test_resumed_run_equals_uninterrupted_one(data: Path, tmp_path: Path, stop_after: int) -> None:
    more = ("--patience", "1", "--val_every", "4", "--log_every", "4", "--class_bal")
    whole = train(data, tmp_path / "whole", "--epochs", "3", *more)
    train(data, tmp_path / "parts", "--max_steps", str(stop_after), *more)
    parts = train(data, tmp_path / "parts", "--epochs", "3", "--resume", *more)
    assert equal(weights(whole), weights(parts))
    assert timeless(whole) == timeless(parts)
    saved, other = (torch.load(folder / "checkpoint.pth", weights_only=True) for folder in (whole, parts))
    torch.testing.assert_close(saved["optimizer"]["state"], other["optimizer"]["state"], rtol=0, atol=0)
    assert saved["schedule"] == other["schedule"]


@pytest.mark.parametrize(
    "more", [("--epochs", "2"), ("--schedule", "cosine", "--max_steps", "11", "--pairs")], ids=["plateau", "cosine"]
)
def test_ctrl_c_saves_and_the_run_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    whole = train(data, tmp_path / "whole", *more)
    step = Trainer._step

    def interrupted(self: Trainer, micro_batches) -> None:
        step(self, micro_batches)
        if self.progress.step == 7:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        with pytest.raises(Interrupted, match=r"after 8 steps; state saved in .*--resume"):
            train(data, tmp_path / "parts", *more)
    assert not (tmp_path / "parts" / "training" / "tiny-dropout" / "rgb" / "final.pth").exists()
    parts = train(data, tmp_path / "parts", *more, "--resume")
    for name in ("final.pth", "best.pth"):
        assert equal(weights(whole, name), weights(parts, name))
    assert timeless(whole) == timeless(parts)


def test_cosine_is_what_the_optimiser_follows(data: Path, tmp_path: Path) -> None:
    folder = train(data, tmp_path, "--schedule", "cosine", "--max_steps", "8", "--val_every", "4")
    rows = read_log(folder / "log.csv")
    rates = [row.lr for row in rows if row.kind == "train"]
    # one step of rise, then seven along half a cosine
    assert rates == pytest.approx([0.01, *(0.005 * (1 + math.cos(math.pi * step / 7)) for step in range(7))])
    assert [row.lr for row in rows if row.kind != "train"] == [rates[number - 1] for number in (4, 6, 8, 8)]
    saved = torch.load(folder / "checkpoint.pth", weights_only=True)
    assert saved["optimizer"]["param_groups"][0]["lr"] == rates[-1]


def test_gradients_are_clipped(data: Path, tmp_path: Path) -> None:
    norms = {}
    for limit in (None, 1e-3):
        more = [] if limit is None else ["--clip_norm", str(limit)]
        folder = train(data, tmp_path / str(limit), "--max_steps", "1", *more)
        state = torch.load(folder / "checkpoint.pth", weights_only=True)["optimizer"]["state"]
        # after one step, Adam's first moment is a tenth of the gradient
        norms[limit] = 10 * math.sqrt(sum(float(entry["exp_avg"].double().square().sum()) for entry in state.values()))
    assert norms[None] > 2e-3
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)


def test_length_of_a_cosine_cannot_change(data: Path, tmp_path: Path) -> None:
    cosine = ("--schedule", "cosine", "--max_steps")
    train(data, tmp_path, *cosine, "4")
    with pytest.raises(UserError, match=r"other arguments: max_steps \(was 4, is 6\): give the same"):
        train(data, tmp_path, *cosine, "6", "--resume")
    with pytest.raises(UserError, match=r"schedule \(was cosine, is plateau\)"):
        train(data, tmp_path, "--max_steps", "6", "--resume")


def test_the_last_validation_is_judged_as_the_schedule_does(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {"loss": 0.5, "ap": 0.75, "acc": 0.75, "acc_real": 0.75, "acc_fake": 0.75}
    monkeypatch.setattr(Trainer, "_validate", lambda self: (4, numbers))
    for more, is_last in ((("--schedule", "cosine"), True), ((), False)):
        folder = train(data, tmp_path / str(is_last), "--max_steps", "8", *more)
        assert equal(weights(folder, "best.pth"), weights(folder)) == is_last


def test_pairs_are_looked_for_before_anything_is_trained(tmp_path: Path) -> None:
    write_images(tmp_path / "train", number=4)
    write_images(tmp_path / "val", number=2)
    (tmp_path / "train" / "dog" / "1_fake" / "3.png").unlink()
    with pytest.raises(UserError, match=r"--pairs: dog/3 in"):
        train(tmp_path, tmp_path / "out", "--classes", "cat", "dog", "--pairs", "--max_steps", "1")
    assert not (tmp_path / "out").exists()


def test_a_share_of_pairs_can_be_held_out(data: Path) -> None:
    images = find_sets(TrainingImages(data / "train", val_share=0.25), pairs=True)
    assert images.validation is not None
    assert (len(find_pairs(images.training)), len(find_pairs(images.validation))) == (18, 6)


def test_a_finished_run_resumed_stays_as_it_is(data: Path, tmp_path: Path) -> None:
    folder = train(data, tmp_path, "--max_steps", "4")
    before = timeless(folder), weights(folder)
    train(data, tmp_path, "--max_steps", "4", "--resume")
    assert timeless(folder) == before[0]
    assert equal(weights(folder), before[1])


def test_number_of_workers_and_micro_batches_do_not_matter(data: Path, tmp_path: Path) -> None:
    plain = train(data, tmp_path / "plain", "--max_steps", "5", arch="tiny")
    workers = train(data, tmp_path / "workers", "--max_steps", "5", "--num_workers", "2", arch="tiny")
    accumulated = train(data, tmp_path / "accumulated", "--max_steps", "5", "--accumulate", "3", arch="tiny")
    assert equal(weights(plain), weights(workers))
    for key, value in weights(plain).items():
        torch.testing.assert_close(weights(accumulated)[key], value, rtol=1e-4, atol=1e-6)


def test_seeds_matter(data: Path, tmp_path: Path) -> None:
    folders = [train(data, tmp_path / name, "--max_steps", "3", "--seed", name) for name in ("0", "1")]
    again = train(data, tmp_path / "again", "--max_steps", "3", "--seed", "0")
    assert equal(weights(folders[0]), weights(again))
    assert not equal(weights(folders[0]), weights(folders[1]))


def test_two_processes_follow_the_loss_curve_of_one(data: Path, tmp_path: Path) -> None:
    more = ("--epochs", "2", "--blur_jpg", "0.5")
    alone = train(data, tmp_path / "one", *more, arch="tiny")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(HELPERS)]
    given = arguments(data, tmp_path / "two", *more, arch="tiny")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "train_cr_ud", *given], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    together = tmp_path / "two" / "training" / "tiny" / "rgb"
    rows, expected = timeless(together), timeless(alone)
    assert [(row.step, row.kind, row.images) for row in rows] == [(row.step, row.kind, row.images) for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row.numbers() == pytest.approx(other.numbers(), rel=1e-4)
    for key, value in weights(alone).items():
        torch.testing.assert_close(weights(together)[key], value, rtol=1e-3, atol=1e-5)


def started(*given: str) -> subprocess.Popen[str]:
    """The script in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(HELPERS), "train_cr_ud", *given],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def wait_for_steps(folder: Path) -> None:
    limit = time.monotonic() + 120
    while time.monotonic() < limit and not ((folder / "log.csv").exists() and len(read_log(folder / "log.csv")) > 1):
        time.sleep(0.1)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, "0"), (signal.SIGTERM, "2"), (signal.SIGINT, "2")])
def test_signals_to_the_process_group_leave_a_checkpoint(data: Path, tmp_path: Path, number: int, workers: str) -> None:
    """As `timeout`, batch systems and terminals send them: workers get them, too. Until then the folder is taken."""
    given = arguments(data, tmp_path, "--epochs", "100000", "--checkpoint_every", "100000", "--num_workers", workers)
    process = started(*given)
    folder = tmp_path / "training" / "tiny-dropout" / "rgb"
    wait_for_steps(folder)
    before = (folder / "log.csv").read_text()
    for more in ((), ("--overwrite",), ("--resume",)):
        with pytest.raises(UserError, match="another run is writing"):
            train(data, tmp_path, "--epochs", "1", *more)
    assert (folder / "log.csv").read_text().startswith(before)
    os.killpg(process.pid, number)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130, complaint
    assert "Traceback" not in complaint
    assert "--resume" in complaint.splitlines()[-1]
    saved = torch.load(folder / "checkpoint.pth", weights_only=True)
    assert checkpointing.load_run(folder / "checkpoint.pth", saved["arguments"])["progress"]["step"] > 0


def test_a_loss_that_is_not_finite_names_its_batch(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the loss of step 1 is nan, on the batch of train/\w+/[01]_\w+/\d+\.png"):
        train(data, tmp_path, "--max_steps", "2", arch="tiny-nan")
    folder = tmp_path / "training" / "tiny-nan" / "rgb"
    assert len((folder / "bad_batch.txt").read_text().splitlines()) == 8
    assert not (folder / "checkpoint.pth").exists()


def test_a_full_disk_leaves_the_last_checkpoint(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(data, tmp_path, "--max_steps", "3")
    before = (folder / "checkpoint.pth").read_bytes()

    def full(self: Path, content) -> int:
        with self.open("wb") as file:
            file.write(bytes(content)[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"checkpoint\.pth: the disk is full"):
            train(data, tmp_path, "--max_steps", "5", "--resume")
    assert (folder / "checkpoint.pth").read_bytes() == before
    assert not list(folder.glob(".*"))
    whole = train(data, tmp_path / "whole", "--max_steps", "5")
    assert equal(weights(train(data, tmp_path, "--max_steps", "5", "--resume")), weights(whole))


def test_resuming_with_other_arguments_names_them(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "--max_steps", "2")
    message = r"other arguments: blur_jpg \(was 0\.5, is 0\.1\); seed \(was 0, is 3\): give the same"
    with pytest.raises(UserError, match=message):
        train(data, tmp_path, "--max_steps", "4", "--resume", "--seed", "3", "--blur_jpg", "0.1")
    with pytest.raises(UserError, match="training images"):
        train(data, tmp_path, "--max_steps", "4", "--resume", "--classes", "cat")


def test_an_earlier_run_is_not_overwritten_unasked(data: Path, tmp_path: Path) -> None:
    folder = train(data, tmp_path, "--max_steps", "2")
    with pytest.raises(UserError, match="holds an earlier run"):
        train(data, tmp_path, "--max_steps", "3")
    (folder / "final.safetensors").write_bytes(b"of the earlier run")
    train(data, tmp_path, "--max_steps", "3", "--overwrite")
    assert not (folder / "final.safetensors").exists()
    assert read_log(folder / "log.csv")[-1].step == 3


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_damaged_checkpoints_are_refused(data: Path, tmp_path: Path, content: bytes | None) -> None:
    folder = train(data, tmp_path, "--max_steps", "2")
    path = folder / "checkpoint.pth"
    path.write_bytes((folder / "final.pth").read_bytes() if content is None else content)
    with pytest.raises(UserError, match=r"checkpoint\.pth is (damaged|not a saved training run)"):
        train(data, tmp_path, "--max_steps", "3", "--resume")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--cr", "--grayscale_only"], "--cr and --grayscale_only exclude each other"),
        (["--val_share", "0.5"], "exclude each other"),
        (["--precision", "fp16", "--max_steps", "1"], "--precision fp16 is for GPUs"),
        (["--schedule", "cosine", "--epochs", "1"], r"^--schedule cosine needs .*: give --max_steps$"),
        (["--pairs", "--bsize", "7"], "even --bsize"),
        (["--pairs", "--class_bal"], "excludes --class_bal"),
        (["--pairs", "--num_real", "3"], r"cat/11 in \S+ is not one real and one fake image"),
        (["--classes", "cow"], "no class 'cow'"),
        (["--load_size", "12"], "smaller than the crop of 16"),
        (["--load_size", "0", "--crop_size", "30"], r"24x24 pixels, less than the crop of 30"),
        (["--init", "nowhere.pth"], r"weights not found: nowhere\.pth"),
        (["--init", "imagenet"], "ImageNet weights not found: put"),
        (["--skip_bad_images", "--load_size", "0", "--crop_size", "30", "--max_steps", "1"], "no training image can"),
    ],
)
def test_bad_arguments_are_refused(data: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train(data, tmp_path, *more)
    assert "\n" not in str(caught.value)


def test_no_validation_set(data: Path, tmp_path: Path) -> None:
    folders = ["--train_dir", str(data / "train"), "--output_dir", str(tmp_path), "--arch", "tiny", *TINY]
    for more, message in (
        ([], "no validation set: give --val_dir"),
        (["--no_validation"], "would not end: give --epochs or --max_steps"),
    ):
        with pytest.raises(UserError, match=message):
            run_main("train_cr_ud", *folders, *more)
    run_main("train_cr_ud", *folders, "--no_validation", "--epochs", "1")
    folder = tmp_path / "training" / "tiny" / "rgb"
    assert {row.kind for row in read_log(folder / "log.csv")} == {"train"}
    assert (folder / "final.pth").exists()


def test_small_images_can_be_padded(data: Path, tmp_path: Path) -> None:
    folder = train(data, tmp_path, "--load_size", "0", "--crop_size", "30", "--small_images", "pad", "--max_steps", "1")
    assert (folder / "final.pth").exists()


def test_bad_images_are_left_out_and_listed(tmp_path: Path) -> None:
    write_images(tmp_path / "train", ("cat",))
    write_images(tmp_path / "val", ("cat",), number=4)
    bad = tmp_path / "train" / "cat" / "0_real" / "3.png"
    bad.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3\.png is damaged"):
        train(tmp_path, tmp_path / "out", "--epochs", "1")
    folder = train(tmp_path, tmp_path / "out", "--epochs", "2", "--skip_bad_images", "--overwrite")
    assert (folder / "skipped.txt").read_text().count("3.png is damaged") == 1
    assert sum(row.images for row in read_log(folder / "log.csv") if row.kind == "train") == 2 * 23


@pytest.mark.parametrize(
    ("part", "message"),
    [("val", "no validation image can be used"), ("train", r"no training image .*skipped\.txt says why")],
)
def test_images_that_are_all_bad_are_refused(tmp_path: Path, part: str, message: str) -> None:
    for folder in ("train", "val"):
        write_images(tmp_path / folder, ("cat",), number=4)
    for number, image in enumerate(sorted((tmp_path / part).rglob("*.png"))):
        image.write_bytes(b"no image %d" % number)
    with pytest.raises(UserError, match=message):
        train(tmp_path, tmp_path / "out", "--epochs", "1", "--skip_bad_images")
    assert not list((tmp_path / "out").rglob("final.pth"))


@pytest.mark.usefixtures("png")
def test_several_subsets_of_classes_are_compared(data: Path, tmp_path: Path) -> None:
    folder = train(data, tmp_path, "--classes", "cat", "cat,dog", "--epochs", "1")
    lines = (folder / "subsets.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [["cat", "3"], ["cat+dog", "6"]]
    assert (folder / "cat" / "final.pth").exists()
    assert (folder / "subsets.png").exists()


def test_colour_robust_and_greyscale_runs_have_their_own_folders(data: Path, tmp_path: Path) -> None:
    folder = train(data, tmp_path, "--max_steps", "1")
    for flag, name in (("--cr", "cr"), ("--grayscale_only", "grayscale")):
        train(data, tmp_path, "--max_steps", "1", flag)
        facts = json.loads((folder.parent / name / "final.pth.json").read_text())
        assert facts["variant"] == name
        assert facts["settings"][flag.removeprefix("--")] is True


@pytest.mark.usefixtures("png")
def test_trackers_get_the_log(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = train(data, tmp_path, "--epochs", "1", "--wandb", "--tensorboard")
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    events = EventAccumulator(str(folder / "tensorboard" / "training"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    rows = [row for row in read_log(folder / "log.csv") if row.kind == "train"]
    assert losses == pytest.approx({row.step: row.loss for row in rows}, rel=1e-5)
    assert "epoch/ap" in events.Tags()["scalars"]
    # a resumed training goes on with its own run
    train(data, tmp_path, "--epochs", "2", "--resume", "--wandb")
    runs = [path.name.rsplit("-", 1)[1] for path in folder.glob("wandb/offline-run-*")]
    assert len(runs) == 2
    assert len(set(runs)) == 1


def test_trackers_are_not_imported_unasked(data: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom ranking_runs import run_main\nfrom training_helpers import register_tiny\n"
        "from utils.figures import figure_formats\nregister_tiny()\n"
        "with figure_formats():\n    run_main('train_cr_ud', *sys.argv[1:])\n"
        "assert not {'wandb', 'tensorboard'} & set(sys.modules), 'imported'\n"
    )
    given = arguments(data, tmp_path, "--max_steps", "1")
    done = subprocess.run(
        [sys.executable, "-c", code, *given], cwd=HELPERS.parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_head_of_a_classifier_is_replaced_and_that_of_a_detector_kept(tmp_path: Path) -> None:
    classifier, detector = build_model("tiny", 1000), build_model("tiny", 1)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    torch.save({"model": detector.state_dict()}, tmp_path / "detector.pth")
    from_classifier, _ = initial_model("tiny", str(tmp_path / "classifier.pth"), seed=0)
    for key, value in classifier.state_dict().items():
        if not key.startswith("fc."):
            assert torch.equal(from_classifier.state_dict()[key], value)
    assert from_classifier.state_dict()["fc.weight"].shape == (1, 8)
    from_detector, _ = initial_model("tiny", str(tmp_path / "detector.pth"), seed=0)
    assert equal(from_detector.state_dict(), detector.state_dict())


def test_new_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (initial_model("resnet18", "scratch", seed)[0] for seed in (0, 0, 1))
    assert equal(first.state_dict(), second.state_dict())
    assert not equal(first.state_dict(), other.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    # the new head of a ResNet as Wang et al. have it
    assert float(first.get_parameter("fc.weight").detach().std()) == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("arch", ["resnet18", "efb0"])
def test_high_pass_kernels_see_neither_constants_nor_slopes(arch: str) -> None:
    plain, sharp = (initial_model(arch, init, seed=0)[0] for init in ("scratch", "high_pass"))
    name = "conv1.weight" if arch == "resnet18" else "_conv_stem.weight"
    before, kernels = plain.get_parameter(name).detach(), sharp.get_parameter(name).detach()
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    for picture in (torch.ones(9, 9), rows, columns, 3 + 2 * rows - columns):
        for colour in range(3):
            image = torch.zeros(1, 3, 9, 9)
            image[0, colour] = picture
            assert float(conv2d(image, before).abs().max()) > 1e-2
            assert float(conv2d(image, kernels).abs().max()) < 1e-4
    torch.testing.assert_close(kernels.flatten(1).norm(dim=1), before.flatten(1).norm(dim=1))
    half = len(kernels) // 2
    sums = kernels.sum(dim=1).flatten(1).norm(dim=1) / kernels.flatten(1).norm(dim=1)
    assert float(sums[:half].max()) < 1e-5
    assert float(sums[half:].min()) > 0.1
    outside = kernels.clone()
    centre = kernels.shape[-1] // 2
    outside[:, :, centre - 1 : centre + 2, centre - 1 : centre + 2] = 0.0
    assert not outside.any()
    changed = {key for key, value in plain.state_dict().items() if not torch.equal(value, sharp.state_dict()[key])}
    last_norms = {f"layer{layer}.{block}.bn2.weight" for layer in (1, 2, 3, 4) for block in (0, 1)}
    assert changed == {name} | (last_norms if arch == "resnet18" else set())
    assert not any(sharp.state_dict()[key].any() for key in changed - {name})


@pytest.mark.parametrize(
    ("arch", "init", "is_random"),
    [("resnet18", "high_pass", False), ("efb0", "high_pass", False), ("efb0", "scratch", True)],
)
def test_high_pass_networks_drop_nothing_and_average_quickly(arch: str, init: str, is_random: bool) -> None:
    model, digest = initial_model(arch, init, seed=0)
    assert digest == ""
    assert model.training
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    outputs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        outputs.append(model(images).detach())
    assert torch.equal(*outputs) != is_random
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} <= {0.2 if is_random else 0.0}
    momenta = {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    assert [*momenta] == pytest.approx([0.01 if is_random else 0.1])


@pytest.mark.parametrize("first", [nn.Conv2d(3, 4, 1), nn.Conv2d(1, 4, 3), nn.Linear(3, 4)])
def test_networks_without_colour_kernels_cannot_be_high_pass(first: nn.Module) -> None:
    with pytest.raises(UserError, match=r"^--init high_pass needs [^\n]*: use --init scratch$"):
        make_high_pass(nn.Sequential(first, nn.ReLU()))


def test_high_pass_runs_are_told_from_scratch(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "--init", "high_pass", "--max_steps", "2")
    with pytest.raises(UserError, match=r"init \(was high_pass, is scratch\)"):
        train(data, tmp_path, "--max_steps", "4", "--resume")


def test_a_checkpoint_of_another_architecture_is_refused(data: Path, tmp_path: Path) -> None:
    torch.save(build_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(UserError, match="not of tiny: the checkpoint looks like resnet18"):
        train(data, tmp_path, "--init", str(tmp_path / "resnet18.pth"), arch="tiny")


def test_batch_norm_and_drop_connect_resume_to_the_bit(data: Path, tmp_path: Path) -> None:
    given = ["--train_dir", str(data / "train"), "--no_validation", "--arch", "efb0", *TINY, "--load_size", "40"]
    given += ["--crop_size", "32", "--bsize", "4"]

    def run(output_dir: Path, *more: str) -> dict[str, torch.Tensor]:
        run_main("train_cr_ud", *given, "--output_dir", output_dir, *more)
        return weights(output_dir / "training" / "efb0" / "rgb")

    whole = run(tmp_path / "whole", "--max_steps", "2")
    part = run(tmp_path / "parts", "--max_steps", "1")
    assert not equal(whole, part)
    assert equal(whole, run(tmp_path / "parts", "--max_steps", "2", "--resume"))


def test_a_record_is_a_config_file(data: Path, tmp_path: Path) -> None:
    more = ("--max_steps", "3", "--classes", "cat,dog", "--blur_sig", "0,2", "--jpg_method", "pil", "--clip_norm", "1")
    folder = train(data, tmp_path, *more, arch="tiny")
    copy = tmp_path / "copy"
    run_main("train_cr_ud", "--config", folder / "final.pth.json", "--output_dir", copy)
    again = copy / "training" / "tiny" / "rgb"
    assert equal(weights(folder), weights(again))
    settings = [json.loads((place / "final.pth.json").read_text())["settings"] for place in (folder, again)]
    assert {name for name in settings[0] if settings[0][name] != settings[1][name]} == {"output_dir"}


class Quadrants(Task):
    """Two heads: which class a quarter of the picture is of, by cross-entropy at four places, and its brightness."""

    metrics = ("acc_places", "acc_images", "error")
    panels: ClassVar = {"accuracy": {"acc_places": "places", "acc_images": "images"}, "error": {"error": "all"}}
    loss = "cross-entropy and squared error"

    def target(self, item: ImageItem) -> np.ndarray:
        assert item.label is not None
        return np.array([item.class_name == "dog", item.label], dtype=np.float32)

    def losses(self, output: tuple[torch.Tensor, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        places, number = output
        classes = targets[:, 1].long()[:, None, None].expand(-1, *places.shape[2:])
        return cross_entropy(places, classes, reduction="none").mean((1, 2)) + (number - targets[:, 0]).square()

    def evidence(self, output: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        places, number = output
        return torch.cat([(places[:, 1] - places[:, 0]).flatten(1), number[:, None]], dim=1)

    def summary(self, evidence: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        places, number = evidence[:, :-1], evidence[:, -1]
        hits = (places > 0) == (targets[:, 1:] > 0)
        whole = (places.mean(1) > 0) == (targets[:, 1] > 0)
        error = float(np.square(number - targets[:, 0]).mean())
        return {"loss": error, "acc_places": float(hits.mean()), "acc_images": float(whole.mean()), "error": error}

    def score(self, summary: Mapping[str, float]) -> float:
        return summary["acc_places"]


class TwoHeads(nn.Module):
    """A frozen body under two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=2).requires_grad_(requires_grad=False)
        self.places, self.number = nn.Conv2d(8, 2, 1), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.body(x).relu()
        return self.places(maps), self.number(maps.mean((2, 3)))[:, 0]


class TwoHeadedNetwork:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model, self.device = TwoHeads(), torch.device("cpu")

    def inputs(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 255


def test_other_tasks_and_networks_train_on_the_same_loop(data: Path, tmp_path: Path) -> None:
    """Several heads, an output for every place, parameters that stay, another optimiser, targets of other shapes."""
    sets = find_training_set(data / "train"), find_training_set(data / "val")
    augmenter = Augmenter(Augmentation(blur_jpg=0.0, load_size=0, crop_size=16))

    def run(folder: Path, steps: int, *, resume: bool = False) -> TwoHeads:
        network, task = TwoHeadedNetwork(), Quadrants()
        training = Training(
            network,
            task,
            EpochOrder(sets[0], 8),
            sets[1],
            Loader(augmenter, task.target, num_workers=1),
            PlateauSchedule(lr=0.1),
            partial(torch.optim.SGD, lr=0.1, momentum=0.9),
            Optimisation(max_steps=steps),
            Monitoring(log_every=1, val_every=4),
            {"task": "quadrants"},
        )
        run = RunOptions(tmp_path, resume=resume)
        run_training(training, folder, run, Ranks(), title="Quadrants", settings={}, inputs={})
        return network.model

    whole = run(tmp_path / "whole", 24)
    last = read_log(tmp_path / "whole" / "log.csv")[-1]
    assert list(last.metrics) == ["acc_places", "acc_images", "error"]
    assert last.metrics["acc_images"] > 0.8
    assert torch.equal(whole.body.weight, TwoHeadedNetwork().model.body.weight)
    run(tmp_path / "parts", 7)
    assert equal(run(tmp_path / "parts", 24, resume=True).state_dict(), whole.state_dict())
