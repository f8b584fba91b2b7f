"""The demo and what it is made of: its images, its seeded detectors, and the whole script."""

import csv
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import benchmarking
import numpy as np
import pytest
from demo_images import demo_fakes, repeated
from PIL import Image
from ranking_runs import Scripts

from images.decoding import decode_image
from mini_forensynths.photos import find_photos
from mini_forensynths.sets import CONTROLS, SWAPPED, TRAINING

ANALYSED = ["x4plus-anime", "animevideo-x2", "transposed4", "pixelshuffle", "skip"]


def test_demo_fakes_are_like_the_reals_beside_them() -> None:
    with demo_fakes() as fakes:
        assert len({item.path for item in fakes.items}) > 20
        assert [item.name for item in repeated(fakes, len(fakes) + 1).items] == [
            *(item.name for item in fakes.items),
            fakes.items[0].name,
        ]
        for item in fakes.items:
            real = item.path.parents[1] / "0_real" / item.path.name
            a, b = decode_image(real).astype(float), decode_image(item.path).astype(float)
            assert a.shape == b.shape == (224, 224, 3)
            assert 0 < np.abs(a - b).mean() < 40  # the same picture, but not the same pixels
    assert not fakes.root.exists()


def in_this_process(
    scripts: Scripts, run: Callable[..., Any], command: list[str], **options: object
) -> subprocess.CompletedProcess[str]:
    """Run a script of the project without a process of its own; anything else as it is."""
    if command[0] != sys.executable:
        return run(command, **options)
    return subprocess.CompletedProcess(command, scripts.exit_code(*command[1:]))


@pytest.mark.slow
@pytest.mark.usefixtures("pdf_too")
def test_demo_end_to_end_and_again(tmp_path: Path, scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos"  # two tiles of some bundled ones: all of them are used in test_docs_commands.py
    photos.mkdir()
    for photo in find_photos(None)[:4]:
        Image.fromarray(decode_image(photo.path)[:256, :448]).save(photos / f"{photo.name}.png")
    output = tmp_path / "output"
    arguments = ["--arch", "efb0", "--patches", "1", "--maps_drawn", "1", "--output_dir", str(output)]
    arguments += ["--photos", str(photos)]
    first = scripts("demo", *arguments)
    assert first.code == 0, first.err
    assert "called fake" in first.out
    written = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.rglob("*") if path.is_file()}
    assert {"report.html", "summary.csv", "tables.md", "montage.png"} <= {path.name for path in written}
    with (output / "summary.csv").open(newline="") as table:
        rows = {row["generator"]: row for row in csv.DictReader(table)}
    assert list(rows) == ANALYSED
    for name in TRAINING:  # on other photographs
        assert float(rows[name]["ap_baseline"]) > 0.7
    with (output / "evaluation" / "summary.csv").open(newline="") as table:
        found = {row["set"]: row for row in csv.DictReader(table) if row["variant"] == "rgb"}
    assert 0.35 < float(found["null"]["ap"]) < 0.65  # nothing to be seen
    assert float(found[SWAPPED]["ap"]) < 0.5
    assert {*ANALYSED, *CONTROLS} <= set(found)
    assert int(found[SWAPPED]["clusters"]) == 3  # photographs
    assert list((output / "lrp" / "efb0").glob("*/contact_sheet_001.png"))
    assert 'id="examples"' in (output / "report.html").read_text()
    monkeypatch.setattr(subprocess, "run", partial(in_this_process, scripts, subprocess.run))
    again = scripts("demo", *arguments)
    assert again.code == 0, again.err
    assert again.out.count("nothing to compute") > 2 * len(ANALYSED)
    # Tables over generators, the summary and the report are put together from the numbers there; nothing else is.
    touched = [path for path, (time, _) in written.items() if path.stat().st_mtime_ns != time]
    assert not [path for path in touched if path.suffix == ".png" or path.name == "scores.csv"]
    assert not [path for path in touched if path.suffix in (".csv", ".md") and path.read_bytes() != written[path][1]]


def test_demo_takes_shipped_detectors_only(tmp_path: Path, scripts: Scripts) -> None:
    run = scripts("demo", "--arch", "resnet18", "--output_dir", str(tmp_path))
    assert run.code == 2
    assert "efb0 and resnet50" in run.err
    assert not any(tmp_path.iterdir())


def test_contenders_are_compared_by_round_and_those_that_fail_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def impossible() -> NoReturn:
        raise ValueError("no rule")

    seconds = [1.0, 2.0, 2.0, 4.0, 10.0, 30.0]
    ends = np.cumsum(seconds)
    clock = iter(np.stack([ends - seconds, ends], axis=1).ravel())
    monkeypatch.setattr(benchmarking.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(benchmarking, "peak_megabytes", lambda *flags: 5.0)
    args = benchmarking.make_parser("", batch=1, rounds=3).parse_args(["--device", "cpu"])
    works = {"b": lambda: lambda: None, "peer": impossible, "a": lambda: lambda: None}
    measured, failed = benchmarking.compare(
        {name: benchmarking.Contender(2, work) for name, work in works.items()}, args
    )
    assert failed == ["peer does not work: ValueError: no rule"]
    assert [(one.name, one.seconds, one.ratio, one.megabytes) for one in measured] == [
        ("b", pytest.approx(1.0), 1.0, 5.0),
        ("a", pytest.approx(2.0), pytest.approx(2.0), 5.0),
    ]
