"""The numbered shell scripts on a toy set."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
NUMBERED = sorted(SCRIPTS.glob("0*.sh"))
# What keeps a run short.
SHORT = ("--pdf", "False", "--bootstrap", "10")


def run(script: str, folder: Path, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    given = {name: str(value) for name, value in settings.items()}
    return subprocess.run(
        [str(SCRIPTS / script), *arguments],
        cwd=folder,
        env={**kept, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **given},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_there_is_one_for_every_step() -> None:
    assert [path.name[:2] for path in NUMBERED] == [f"0{number}" for number in range(1, 8)]


@pytest.mark.parametrize("script", [path.name for path in NUMBERED])
def test_usage(script: str, tmp_path: Path) -> None:
    answer = run(script, tmp_path, "--help")
    assert answer.returncode == 0
    assert answer.stdout.startswith("usage: [DATA=DIR]")
    wrong = run(script, tmp_path, DATA="absent")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: no data set folder absent")
    assert wrong.stderr.count("\n") == 1
    taken = run(script, tmp_path, "--output_dir", "x", DATA=".")
    assert (taken.returncode, taken.stdout) == (2, "")
    assert taken.stderr.startswith("error: --output_dir: set ARCHS, TAG, OUT or DATA")


# Stands for Python, and says what it was called with.
ECHO = '#!/usr/bin/env bash\nprintf "%s\\n" "${@:2}"\n'


def test_flags_go_to_the_reproduction(tmp_path: Path) -> None:
    """After those of the script, so that they count; networks are spelt as their folders are."""
    (tmp_path / "python").write_text(ECHO)
    (tmp_path / "python").chmod(0o755)
    settings = {"DATA": ".", "PYTHON": tmp_path / "python", "ARCHS": "ResNet50 EfficientNet-B0", "TOPK_efb0": 3}
    answer = run("02_sensitivity.sh", tmp_path, "--device", "cuda:1", "--seed", "4", "--rank_on", "a b", **settings)
    assert (answer.returncode, answer.stderr) == (0, "")
    words = answer.stdout.splitlines()
    assert words[:3] == ["--arch", "resnet50", "efb0"]
    assert words[-8:] == ["--device", "cuda:1", "--seed", "4", "--rank_on", "a b", "--only", "sensitivity"]
    assert "efb0=3" in words


def test_unknown_flags_are_refused(settings: dict[str, object], tmp_path: Path) -> None:
    answer = run("02_sensitivity.sh", tmp_path, "--nonsense", **settings)
    assert answer.returncode == 2
    assert "--nonsense" in answer.stderr


def test_they_are_clean() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install -r requirements-dev.txt")
    paths = [str(path) for path in sorted(SCRIPTS.glob("*.sh"))]
    answer = subprocess.run([shellcheck, "-x", *paths], cwd=SCRIPTS.parent, capture_output=True, text=True)
    assert answer.stdout == ""
    assert answer.returncode == 0


@pytest.fixture(scope="module")
def settings(small_images: Path, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A toy set in the environment: an architecture, a generator and k instead of the paper's."""
    key = "conv1.#{}(T=64)"
    ranking = tmp_path_factory.mktemp("ranking") / "ranking.csv"
    lines = [f"{key.format(number)},{0.5 / (number + 1)}" for number in range(8)]
    ranking.write_text("\n".join(["key,mean_relevance", *lines]) + "\n")
    return {
        "DATA": small_images,
        "DEVICE": "cpu",
        "ARCHS": "resnet18",
        "GENERATORS": "gan",
        "TOPK_resnet18": 2,
        "WEIGHTS_resnet18": small_weights,
        "RELEVANCES_resnet18": ranking,
        "BSIZE": 4,
    }


def test_they_write_what_they_are_for_and_skip_what_is_done(settings: dict[str, object], tmp_path: Path) -> None:
    answer = run("06_colour_conditional.sh", tmp_path, *SHORT, OUT="o u t", **settings)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "o u t" / "median_test" / "resnet18_0.5" / "color_conditional.md").read_text() in answer.stdout
    again = run("05_median_test.sh", tmp_path, *SHORT, OUT="o u t", **settings)
    assert again.returncode == 0, again.stderr
    assert "gan: median_test: done before, nothing to compute" in again.stdout


def test_colour_robust_detectors(settings: dict[str, object], small_weights: Path, tmp_path: Path) -> None:
    refused = run("07_colour_robust.sh", tmp_path, **settings)
    assert refused.returncode == 2
    assert "WEIGHTS_CR_resnet18 is not set" in refused.stderr
    answer = run("07_colour_robust.sh", tmp_path, *SHORT, WEIGHTS_CR_resnet18=small_weights, **settings)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("# Colour ablation") == 2
