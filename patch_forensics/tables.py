"""A classifier on a group of data sets, and tables over classifiers and data sets, as in the published notebooks."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.summary import ScoreSummary
from passes.options import RunOptions
from patch_forensics.analysis import SCRIPT, MetricRow, test_patches
from patch_forensics.averages import FULL
from patch_forensics.experiments import GROUPS
from patch_forensics.figures import draw_runs
from patch_forensics.options import GroupTest, PatchTest
from utils.cli import say_files
from utils.errors import UserError
from utils.files import write_text
from utils.provenance import describes, read_record
from utils.tables import ABSENT, markdown, percent, percent_range, read_rows, read_table, write_rows

_SHOWN = ("after_softmax", FULL)
"""What stands in tables: of classifiers of patches, of whole images."""


@dataclass(frozen=True)
class Tested:
    """A row of `runs.csv`: an average of a run on a data set; as `MetricRow`, with an interval of `ap_fake`."""

    run: str
    partition: str
    epoch: str
    dataset: str
    average: str
    ap_class_1: float
    ap_fake: float
    ap_low: float
    ap_high: float
    acc: float
    n: int


def test_group(options: GroupTest, run: RunOptions) -> list[Path]:
    """Test a classifier on the data sets of a group that are there, and write tables over all runs.

    Raises:
        UserError: None of them is there, or as `test_patches`.
    """
    results = options.results_dir or run.output_dir
    sets = _sets(options)
    there = [entry for entry in sets if all((folder / options.partition).is_dir() for folder in entry[:2])]
    for fake, real, name in sets:
        if (fake, real, name) not in there:
            sys.stderr.write(f"warning: {name} is left out: no {options.partition} in {fake} or in {real}\n")
    if not there:
        raise UserError(f"none of the data sets of {options.group} lies in {options.data_root}: give --data_root")
    for fake, real, name in there:
        test = PatchTest(
            train_config=options.checkpoint / "opt.yml",
            which_epoch=options.which_epoch,
            partition=options.partition,
            dataset_name=name,
            real_im_path=real / options.partition,
            fake_im_path=fake / options.partition,
            max_dataset_size=options.max_dataset_size,
            results_dir=results,
            gpu_ids=options.gpu_ids,
            device=options.device,
            bootstrap=options.bootstrap,
        )
        test_patches(test, run)
    written = write_tables(results)
    say_files(written)
    return written


def _sets(options: GroupTest) -> list[tuple[Path, Path, str]]:
    """Folder of the fakes, of the reals, and name."""
    root = options.data_root
    if options.group in GROUPS:
        return [(root / fake, root / real, name) for fake, real, name in GROUPS[options.group]]
    file = Path(options.group)
    if not file.is_file():
        raise UserError(
            f"no group {options.group}: use {', '.join(GROUPS)}, or a CSV with the columns name, real and fake"
        )
    header, lines = read_table(file, made_by="the columns name, real and fake")
    if header != ["name", "real", "fake"]:
        raise UserError(f"{file} has the columns {', '.join(header)}: give it name, real and fake")
    return [(root / fake, root / real, name) for name, real, fake in lines]


def write_tables(results: Path) -> list[Path]:
    """Write `runs.csv`, `tables.md` and a figure over all results in a folder that are as they were written.

    Raises:
        UserError: There are none.
    """
    rows: list[Tested] = []
    for path in sorted(results.glob("*/*/epoch_*/*/metrics.csv")):
        if not describes(read_record(path), path):
            continue
        run, partition, epoch, dataset = path.relative_to(results).parts[:4]
        summary = {row.variant: row for row in read_rows(path.with_name("summary.csv"), ScoreSummary, made_by=SCRIPT)}
        for metrics in read_rows(path, MetricRow, made_by=SCRIPT):
            known = summary.get(metrics.average)
            low, high = (math.nan, math.nan) if known is None else (known.ap_low, known.ap_high)
            place = (run, partition, epoch.removeprefix("epoch_"), dataset)
            aps = (metrics.ap_class_1, metrics.ap_fake, low, high)
            rows.append(Tested(*place, metrics.average, *aps, metrics.acc, n=metrics.n))
    if not rows:
        raise UserError(f"no results in {results}: make some with {SCRIPT}")
    table, page = results / "runs.csv", results / "tables.md"
    write_rows(table, rows)
    shown = [row for row in rows if row.average in _SHOWN]
    runs = list(dict.fromkeys((row.run, row.partition, row.epoch) for row in shown))
    sets = list(dict.fromkeys(row.dataset for row in shown))
    by_place = {(row.run, row.partition, row.epoch, row.dataset): row for row in shown}
    cells = {
        "Average precision of class 1 (real, unless trained otherwise), as published": lambda row: percent(
            row.ap_class_1, 2
        ),
        "Average precision of fakes, with 95 % intervals": lambda row: (
            f"{percent(row.ap_fake)} {percent_range(row.ap_low, row.ap_high)}"
        ),
        "Accuracy": lambda row: percent(row.acc, 2),
        "Images": lambda row: str(row.n),
    }
    parts = ["# Patch classifiers", "Percent; patches averaged after the softmax. A dash: not tested."]
    for title, cell in cells.items():
        lines = [
            [*run, *(ABSENT if (row := by_place.get((*run, name))) is None else cell(row) for name in sets)]
            for run in runs
        ]
        parts += [f"## {title}", markdown(["run", "partition", "epoch", *sets], lines)]
    write_text(page, "\n\n".join(parts) + "\n")
    return [table, page, *draw_runs(_curves(shown, runs), sets, results / "runs")]


def _curves(
    rows: Sequence[Tested], runs: Sequence[tuple[str, str, str]]
) -> Mapping[str, Mapping[str, tuple[float, float, float]]]:
    """AP of fakes and its interval by data set, for each run."""
    return {
        " ".join(run): {
            row.dataset: (row.ap_fake, row.ap_low, row.ap_high)
            for row in rows
            if (row.run, row.partition, row.epoch) == run
        }
        for run in runs
    }
