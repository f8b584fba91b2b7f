"""From scores to what is reported: average precision, accuracies at two thresholds, and how sure they are."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.metrics import accuracies, ap_of_draws, average_precision, bootstrap_counts, gmean_threshold
from sensitivity_assessment.scores import Scores
from utils.errors import UserError
from utils.files import write_csv

AP = "ap"
METRICS = (AP, "acc_real", "acc_fake", "acc", "acc_real_calibrated", "acc_fake_calibrated", "acc_calibrated")
AVERAGED = "averaged"

_LEVEL = 0.95
# Its detectors are trained on ProGAN, so there 0.5 is what they were made for.
_UNCALIBRATED_GENERATOR = "progan"


@dataclass(frozen=True)
class Threshold:
    """From which score on an image is called fake, and where the number comes from.

    Attributes:
        value: The score, 0..1.
        source: `fixed` or the name of the image set that it was chosen on.
        shared: Whether it was chosen on the images whose accuracy is reported.
    """

    value: float
    source: str
    shared: bool

    @property
    def note(self) -> str:
        """One sentence for readers of a table."""
        if self.source == "fixed":
            return f"threshold {self.value:g}, fixed"
        note = f"threshold {self.value:.4g}, the G-mean optimum of the unchanged detector on {self.source}"
        if not self.shared:
            return note
        return note + ": the same images as reported, so the calibrated accuracies are optimistic"


def choose_threshold(gan_name: str, scores: Scores, column: str, calibration: tuple[str, Scores] | None) -> Threshold:
    """The threshold for the accuracies called calibrated.

    Args:
        gan_name: Generator reported on; `progan` has the fixed threshold 0.5 unless there is a calibration set.
        scores: Its scores.
        column: The condition that the threshold is chosen on.
        calibration: Name and scores of a set kept apart for the choice.

    Raises:
        UserError: One class is empty.
    """
    if calibration is not None:
        name, held_out = calibration
        value = gmean_threshold(held_out.labels, held_out.columns[column])
        return Threshold(value, name, bool(set(held_out.paths) & set(scores.paths)))
    if gan_name == _UNCALIBRATED_GENERATOR:
        return Threshold(0.5, "fixed", False)
    return Threshold(gmean_threshold(scores.labels, scores.columns[column]), gan_name, True)


@dataclass(frozen=True)
class SummaryRow:
    """What is reported of one condition.

    Attributes:
        variant: Its name.
        draws: Number of score columns that its metrics are the mean of.
        threshold: Calibrated threshold.
        values: By metric, 0..1.
        low, high: By metric, 95 % bootstrap interval over images.
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
    groups: dict[str, list[str]] = {name: [name] for name in columns}
    for kind, members in draws.items():
        averaged = f"{kind}-{AVERAGED}"
        columns[averaged] = np.mean([scores.columns[member] for member in members], axis=0)
        groups[kind] = list(members)
        groups[averaged] = [averaged]
    values = {
        name: _metrics(scores.labels, column, threshold.value, strict=published) for name, column in columns.items()
    }
    redrawn = _redrawn_metrics(scores.labels, columns, threshold.value, published, seed, bootstrap)
    rows = []
    for name, members in groups.items():
        found = np.array([values[member] for member in members])
        samples = np.mean([redrawn[member] for member in members], axis=0)
        low, high = np.quantile(samples, [0.5 - _LEVEL / 2, 0.5 + _LEVEL / 2], axis=0)
        spread = found.std(axis=0, ddof=1) if len(members) > 1 else np.full(len(METRICS), np.nan)
        rows.append(
            SummaryRow(
                name,
                len(members),
                threshold.value,
                _named(found.mean(axis=0)),
                _named(low),
                _named(high),
                _named(spread),
            )
        )
    return rows


def _named(values: np.ndarray) -> dict[str, float]:
    return dict(zip(METRICS, values.tolist(), strict=True))


def _metrics(labels: np.ndarray, column: np.ndarray, threshold: float, *, strict: bool) -> list[float]:
    return [
        average_precision(labels, column),
        *accuracies(labels, column, 0.5, strict=strict),
        *accuracies(labels, column, threshold, strict=strict),
    ]


def _redrawn_metrics(
    labels: np.ndarray, columns: Mapping[str, np.ndarray], threshold: float, strict: bool, seed: int, draws: int
) -> dict[str, np.ndarray]:
    """By column the metrics (draws, metrics) of samples redrawn from the images, the same ones for every column."""
    fake = labels == 1
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    for counts in bootstrap_counts(labels, draws=draws, seed=seed):
        weights = counts.astype(np.float64)
        for name, column in columns.items():
            metrics = [ap_of_draws(labels, column, counts)]
            for bound in (0.5, threshold):
                right = (column > bound if strict else column >= bound) == fake
                real_right, fake_right = weights @ (right & ~fake), weights @ (right & fake)
                metrics += [real_right / (~fake).sum(), fake_right / fake.sum(), (real_right + fake_right) / len(fake)]
            blocks[name].append(np.stack(metrics, axis=1))
    return {name: np.concatenate(parts) for name, parts in blocks.items()}


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
