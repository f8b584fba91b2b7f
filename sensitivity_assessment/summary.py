"""From scores to what is reported: average precision, accuracies at two thresholds, and how sure they are."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evaluation.summary import ScoreSummary, summarise_columns
from evaluation.thresholds import FIXED, Threshold, gmean_threshold
from sensitivity_assessment.scores import Scores
from utils.errors import UserError
from utils.files import write_csv

AP = "ap"
METRICS = (AP, "acc_real", "acc_fake", "acc", "acc_real_calibrated", "acc_fake_calibrated", "acc_calibrated")
AVERAGED = "averaged"

# Its detectors are trained on ProGAN, so there 0.5 is what they were made for.
_UNCALIBRATED_GENERATOR = "progan"


def choose_threshold(
    gan_name: str,
    scores: Scores,
    column: str,
    calibration: tuple[str, Scores] | None,
    *,
    published: bool = False,
) -> Threshold:
    """The threshold for the accuracies called calibrated.

    Args:
        gan_name: Generator reported on; `progan` has the fixed threshold 0.5 unless there is a calibration set.
        scores: Its scores.
        column: The condition that the threshold is chosen on.
        calibration: Name and scores of a set kept apart for the choice.
        published: Put it where the published code does.

    Raises:
        UserError: One class is empty.
    """
    if calibration is None and gan_name == _UNCALIBRATED_GENERATOR:
        return Threshold(0.5, 0.5, 0.5, FIXED)
    source, chosen_on = (gan_name, scores) if calibration is None else calibration
    threshold = gmean_threshold(chosen_on.labels, chosen_on.columns[column], source, published=published)
    return replace(threshold, shared=len(set(chosen_on.paths) & set(scores.paths)))


@dataclass(frozen=True)
class SummaryRow:
    """What is reported of one condition.

    Attributes:
        variant: Its name.
        draws: Number of score columns that its metrics are the mean of.
        threshold: Calibrated threshold.
        values: By metric, 0..1.
        low, high: By metric, 95 % interval.
        spread: By metric, standard deviation over the draws; NaN for a single column.
    """

    variant: str
    draws: int
    threshold: float
    values: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    spread: Mapping[str, float]


def summarise(
    scores: Scores,
    draws: Mapping[str, Sequence[str]],
    threshold: Threshold,
    *,
    published: bool = False,
    seed: int = 0,
    bootstrap: int = 1000,
) -> list[SummaryRow]:
    """Metrics of every column, of the mean over the draws of a kind, and of the draws' averaged scores.

    The row of a kind, e.g. `random-k`, holds the mean of the metrics of its draws; the row `<kind>-averaged` the
    metrics of the averaged scores, which is what the published tables show.

    Args:
        scores: The scores.
        draws: By kind the columns that are its draws.
        threshold: For the calibrated accuracies.
        published: Call an image fake above a threshold only, not at it.
        seed: Of the bootstrap.
        bootstrap: Number of redrawn samples.

    Raises:
        UserError: One class is empty.
    """
    columns = dict(scores.columns)
    groups: dict[str, Sequence[str]] = {}
    for kind, members in draws.items():
        columns[f"{kind}-{AVERAGED}"] = np.mean([scores.columns[member] for member in members], axis=0)
        groups[kind] = members
    rows = summarise_columns(scores.labels, columns, groups, threshold, draws=bootstrap, seed=seed, strict=published)

    def named(row: ScoreSummary, suffix: str) -> dict[str, float]:
        return {metric: getattr(row, metric + suffix) for metric in METRICS}

    summaries = {
        row.variant: SummaryRow(
            row.variant,
            row.draws,
            row.threshold,
            named(row, ""),
            named(row, "_low"),
            named(row, "_high"),
            named(row, "_spread"),
        )
        for row in rows
    }
    kinds = [name for kind in draws for name in (kind, f"{kind}-{AVERAGED}")]
    return [summaries[name] for name in (*scores.columns, *kinds)]


_STATISTICS = ("low", "high", "spread")
_COLUMNS = (
    "variant",
    *METRICS[:4],
    "threshold",
    *METRICS[4:],
    "draws",
    *(f"{metric}_{statistic}" for metric in METRICS for statistic in _STATISTICS),
)


def write_summary(path: Path, rows: Sequence[SummaryRow]) -> None:
    """Write the rows as CSV; fractions in full precision, no spread where there is one draw; atomic."""
    table = []
    for row in rows:
        by_statistic = {"low": row.low, "high": row.high, "spread": row.spread}
        cells: list[object] = [row.variant, *(row.values[metric] for metric in METRICS[:4]), row.threshold]
        cells += [*(row.values[metric] for metric in METRICS[4:]), row.draws]
        for metric in METRICS:
            for statistic in _STATISTICS:
                value = by_statistic[statistic][metric]
                cells.append("" if math.isnan(value) else value)
        table.append(cells)
    write_csv(path, _COLUMNS, table)


def read_summary(path: Path, *, made_by: str) -> list[SummaryRow]:
    """Read what `write_summary` wrote.

    Raises:
        UserError: missing, unreadable or of another format.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
        return [
            SummaryRow(
                cells["variant"],
                int(cells["draws"]),
                float(cells["threshold"]),
                {metric: float(cells[metric]) for metric in METRICS},
                {metric: float(cells[f"{metric}_low"]) for metric in METRICS},
                {metric: float(cells[f"{metric}_high"]) for metric in METRICS},
                {metric: float(cells[f"{metric}_spread"] or "nan") for metric in METRICS},
            )
            for cells in table
        ]
    except FileNotFoundError:
        raise UserError(f"no summary at {path}: make it with {made_by}") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged or not a summary: make it anew with {made_by}") from error
