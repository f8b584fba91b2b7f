"""Weights & Biases and TensorBoard: used by those who ask for them, and by nobody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from utils.errors import UserError
from utils.tracking import trackers

RUN = """
import json, sys
from pathlib import Path
from utils.tracking import trackers
config, folder = {{"rule": "beta0"}}, Path({folder!r})
with trackers(wandb={enabled}, tensorboard=False, job="test", config=config, folder=folder) as track:
    track.log({{"used": 3}})
    track.picture("omega", Path({picture!r}))
print(json.dumps(sorted(name for name in sys.modules if name.split(".")[0] == "wandb")))
"""


def run(folder: Path, enabled: bool, **environment: str) -> subprocess.CompletedProcess[str]:
    picture = folder.parent / "picture.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(picture)
    # No settings or keys of whoever runs the tests.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    home = {"HOME": str(folder.parent), "NETRC": str(folder.parent / "none"), "XDG_CACHE_HOME": str(folder.parent)}
    return subprocess.run(
        [sys.executable, "-c", RUN.format(enabled=enabled, folder=str(folder), picture=str(picture))],
        env={**inherited, **home, **environment},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


def test_nothing_happens_without_the_flag(tmp_path: Path) -> None:
    done = run(tmp_path / "output", enabled=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    assert not (tmp_path / "output").exists()


def test_offline_run_is_written_below_the_output_folder(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    done = run(tmp_path / "output", enabled=True, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert "wandb" in json.loads(done.stdout.splitlines()[-1])
    (record,) = (tmp_path / "output" / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    assert all(word in content for word in (b"tff", b"beta0", b"used", b"omega"))
    assert list((tmp_path / "output" / "wandb").glob("offline-run-*/files/media/images/omega*.png"))


def test_missing_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(UserError, match="wandb is not installed"),
        trackers(wandb=True, tensorboard=False, job="test", config={}, folder=tmp_path / "output"),
    ):
        pytest.fail("no tracker without the package")
    assert not (tmp_path / "output").exists()


def test_missing_key_is_said(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    done = run(tmp_path / "output", enabled=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "UserError" in last
    assert "--wandb" in last
    assert "WANDB_MODE=offline" in last


class Run:
    """What a test has to know of a run of Weights & Biases."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.logged = settings, []
        self.id = settings["id"] or f"new{settings['name']}"

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axis = step_metric

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        return


def test_numbers_are_numbers_along_steps_and_a_resumed_run_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Run] = []
    fake = SimpleNamespace(init=lambda **settings: runs.append(Run(settings)) or runs[-1], errors=SimpleNamespace())
    fake.errors.Error = RuntimeError
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = {"arch": "efb0", "topk": 27, "lr": 1e-4, "gan_name": ["crn", "san"]}
    for name, resume in ((None, False), ("later", False), (None, True)):
        with trackers(
            wandb=True, tensorboard=False, job="rank", config=config, folder=tmp_path, name=name, resume=resume
        ) as track:
            track.log({"loss": 0.5}, step=3)
    assert [run.settings["name"] for run in runs] == ["rank efb0 crn san", "later", "rank efb0 crn san"]
    assert runs[0].settings["config"] == config
    assert [run.id for run in runs] == ["newrank efb0 crn san", "newlater", "newlater"]
    assert runs[0].logged == [{"loss": 0.5, "step": 3}]
    assert runs[0].axis == "step"
