"""Fixtures shared by all tests."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from ranking_runs import Scripts, tuned_model, write_images

from detectors.choice import DetectorChoice
from detectors.detector import Detector, load_detector
from utils.figures import figure_formats
from utils.files import sha256_file

# The same examples in every run, and no time limit for one: machines are busy at times.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def never_waiting_for_the_disk() -> Iterator[None]:
    """What is forced to the disk outlives a crash of the machine, which no test can see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def png_only() -> Iterator[None]:
    """PDFs take longer than all else about a figure: in this process only tests with `pdf_too` draw them."""
    with figure_formats("png"):
        yield


@pytest.fixture(scope="module")
def loaded_once() -> Iterator[None]:
    """Runs of scripts in this process share the networks of a checkpoint, read and traced once for the module."""

    @lru_cache(maxsize=2)
    def read(choice: DetectorChoice, digest: str) -> Detector:
        return load_detector(choice)

    def shared(choice: DetectorChoice) -> Detector:
        path = choice.checkpoint
        return read(choice, sha256_file(path)) if path.is_file() else load_detector(choice)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("passes.analysis", "reproduction.plan"):
            patch.setattr(f"{module}.load_detector", shared)
        yield


@pytest.fixture
def pdf_too(png_only: None) -> Iterator[None]:
    """Figures in the formats that users get."""
    with figure_formats("png", "pdf"):
        yield


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference data: TFF_SHARED, or ../shared beside the repository."""
    folder = Path(os.environ.get("TFF_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip("no reference data: set TFF_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def golden_weights(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Path of the seeded checkpoint of `resnet50` or `efb0` that the golden data were computed with."""
    script = shared_dir / "reference" / "make_weights.py"
    spec = importlib.util.spec_from_file_location("make_weights", script)
    assert spec is not None
    assert spec.loader is not None
    make_weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_weights)
    folder = tmp_path_factory.mktemp("golden_weights")

    def weights(arch: str) -> Path:
        path = folder / f"{arch}.pth"
        if not path.exists():
            arrays = make_weights.state_arrays(arch, 0, script.with_name(f"fc_{arch}_seed0.npz"))
            torch.save({"model": {key: torch.from_numpy(value.copy()) for key, value in arrays.items()}}, path)
        return path

    return weights


@pytest.fixture(scope="session")
def small_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set folder with the generator `gan` of `ranking_runs`: five reals, six fakes; not to be written to."""
    return write_images(tmp_path_factory.mktemp("small_images"))


@pytest.fixture(scope="session")
def small_weights(small_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a resnet18 that gives the images of `small_images` their known scores."""
    path = tmp_path_factory.mktemp("small_weights") / "resnet18.pth"
    torch.save({"model": tuned_model(small_images).state_dict()}, path)
    return path


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Scripts:
    """Runs scripts in this process, from inside `tmp_path`."""
    return Scripts(monkeypatch, capfd, tmp_path)
