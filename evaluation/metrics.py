"""Metrics of detectors: ranking, accuracies, thresholds, calibration, and how sure they are.

Labels are 0 real and 1 fake, scores are the probability of fake; every result is a fraction in 0..1.
"""

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from utils.errors import UserError

# (labels (n,), scores (n,), counts (draws, n)) to values (draws,); counts says how often each draw holds each image
Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

_CELLS_AT_ONCE = 2_000_000


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision (AP) with fakes as positives: sum over thresholds of precision times gain in recall.

    Raises:
        UserError: there are no real or no fake images, or a score is not finite.
    """
    return float(average_precision_score(*_checked(labels, scores)))


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the receiver operating characteristic, ties counting one half.

    Raises:
        UserError: there are no real or no fake images, or a score is not finite.
    """
    return float(roc_auc_score(*_checked(labels, scores)))


def accuracies(
    labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5, *, strict: bool = False
) -> tuple[float, float, float]:
    """Accuracy on reals, on fakes, and on all images.

    Args:
        labels, scores: (n,) each.
        threshold: an image is called fake from this score on.
        strict: call it fake above the threshold only, as the published code does.

    Raises:
        UserError: there are no real or no fake images, or a score is not finite.
    """
    truth, values = _checked(labels, scores)
    right = _called_fake(values, threshold, strict) == truth.astype(bool)
    return float(right[truth == 0].mean()), float(right[truth == 1].mean()), float(right.mean())


def gmean_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The score that maximises sqrt(tpr (1 - fpr)) when images are called fake from it on; the highest of equals.

    Raises:
        UserError: there are no real or no fake images, or a score is not finite.
    """
    false_rate, true_rate, thresholds = roc_curve(*_checked(labels, scores))
    return float(thresholds[np.argmax(np.sqrt(true_rate * (1.0 - false_rate)))])


def expected_calibration_error(labels: ArrayLike, scores: ArrayLike, bins: int = 15) -> float:
    """Mean distance of confidence and accuracy over bins of confidence (Guo et al., ICML 2017, equation 3).

    The confidence is the probability of the class decided on at 0.5: max(p, 1 - p).

    Raises:
        UserError: there are no real or no fake images, or a score is not finite.
    """
    truth, values = _checked(labels, scores)
    right = _called_fake(values, 0.5, False) == truth.astype(bool)
    confidence = np.maximum(values, 1.0 - values)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(values))


def standard_error_of_share(share: float, count: int) -> float:
    """Standard error sqrt(share (1 - share) / count) of a share of `count` independent images."""
    return math.sqrt(share * (1.0 - share) / count)


def wilson_interval(successes: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share; unlike the standard error it says something at 0 and 1, too.

    >>> [round(bound, 4) for bound in wilson_interval(20, 20)]
    [0.8389, 1.0]
    """
    z = NormalDist().inv_cdf(0.5 + level / 2.0)
    share = successes / count
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1.0 - share) / count + z * z / (4 * count * count))
    scale = 1.0 + z * z / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def bootstrap_interval(
    statistic: Statistic,
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval: images are redrawn with replacement, reals and fakes apart.

    The draws depend on `seed` and the labels only, so that statistics of the same images are paired.

    Args:
        statistic: `ap_of_draws`, `roc_auc_of_draws`, or what `accuracy_of_draws` gives.
        labels, scores: (n,) each.
        draws: number of redrawn samples.
        seed: of the draws.
        level: share of the draws inside the interval.

    Raises:
        UserError: there are no real or no fake images, or a score is not finite.
    """
    truth, values = _checked(labels, scores)
    results = [statistic(truth, values, counts) for counts in bootstrap_counts(truth, draws=draws, seed=seed)]
    low, high = np.quantile(np.concatenate(results), [0.5 - level / 2.0, 0.5 + level / 2.0])
    return float(low), float(high)


def bootstrap_counts(labels: np.ndarray, *, draws: int = 1000, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each draw of `bootstrap_interval` holds each image: blocks (some draws, n) that make up `draws`."""
    generator = np.random.default_rng(seed)
    block = max(1, _CELLS_AT_ONCE // len(labels))
    for start in range(0, draws, block):
        yield _redraw(labels, min(block, draws - start), generator)


def ap_of_draws(labels: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`average_precision` of each draw: counts (draws, n) to (draws,)."""
    true, false = _cumulated(labels, scores, counts)
    recall_gain = np.diff(true, axis=1, prepend=0.0) / true[:, -1:]
    # where nothing is counted yet there is no gain in recall either
    precision = true / np.maximum(true + false, 1.0)
    return (recall_gain * precision).sum(axis=1)


def roc_auc_of_draws(labels: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`roc_auc` of each draw: counts (draws, n) to (draws,)."""
    true, false = _cumulated(labels, scores, counts)
    middle = true - np.diff(true, axis=1, prepend=0.0) / 2.0
    area = (np.diff(false, axis=1, prepend=0.0) * middle).sum(axis=1)
    return area / (true[:, -1] * false[:, -1])


def accuracy_of_draws(threshold: float = 0.5, *, label: int | None = None, strict: bool = False) -> Statistic:
    """A statistic for `bootstrap_interval`: accuracy at `threshold` on all images, or on those of one label."""

    def statistic(labels: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
        right = _called_fake(scores, threshold, strict) == labels.astype(bool)
        chosen = np.ones(len(labels), bool) if label is None else labels == label
        return counts[:, chosen & right].sum(axis=1) / counts[:, chosen].sum(axis=1)

    return statistic


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise ValueError(f"expected labels and scores of one shape (n,), got {truth.shape} and {values.shape}")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("expected labels 0 (real) and 1 (fake) only")
    for label, name in ((0, "real"), (1, "fake")):
        if not (truth == label).any():
            raise UserError(f"no {name} images to compute metrics of: give images of both kinds")
    if not np.isfinite(values).all():
        raise UserError("scores are not finite (NaN or infinite): the detector's weights are damaged")
    return truth, values


def _called_fake(scores: np.ndarray, threshold: float, strict: bool) -> np.ndarray:
    return scores > threshold if strict else scores >= threshold


def _redraw(labels: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    counts = np.zeros((draws, len(labels)), dtype=np.int32)
    for label in (0, 1):
        positions = np.flatnonzero(labels == label)
        size = len(positions)
        drawn = generator.integers(0, size, (draws, size)) + size * np.arange(draws)[:, None]
        counts[:, positions] = np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size)
    return counts


def _cumulated(labels: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of fakes and of reals at or above each distinct score, highest first: (draws, distinct) each."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    sorted_counts, fake = counts[:, order], labels[order].astype(bool)
    true = np.cumsum(sorted_counts * fake, axis=1, dtype=np.float64)[:, ends]
    false = np.cumsum(sorted_counts * ~fake, axis=1, dtype=np.float64)[:, ends]
    return true, false
