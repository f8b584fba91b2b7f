import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ranking_runs import SOURCES, Scripts

from fmap_ranking.ranking import Ranking

SCRIPT = SOURCES / "compare_rankings.py"
LAYERS = [("conv1", 64), ("layer1.0.conv1", 64)]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "x" / "fake.csv", tmp_path / "y" / "fake.csv"
    for seed, path in enumerate(paths):
        Ranking.from_values(LAYERS, np.random.default_rng(seed).random(128) / 128).write(path)
    return paths


def test_writes_tables_provenance_and_figures(files: tuple[Path, Path], tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *map(str, files), "--arch", "resnet18", "--topk", "20", "64"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert "x/fake against y/fake: 128 feature maps" in done.stdout
    output = tmp_path / "output"
    assert sorted(path.name for path in output.iterdir()) == [
        "comparison.csv",
        "comparison.csv.json",
        "comparison.pdf",
        "comparison.png",
        "comparison_layers.csv",
        "comparison_layers.csv.json",
        "omega.pdf",
        "omega.png",
    ]
    with (output / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["k"] for row in rows] == ["20", "64"]
    assert float(rows[0]["overlap_by_chance"]) == 20 / 128
    with (output / "comparison_layers.csv").open() as file:
        layers = list(csv.DictReader(file))
    assert [row["layer"] for row in layers] == ["conv1", "layer1.0.conv1"] * 2
    record = json.loads((output / "comparison.csv.json").read_text())
    assert record["maps"] == 128
    assert set(record["inputs"]) == {str(path) for path in files}


def test_default_k_are_limited_to_the_maps_there_are(
    files: tuple[Path, Path], scripts: Scripts, tmp_path: Path
) -> None:
    done = scripts("compare_rankings", *files, "--output_dir", tmp_path / "elsewhere")
    assert done.code == 0, done.err
    with (tmp_path / "elsewhere" / "comparison.csv").open() as file:
        assert [row["k"] for row in csv.DictReader(file)] == ["114", "27", "10"]


def test_what_a_user_can_mend_is_one_line_and_code_2(
    files: tuple[Path, Path], scripts: Scripts, tmp_path: Path
) -> None:
    other = tmp_path / "other.csv"
    Ranking.from_values([("conv1", 64)], np.full(64, 0.01)).write(other)
    for arguments, words in (
        ((files[0], tmp_path / "absent.csv"), "absent.csv"),
        ((files[0], other), "different feature maps"),
        ((*files, "--topk", "129"), "k = 129 is out of range"),
        ((*files, "--topk", "0"), "--topk"),
        ((*files, "--arch", "vgg"), "vgg"),
        ((*files, "--arch", "efb0"), "no layer"),
    ):
        done = scripts("compare_rankings", *arguments)
        assert done.code == 2, done.err
        assert words in done.err
        assert done.err.count("\n") == 1
        assert not (tmp_path / "output").exists()
