"""The demo and what it is made of: its images, its seeded detectors, and the whole script."""

import csv
from pathlib import Path

import demo_images
import numpy as np
import pytest
from benchmarking import ratio_to, table
from demo_images import make_demo_images
from ranking_runs import Scripts

from images.decoding import decode_image
from images.sets import find_image_set
from mini_forensynths.generators import SPECS
from mini_forensynths.sets import CHROMA, NULL, SWAPPED

TRAINING = SPECS[0].name
ANALYSED = [*(spec.name for spec in SPECS), TRAINING + CHROMA]


def test_demo_images_are_pairs_and_kept(tmp_path: Path) -> None:
    number = make_demo_images(tmp_path, "demo", crops_per_photo=2)
    image_set = find_image_set(tmp_path, "demo")
    reals = [item for item in image_set.items if item.label == 0]
    fakes = [item for item in image_set.items if item.label == 1]
    assert number == len(reals) == len(fakes) > 20
    for real, fake in zip(reals, fakes, strict=True):
        assert real.path.name == fake.path.name
        a, b = decode_image(real.path).astype(float), decode_image(fake.path).astype(float)
        assert a.shape == b.shape == (224, 224, 3)
        assert 0 < np.abs(a - b).mean() < 25  # the same picture, but not the same pixels
    before = {item.path: item.path.stat().st_mtime_ns for item in image_set.items}
    make_demo_images(tmp_path, "demo", crops_per_photo=2)
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("size", [(100, 300), (224, 224), (400, 300)])
def test_boxes_lie_in_the_photograph_and_differ(size: tuple[int, int]) -> None:
    boxes = demo_images._boxes(size, 5)
    assert len(set(boxes)) == len(boxes)
    assert (not boxes) == (min(size) < 224)
    for left, top, right, bottom in boxes:
        assert 0 <= left <= right - 224 <= size[0] - 224
        assert 0 <= top <= bottom - 224 <= size[1] - 224


@pytest.mark.slow
def test_demo_end_to_end_and_again(tmp_path: Path, scripts: Scripts) -> None:
    arguments = ["--arch", "efb0", "--patches", "1", "--maps_drawn", "1", "--output_dir", str(tmp_path)]
    first = scripts("demo", *arguments)
    assert first.code == 0, first.err
    assert "no evidence about GANs" in first.out
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert {"report.html", "summary.csv", "tables.md", "montage.png"} <= {path.name for path in written}
    with (tmp_path / "summary.csv").open(newline="") as table:
        rows = {row["generator"]: row for row in csv.DictReader(table)}
    assert list(rows) == ANALYSED
    assert float(rows[TRAINING]["ap_baseline"]) > 0.9  # what the detector was trained on, on other photographs
    with (tmp_path / "evaluation" / "summary.csv").open(newline="") as table:
        controls = {(row["set"], row["variant"]): float(row["ap"]) for row in csv.DictReader(table)}
    assert 0.35 < controls[NULL, "rgb"] < 0.65  # nothing to be seen
    assert controls[SWAPPED, "rgb"] < 0.5
    again = scripts("demo", *arguments)
    assert again.code == 0, again.err
    assert "evaluate_detector" not in again.out
    drawn_anew = {path.name for path in written if path.stat().st_mtime_ns != written[path]}
    assert drawn_anew <= {"report.html", "summary.json", "summary.csv", "summary.md"}  # from the numbers there


def test_demo_takes_shipped_detectors_only(tmp_path: Path, scripts: Scripts) -> None:
    run = scripts("demo", "--arch", "resnet18", "--output_dir", str(tmp_path))
    assert run.code == 2
    assert "efb0 and resnet50" in run.err
    assert not any(tmp_path.iterdir())


def test_benchmark_ratio_is_by_round() -> None:
    seconds = {"a": [2.0, 4.0, 30.0], "b": [1.0, 2.0, 10.0]}
    assert ratio_to(seconds, "a", "b") == 2.0
    assert table(("x", "y"), [(1, "z")]) == ["| x | y |", "|---|---|", "| 1 | z |"]
