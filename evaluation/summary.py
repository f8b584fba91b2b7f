"""From columns of scores to what is reported of each: every metric with its 95 % interval, and means over test sets."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from evaluation.intervals import Resampling, centred_bounds, interval, ranking_of_draws, wilson_interval
from evaluation.metrics import calibration_gaps, called_fake, checked
from evaluation.thresholds import Threshold

RANKING_METRICS = ("ap", "roc_auc")
SHARES = ("acc", "acc_real", "acc_fake", "acc_calibrated", "acc_real_calibrated", "acc_fake_calibrated")
METRICS = (*RANKING_METRICS, "ece", *SHARES)


@dataclass(frozen=True)
class ScoreSummary:
    """What is reported of one condition; all metrics are fractions in 0..1.

    `_low` and `_high` bound 95 % intervals (see `evaluation.intervals`), `_spread` is the standard deviation over the
    draws. NaN stands for what is not there: metrics of both labels on images of one, calibrated accuracies without a
    threshold, the spread of a single column. The intervals take the threshold as given.

    Attributes:
        variant: Name of the condition.
        ap, roc_auc: Average precision and area under the ROC curve.
        acc, acc_real, acc_fake: Accuracies at 0.5.
        acc_calibrated, acc_real_calibrated, acc_fake_calibrated: Accuracies at the calibrated threshold.
        ece: Expected calibration error.
        threshold: Calibrated threshold.
        draws: Score columns that the metrics are means over.
        images, fakes: Number of images, and of fakes among them.
        clusters: Independent units that they make up; the number of images if each stands for itself.
        maps_dropped: Feature maps dropped, where the condition drops any.
    """

    variant: str
    ap: float
    ap_low: float
    ap_high: float
    ap_spread: float
    roc_auc: float
    roc_auc_low: float
    roc_auc_high: float
    roc_auc_spread: float
    ece: float
    ece_low: float
    ece_high: float
    ece_spread: float
    acc: float
    acc_low: float
    acc_high: float
    acc_spread: float
    acc_real: float
    acc_real_low: float
    acc_real_high: float
    acc_real_spread: float
    acc_fake: float
    acc_fake_low: float
    acc_fake_high: float
    acc_fake_spread: float
    acc_calibrated: float
    acc_calibrated_low: float
    acc_calibrated_high: float
    acc_calibrated_spread: float
    acc_real_calibrated: float
    acc_real_calibrated_low: float
    acc_real_calibrated_high: float
    acc_real_calibrated_spread: float
    acc_fake_calibrated: float
    acc_fake_calibrated_low: float
    acc_fake_calibrated_high: float
    acc_fake_calibrated_spread: float
    threshold: float
    draws: int
    images: int
    fakes: int
    clusters: int
    maps_dropped: int | None = None


@dataclass(frozen=True)
class MeanOverSets:
    """A condition averaged over test sets.

    Attributes:
        sets: Number of test sets; a metric that is NaN on some is averaged over the others.
        mean: By metric.
        error: Standard error between the sets, by metric; NaN for one.
    """

    sets: int
    mean: Mapping[str, float]
    error: Mapping[str, float]


def summarise_columns(
    labels: ArrayLike,
    columns: Mapping[str, ArrayLike],
    groups: Mapping[str, Sequence[str]],
    threshold: Threshold | None = None,
    clusters: ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
    strict: bool = False,
) -> list[ScoreSummary]:
    """Metrics of every column of scores, then of every group: the mean of the metrics of its columns.

    All are computed on the same redraws of images, so columns can be compared. Images of one label alone have
    accuracies (the detection or the false-positive rate) but no ranking.

    Args:
        labels: (n,), 0 real and 1 fake.
        columns: scores by condition, (n,) each.
        groups: names of columns that are draws of one kind.
        threshold: for the calibrated accuracies.
        clusters: (n,), which images belong together; see `Resampling`.
        draws: number of redraws.
        seed: of the redraws.
        strict: call an image fake above a threshold only, as the published code does.

    Raises:
        UserError: there are no images, or a score is not finite.
    """
    truth = np.asarray(labels)
    scores = {name: checked(truth, column, one_label=True)[1] for name, column in columns.items()}
    cut = math.nan if threshold is None else threshold.value
    whole = np.ones((1, len(truth)))
    values = {name: _metrics_of_draws(truth, column, whole, cut, strict)[0] for name, column in scores.items()}
    resampling = Resampling(truth, clusters, draws=draws, seed=seed)
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in scores}
    for counts in resampling.blocks():
        for name, column in scores.items():
            blocks[name].append(_metrics_of_draws(truth, column, counts, cut, strict))
    redrawn = {name: np.concatenate(parts) for name, parts in blocks.items()}
    rows = []
    for stream, (name, members) in enumerate([*((name, [name]) for name in scores), *groups.items()]):
        each = np.array([values[member] for member in members])
        spread = each.std(axis=0, ddof=1) if len(members) > 1 else np.full(len(METRICS), np.nan)
        mean = each.mean(axis=0)
        samples = np.mean([redrawn[member] for member in members], axis=0)
        samples = resampling.add_columns(samples, spread, len(members), stream=stream)
        low, high = _bounds(mean, samples, resampling, len(members))
        cells: dict[str, Any] = {"draws": len(members), "images": len(truth), "fakes": int(np.sum(truth))}
        for index, metric in enumerate(METRICS):
            for suffix, numbers in (("", mean), ("_low", low), ("_high", high), ("_spread", spread)):
                cells[metric + suffix] = float(numbers[index])
        rows.append(ScoreSummary(name, threshold=cut, clusters=resampling.units, **cells))
    return rows


def _metrics_of_draws(
    labels: np.ndarray, scores: np.ndarray, counts: np.ndarray, cut: float, strict: bool
) -> np.ndarray:
    """`METRICS` of each redraw: counts (draws, n) to (draws, metrics)."""
    of_label = np.stack([labels == 0, labels == 1], axis=1).astype(float)
    right = [(called_fake(scores, bound, strict=strict) == labels)[:, None] * of_label for bound in (0.5, cut)]
    # one product for everything that is a sum over images: (draws, 2 + 2 + 2 + bins)
    sums = counts @ np.concatenate([of_label, *right, calibration_gaps(labels, scores)], axis=1)
    totals, gaps = sums[:, :2], sums[:, 6:]
    table = np.full((len(counts), len(METRICS)), np.nan)
    if of_label.any(axis=0).all():
        table[:, 0], table[:, 1] = ranking_of_draws(labels, scores, counts)
    table[:, 2] = np.abs(gaps).sum(axis=1) / totals.sum(axis=1)
    for start, hits in ((3, sums[:, 2:4]), (6, sums[:, 4:6])):
        if start == 6 and math.isnan(cut):
            break
        table[:, start] = hits.sum(axis=1) / totals.sum(axis=1)
        np.divide(hits, totals, out=table[:, start + 1 : start + 3], where=totals > 0)
    return table


def _bounds(mean: np.ndarray, samples: np.ndarray, resampling: Resampling, columns: int) -> np.ndarray:
    """(2, metrics): Wilson's intervals of shares, others by redraws; both where units or columns are several."""
    every, real, fake = resampling.units, resampling.real_units, resampling.fake_units
    units = [min(real, fake), min(real, fake), every, *[every, real, fake] * 2]
    bounds = interval(mean[:3], samples[:, :3], [max(1, count) for count in units[:3]])
    shares = np.array([wilson_interval(m * u, u) for m, u in zip(mean[3:], units[3:], strict=True)]).T
    if resampling.clustered or columns > 1:
        low, high = centred_bounds(mean[3:], samples[:, 3:])
        shares = np.clip([np.minimum(shares[0], low), np.maximum(shares[1], high)], 0.0, 1.0)
    return np.concatenate([bounds, shares], axis=1)


def mean_over_sets(rows: Iterable[ScoreSummary]) -> dict[str, MeanOverSets]:
    """The mean of each condition's metrics over the rows of several test sets, by condition."""
    by_variant: dict[str, list[ScoreSummary]] = {}
    for row in rows:
        by_variant.setdefault(row.variant, []).append(row)
    means = {}
    for variant, members in by_variant.items():
        mean, error = {}, {}
        for metric in METRICS:
            known = [value for row in members if not math.isnan(value := getattr(row, metric))]
            mean[metric] = float(np.mean(known)) if known else math.nan
            several = len(known) > 1
            error[metric] = float(np.std(known, ddof=1)) / math.sqrt(len(known)) if several else math.nan
        means[variant] = MeanOverSets(len(members), mean, error)
    return means
