"""From scores per image to metrics per detector, test set and variant."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cr_ud.scoring import RGB
from evaluation.metrics import (
    Statistic,
    accuracies,
    accuracy_of_draws,
    ap_of_draws,
    average_precision,
    bootstrap_interval,
    expected_calibration_error,
    gmean_threshold,
    roc_auc,
    roc_auc_of_draws,
    standard_error_of_share,
    wilson_interval,
)
from utils.errors import UserError


@dataclass(frozen=True)
class SetScores:
    """Scores of one detector on one test set.

    Attributes:
        detector, arch, test_set: names.
        classes, paths: of each image, (n,).
        labels: 0 real, 1 fake, (n,).
        scores: probability of fake by variant, (n,) each.
    """

    detector: str
    arch: str
    test_set: str
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: np.ndarray
    scores: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Summary:
    """Metrics of a detector on a test set under a variant; all in 0..1.

    `_se` is the standard error sqrt(a (1 - a) / n) of an accuracy; `_low` and `_high` bound 95 % intervals: the
    bootstrap's, and Wilson's for the accuracies on reals and on fakes, which is no point at 0 and 1. The calibrated
    threshold is the G-mean optimum on the RGB images of the set `calibrated_on`; the columns that need it are None
    without such a set.
    """

    detector: str
    arch: str
    test_set: str
    variant: str
    real: int
    fake: int
    ap: float
    ap_low: float
    ap_high: float
    roc_auc: float
    roc_auc_low: float
    roc_auc_high: float
    ece: float
    acc: float
    acc_low: float
    acc_high: float
    acc_se: float
    acc_real: float
    acc_real_low: float
    acc_real_high: float
    acc_real_se: float
    acc_fake: float
    acc_fake_low: float
    acc_fake_high: float
    acc_fake_se: float
    calibrated_on: str | None = None
    threshold: float | None = None
    acc_calibrated: float | None = None
    acc_calibrated_se: float | None = None
    acc_real_calibrated: float | None = None
    acc_fake_calibrated: float | None = None


def calibrated_thresholds(tables: Iterable[SetScores], calibrate_on: str) -> dict[str, float]:
    """The G-mean threshold of each detector on the RGB images of the set `calibrate_on`.

    Raises:
        UserError: the set is not among the tables.
    """
    found = {
        table.detector: gmean_threshold(table.labels, table.scores[RGB])
        for table in tables
        if table.test_set == calibrate_on
    }
    if not found:
        raise UserError(f"--calibrate_on {calibrate_on}: add this set to --gan_name, or name one of those there")
    return found


def summarise(
    tables: Sequence[SetScores],
    *,
    calibrate_on: str | None = None,
    draws: int = 1000,
    seed: int = 0,
    strict: bool = False,
) -> list[Summary]:
    """Metrics of every table and variant.

    Args:
        tables: scores.
        calibrate_on: test set whose scores the second threshold comes from.
        draws: of the bootstrap.
        seed: of the bootstrap.
        strict: call images fake above a threshold only, as the published code does.

    Raises:
        UserError: a set lacks real or fake images, or `calibrate_on` is not there.
    """
    thresholds = {} if calibrate_on is None else calibrated_thresholds(tables, calibrate_on)
    return [
        _summary(table, variant, scores, thresholds.get(table.detector), calibrate_on, draws, seed, strict)
        for table in tables
        for variant, scores in table.scores.items()
    ]


def _summary(
    table: SetScores,
    variant: str,
    scores: np.ndarray,
    threshold: float | None,
    calibrated_on: str | None,
    draws: int,
    seed: int,
    strict: bool,
) -> Summary:
    labels = table.labels
    try:
        real, fake, overall = accuracies(labels, scores, 0.5, strict=strict)
    except UserError as error:
        raise UserError(f"{table.test_set}: {error}") from error
    reals, fakes = int((labels == 0).sum()), int((labels == 1).sum())

    def interval(statistic: Statistic) -> tuple[float, float]:
        return bootstrap_interval(statistic, labels, scores, draws=draws, seed=seed)

    ap_bounds, auc_bounds = interval(ap_of_draws), interval(roc_auc_of_draws)
    acc_bounds = interval(accuracy_of_draws(0.5, strict=strict))
    real_bounds, fake_bounds = wilson_interval(round(real * reals), reals), wilson_interval(round(fake * fakes), fakes)
    summary = Summary(
        detector=table.detector,
        arch=table.arch,
        test_set=table.test_set,
        variant=variant,
        real=reals,
        fake=fakes,
        ap=average_precision(labels, scores),
        ap_low=ap_bounds[0],
        ap_high=ap_bounds[1],
        roc_auc=roc_auc(labels, scores),
        roc_auc_low=auc_bounds[0],
        roc_auc_high=auc_bounds[1],
        ece=expected_calibration_error(labels, scores),
        acc=overall,
        acc_low=acc_bounds[0],
        acc_high=acc_bounds[1],
        acc_se=standard_error_of_share(overall, reals + fakes),
        acc_real=real,
        acc_real_low=real_bounds[0],
        acc_real_high=real_bounds[1],
        acc_real_se=standard_error_of_share(real, reals),
        acc_fake=fake,
        acc_fake_low=fake_bounds[0],
        acc_fake_high=fake_bounds[1],
        acc_fake_se=standard_error_of_share(fake, fakes),
    )
    if threshold is None:
        return summary
    real, fake, overall = accuracies(labels, scores, threshold, strict=strict)
    return replace(
        summary,
        calibrated_on=calibrated_on,
        threshold=threshold,
        acc_calibrated=overall,
        acc_calibrated_se=standard_error_of_share(overall, reals + fakes),
        acc_real_calibrated=real,
        acc_fake_calibrated=fake,
    )
