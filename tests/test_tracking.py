"""Weights & Biases and TensorBoard: used by those who ask for them, and by nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ranking_runs import Scripts

from utils.errors import UserError
from utils.tracking import trackers

CONFIG = {"arch": "resnet18", "bsize": 4, "level": 0.5, "gan_name": ["gan"]}


class Fakes:
    """Stands for both packages, and keeps what they are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inits: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str]] = []
        self.scalars: list[tuple[str, float, int | None]] = []
        self.images: list[tuple[str, tuple[int, ...]]] = []
        fakes = self

        class Run:
            id = "run7"

            def log(self, values: dict[str, Any]) -> None:
                fakes.logged.append(values)

            def define_metric(self, name: str, step_metric: str) -> None:
                fakes.metrics.append((name, step_metric))

            def __enter__(self) -> Run:
                return self

            def __exit__(self, *error: object) -> None: ...

        class SummaryWriter(Run):
            def __init__(self, folder: str) -> None:
                self.folder = folder

            def add_scalar(self, name: str, value: float, step: int | None) -> None:
                fakes.scalars.append((name, value, step))

            def add_image(self, name: str, pixels: np.ndarray, dataformats: str) -> None:
                fakes.images.append((name, pixels.shape))

        wandb, tensorboard = ModuleType("wandb"), ModuleType("torch.utils.tensorboard")

        def init(**options: Any) -> Run:
            self.inits.append(options)
            return Run()

        wandb.__dict__.update(init=init, Image=lambda path: f"picture {path}", errors=ModuleType("errors"))
        wandb.errors.Error = RuntimeError
        tensorboard.__dict__["SummaryWriter"] = SummaryWriter
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    return Fakes(monkeypatch)


def picture(path: Path) -> Path:
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(path)
    return path


def test_both_get_numbers_pictures_and_steps(fakes: Fakes, tmp_path: Path) -> None:
    with trackers(wandb=True, tensorboard=True, job="training", config=CONFIG, folder=tmp_path) as tracker:
        tracker.log({"loss": 0.25}, step=40)
        tracker.log({"ap": 1.0})
        tracker.picture("omega", picture(tmp_path / "omega.png"))
    assert fakes.logged == [{"loss": 0.25, "step": 40}, {"ap": 1.0}, {"omega": f"picture {tmp_path / 'omega.png'}"}]
    # The step of a training is the axis of all its curves.
    assert fakes.metrics == [("*", "step")]
    assert fakes.scalars == [("loss", 0.25, 40), ("ap", 1.0, None)]
    assert fakes.images == [("omega", (4, 6, 3))]
    (init,) = fakes.inits
    assert init["config"] == CONFIG
    assert (init["job_type"], init["name"]) == ("training", "training resnet18 gan")


def test_a_resumed_run_goes_on_with_its_run(fakes: Fakes, tmp_path: Path) -> None:
    def run(job: str, resume: bool) -> str | None:
        with trackers(wandb=True, tensorboard=False, job=job, config=CONFIG, folder=tmp_path, resume=resume):
            return fakes.inits[-1]["id"]

    assert run("a", resume=True) is None
    assert run("a", resume=True) == "run7"
    assert run("b", resume=True) is None
    assert run("a", resume=False) is None


def test_a_script_logs_what_it_finds(
    fakes: Fakes, scripts: Scripts, small_images: Path, small_weights: Path, tmp_path: Path
) -> None:
    flags = ["--arch", "resnet18", "--weights", small_weights, "--dataset_dir", small_images, "--gan_name", "gan"]
    flags += ["--device", "cpu", "--bsize", 4, "--bootstrap", 50, "--wandb", "--tensorboard"]
    run = scripts("grayscale_sensitivity_analysis", *flags)
    assert run.code == 0, run.err
    (init,) = fakes.inits
    assert (init["config"]["bsize"], init["config"]["bootstrap"]) == (4, 50)
    numbers = {name: value for values in fakes.logged for name, value in values.items() if isinstance(value, float)}
    assert numbers
    assert all(name.startswith("gan/") for name in numbers)
    assert {name for name, _, _ in fakes.scalars} == numbers.keys()
    assert fakes.images


@pytest.mark.parametrize("which", ["wandb", "tensorboard"])
def test_missing_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    monkeypatch.setitem(sys.modules, {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard"}[which], None)
    chosen = {"wandb": False, "tensorboard": False} | {which: True}
    with (
        pytest.raises(UserError, match=f"--{which}: {which} is not installed"),
        trackers(**chosen, job="test", config={}, folder=tmp_path / "output"),
    ):
        pytest.fail("no tracker without the package")
    assert not (tmp_path / "output").exists()


RUN = """
import sys
from pathlib import Path
from utils.tracking import trackers
folder = Path(sys.argv[1])
with trackers(wandb=len(sys.argv) > 2, tensorboard=False, job="test", config={"rule": "beta0"}, folder=folder) as track:
    track.log({"used": 3})
assert len(sys.argv) > 2 or "wandb" not in sys.modules
"""


def alone(folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """With no settings or keys of whoever runs the tests."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    home = {name: str(folder.parent) for name in ("HOME", "XDG_CACHE_HOME")} | {"NETRC": str(folder.parent / "none")}
    return subprocess.run(
        [sys.executable, "-c", RUN, str(folder), *flags],
        env={**inherited, **home, **environment},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


def test_nothing_happens_without_the_flag(tmp_path: Path) -> None:
    done = alone(tmp_path / "output")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "output").exists()


def test_offline_run_is_written_below_the_output_folder(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    done = alone(tmp_path / "output", "wandb", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "output" / "wandb").glob("offline-run-*/run-*.wandb")
    assert all(word in record.read_bytes() for word in (b"tff", b"beta0", b"used"))


def test_missing_key_is_said(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    done = alone(tmp_path / "output", "wandb")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert all(word in last for word in ("UserError", "--wandb", "WANDB_MODE=offline"))
