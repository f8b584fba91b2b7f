"""From scores per image to metrics per detector, test set and variant."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from cr_ud.scoring import RGB
from evaluation.metrics import checked
from evaluation.summary import ScoreSummary, summarise_columns
from evaluation.thresholds import Threshold, gmean_threshold
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

    `_se` is the standard error sqrt(a (1 - a) / n) of an accuracy; `_low` and `_high` bound 95 % intervals, see
    `evaluation.intervals`. The calibrated threshold is the G-mean optimum on the RGB images of the set
    `calibrated_on`; the columns that need it are None without such a set.
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


def calibrated_thresholds(
    tables: Iterable[SetScores], calibrate_on: str, *, published: bool = False
) -> dict[str, float]:
    """The G-mean threshold of each detector on the RGB images of the set `calibrate_on`.

    Raises:
        UserError: the set is not among the tables.
    """
    found = {
        table.detector: gmean_threshold(table.labels, table.scores[RGB], calibrate_on, published=published).value
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
    thresholds = {} if calibrate_on is None else calibrated_thresholds(tables, calibrate_on, published=strict)
    summaries = []
    for table in tables:
        value = thresholds.get(table.detector)
        threshold = None if value is None else Threshold(value)
        try:
            for scores in table.scores.values():
                checked(table.labels, scores)
        except UserError as error:
            raise UserError(f"{table.test_set}: {error}") from error
        rows = summarise_columns(table.labels, table.scores, {}, threshold, draws=draws, seed=seed, strict=strict)
        summaries += [_summary(table, row, None if value is None else calibrate_on) for row in rows]
    return summaries


def _summary(table: SetScores, row: ScoreSummary, calibrated_on: str | None) -> Summary:
    cells: dict[str, Any] = {}
    for name in (entry.name for entry in fields(Summary)):
        if name.endswith("_se"):
            share = getattr(row, name.removesuffix("_se"))
            count = row.fakes if "fake" in name else row.images - row.fakes if "real" in name else row.images
            cells[name] = math.sqrt(share * (1.0 - share) / count)
        elif hasattr(row, name):
            cells[name] = getattr(row, name)
        if calibrated_on is None and ("calibrated" in name or name == "threshold"):
            cells[name] = None
    cells |= {"detector": table.detector, "arch": table.arch, "test_set": table.test_set}
    cells |= {"real": row.images - row.fakes, "fake": row.fakes, "calibrated_on": calibrated_on}
    return Summary(**cells)
