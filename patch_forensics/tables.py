"""A classifier on a group of data sets, and tables over classifiers and data sets, as in the published notebooks."""

import sys
from dataclasses import dataclass
from pathlib import Path

from passes.options import RunOptions
from patch_forensics.analysis import SCRIPT, MetricRow, evaluate_patches
from patch_forensics.averages import FULL
from patch_forensics.experiments import KNOWN
from patch_forensics.figures import draw_runs
from patch_forensics.options import GroupTest, PatchTest
from utils.cli import say_files
from utils.errors import UserError
from utils.files import write_text
from utils.provenance import describes, read_record
from utils.tables import ABSENT, markdown, percent, percent_range, read_rows, write_rows

GROUPS = ("gen_models", "faceforensics")
"""Of data sets, published."""
_SHOWN = ("after_softmax", FULL)
"""What stands in tables: of classifiers of patches, of whole images."""


@dataclass(frozen=True)
class _Where:
    run: str
    partition: str
    epoch: str
    dataset: str


@dataclass(frozen=True)
class Tested(MetricRow, _Where):
    """A row of `runs.csv`: a run and a data set, then an average there; fields of the last base come first."""


@dataclass(frozen=True)
class DataSet:
    """A row of a group: name, folders of reals and of fakes."""

    name: str
    real: str
    fake: str


def test_group(options: GroupTest, run: RunOptions) -> list[Path]:
    """Test a classifier on the data sets of a group that are there, and write tables over all runs.

    Raises:
        UserError: None of them is there, or as `evaluate_patches`.
    """
    results = options.results_dir or run.output_dir
    there: dict[str, list[Path]] = {}
    for entry in _sets(options):
        if entry.name in there:
            raise UserError(f"{options.group} has two data sets called {entry.name}: give each a name of its own")
        folders = [options.data_root / folder / options.partition for folder in (entry.real, entry.fake)]
        if all(folder.is_dir() for folder in folders):
            there[entry.name] = folders
        else:
            sys.stderr.write(f"warning: {entry.name} is left out: no {' or no '.join(map(str, folders))}\n")
    if not there:
        raise UserError(f"none of the data sets of {options.group} lies in {options.data_root}: give --data_root")
    same = ("which_epoch", "partition", "max_dataset_size", "gpu_ids", "device", "bootstrap")
    for name, (real, fake) in there.items():
        test = PatchTest(
            train_config=options.checkpoint / "opt.yml",
            dataset_name=name,
            real_im_path=real,
            fake_im_path=fake,
            results_dir=results,
            **{flag: getattr(options, flag) for flag in same},
        )
        evaluate_patches(test, run)
    written = write_tables(results)
    say_files(written)
    return written


def _sets(options: GroupTest) -> list[DataSet]:
    file = KNOWN / f"{options.group}.csv" if options.group in GROUPS else Path(options.group)
    if not file.is_file():
        raise UserError(
            f"no group {options.group}: use {', '.join(GROUPS)}, or a CSV with the columns name, real and fake"
        )
    return read_rows(file, DataSet, made_by="the columns name, real and fake")


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
        where = (run, partition, epoch.removeprefix("epoch_"), dataset)
        rows += (Tested(*where, **vars(metrics)) for metrics in read_rows(path, MetricRow, made_by=SCRIPT))
    if not rows:
        raise UserError(f"no results in {results}: make some with {SCRIPT}")
    table, page = results / "runs.csv", results / "tables.md"
    write_rows(table, rows)
    tested: dict[tuple[str, str, str], dict[str, Tested]] = {}
    for row in rows:
        if row.average in _SHOWN:
            tested.setdefault((row.run, row.partition, row.epoch), {})[row.dataset] = row
    sets = list(dict.fromkeys(name for by_set in tested.values() for name in by_set))
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
        lines = []
        for key, by_set in tested.items():
            lines.append([*key, *(cell(by_set[name]) if name in by_set else ABSENT for name in sets)])
        parts += [f"## {title}", markdown(["run", "partition", "epoch", *sets], lines)]
    write_text(page, "\n\n".join(parts) + "\n")
    aps = {
        " ".join(key): {name: (row.ap_fake, row.ap_low, row.ap_high) for name, row in by_set.items()}
        for key, by_set in tested.items()
    }
    return [table, page, *draw_runs(aps, sets, results / "runs")]
