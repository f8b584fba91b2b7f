"""Metrics of detectors: ranking, accuracies, calibration.

Labels are 0 real and 1 fake, scores are the probability of fake; every result is a fraction in 0..1.
"""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score

from utils.errors import UserError

CALIBRATION_BINS = 15


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision (AP) with fakes as positives: sum over thresholds of precision times gain in recall.

    Raises:
        UserError: there are no real or no fake images, or a score is not finite.
    """
    return float(average_precision_score(*checked(labels, scores)))


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
    truth, values = checked(labels, scores)
    right = called_fake(values, threshold, strict=strict) == truth.astype(bool)
    return float(right[truth == 0].mean()), float(right[truth == 1].mean()), float(right.mean())


def calibration_gaps(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(n, bins): in the bin of its confidence, 1 or 0 for an image decided rightly or wrongly less the confidence.

    The absolute sums over images, added and divided by n, are the expected calibration error (Guo et al., ICML 2017,
    equation 3). The confidence is the probability of the class decided on at 0.5: max(p, 1 - p).
    """
    right = called_fake(scores, 0.5) == labels.astype(bool)
    confidence, bins = np.maximum(scores, 1.0 - scores), CALIBRATION_BINS
    gaps = np.zeros((len(scores), bins))
    gaps[np.arange(len(scores)), np.minimum((confidence * bins).astype(int), bins - 1)] = right - confidence
    return gaps


def called_fake(scores: np.ndarray, threshold: float, *, strict: bool = False) -> np.ndarray:
    """Whether each score is at the threshold or above it (`strict`: above it)."""
    return scores > threshold if strict else scores >= threshold


def checked(labels: ArrayLike, scores: ArrayLike, *, one_label: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Labels and float64 scores, (n,) each, fit for metrics.

    Args:
        labels, scores: of the images.
        one_label: accept reals alone or fakes alone.

    Raises:
        UserError: there are no real or no fake images, or a score is not finite.
    """
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise ValueError(f"expected labels and scores of one shape (n,), got {truth.shape} and {values.shape}")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("expected labels 0 (real) and 1 (fake) only")
    for label, name in ((0, "real"), (1, "fake")):
        if not (truth == label).any() and not (one_label and len(truth)):
            raise UserError(f"no {name} images to compute metrics of: give images of both kinds")
    if not np.isfinite(values).all():
        raise UserError("scores are not finite (NaN or infinite): the detector's weights are damaged")
    return truth, values
