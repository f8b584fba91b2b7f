"""Metrics against scikit-learn, hand calculations and the golden numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from evaluation import metrics
from utils.errors import UserError

LABELS = np.array([0, 0, 0, 1, 1])
SCORES = np.array([0.1, 0.4, 0.6, 0.5, 0.9])


def drawn(count: int, seed: int = 0, decimals: int = 2) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    scores = np.clip(generator.normal(0.4 + 0.2 * labels, 0.2), 0, 1).round(decimals)
    return labels, scores


def test_accuracies_count_the_threshold_itself_as_fake_unless_strict() -> None:
    assert metrics.accuracies(LABELS, SCORES, 0.5) == pytest.approx((2 / 3, 1.0, 4 / 5))
    assert metrics.accuracies(LABELS, SCORES, 0.5, strict=True) == pytest.approx((2 / 3, 0.5, 3 / 5))


def test_average_precision_and_area_are_those_of_scikit_learn() -> None:
    labels, scores = drawn(300)
    assert metrics.average_precision(labels, scores) == average_precision_score(labels, scores)
    assert metrics.roc_auc(labels, scores) == roc_auc_score(labels, scores)


@pytest.mark.parametrize("case", ["resnet50|single", "resnet50|classes", "efb0|single", "efb0|classes"])
def test_golden_sensitivity(shared_dir: Path, case: str) -> None:
    folder = shared_dir / "reference" / "golden"
    expected = json.loads((folder / "sensitivity.json").read_text())[case]
    with np.load(folder / "sensitivity_scores.npz") as arrays:
        labels = arrays[f"{case}|label"]
        scores = {variant: arrays[f"{case}|{variant}"] for variant in ("baseline", "topk", "lowk")}
    threshold = metrics.gmean_threshold(labels, scores["baseline"])
    assert threshold == pytest.approx(expected["threshold"], abs=1e-12)
    for variant, values in scores.items():
        numbers = expected[variant]
        assert metrics.average_precision(labels, values) == pytest.approx(numbers["ap"], abs=1e-9)
        real, fake, overall = metrics.accuracies(labels, values, threshold, strict=True)
        assert (real, fake, overall) == pytest.approx(
            (numbers["acc_real_calibrated"], numbers["acc_fake_calibrated"], numbers["acc_calibrated"])
        )


def test_gmean_threshold_by_trying_all() -> None:
    labels, scores = drawn(200, seed=3)
    found = metrics.gmean_threshold(labels, scores)

    def gmean(threshold: float) -> float:
        real, fake, _ = metrics.accuracies(labels, scores, threshold)
        return float(np.sqrt(real * fake))

    assert gmean(found) == pytest.approx(max(gmean(threshold) for threshold in np.unique(scores)))


def test_expected_calibration_error_by_hand() -> None:
    # two bins of confidence in use: 0.9 with one of two right, 0.6 with both right
    labels, scores = np.array([1, 0, 0, 1]), np.array([0.9, 0.9, 0.4, 0.6])
    expected = (2 * abs(0.5 - 0.9) + 2 * abs(1.0 - 0.6)) / 4
    assert metrics.expected_calibration_error(labels, scores, bins=10) == pytest.approx(expected)


def test_perfectly_calibrated_scores_have_small_error() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random(50_000)
    labels = (generator.random(50_000) < scores).astype(int)
    assert metrics.expected_calibration_error(labels, scores) < 0.01


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(1, 3)), min_size=2, max_size=30).filter(
        lambda rows: len({label for label, _, _ in rows}) == 2
    )
)
def test_statistics_of_draws_equal_those_of_the_repeated_images(rows: list[tuple[int, int, int]]) -> None:
    labels, scores, counts = (np.array(column) for column in zip(*rows, strict=True))
    scores = scores / 5
    repeated = np.repeat(labels, counts), np.repeat(scores, counts)
    draws = counts[None]
    assert metrics.ap_of_draws(labels, scores, draws)[0] == pytest.approx(metrics.average_precision(*repeated))
    assert metrics.roc_auc_of_draws(labels, scores, draws)[0] == pytest.approx(metrics.roc_auc(*repeated))
    real, fake, overall = metrics.accuracies(*repeated, 0.5)
    for label, value in ((0, real), (1, fake), (None, overall)):
        assert metrics.accuracy_of_draws(0.5, label=label)(labels, scores, draws)[0] == pytest.approx(value)


def test_bootstrap_interval_is_seeded_and_of_the_right_width() -> None:
    labels, scores = drawn(2000)
    statistic = metrics.accuracy_of_draws(0.5, label=1)
    low, high = metrics.bootstrap_interval(statistic, labels, scores, seed=1)
    assert (low, high) == metrics.bootstrap_interval(statistic, labels, scores, seed=1)
    assert (low, high) != metrics.bootstrap_interval(statistic, labels, scores, seed=2)
    _, share, _ = metrics.accuracies(labels, scores)
    assert low < share < high
    assert (high - low) / 2 == pytest.approx(1.96 * metrics.standard_error_of_share(share, 1000), rel=0.1)


def test_bootstrap_keeps_the_numbers_of_reals_and_fakes() -> None:
    seen: list[np.ndarray] = []

    def statistic(labels: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
        seen.append(np.stack([counts[:, labels == 0].sum(axis=1), counts[:, labels == 1].sum(axis=1)]))
        return np.zeros(len(counts))

    labels, scores = drawn(7)
    metrics.bootstrap_interval(statistic, labels, scores, draws=50)
    assert (np.concatenate(seen, axis=1) == np.array([[4], [3]])).all()


def test_wilson_interval_of_a_known_case() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263
    assert metrics.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert metrics.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 1], [0.1, 0.2], "no real images"),
        ([0, 0], [0.1, 0.2], "no fake images"),
        ([], [], "no real images"),
        ([0, 1], [0.1, float("nan")], "not finite"),
    ],
)
def test_what_cannot_be_computed_is_said(labels: list[int], scores: list[float], message: str) -> None:
    for metric in (
        metrics.average_precision,
        metrics.roc_auc,
        metrics.accuracies,
        metrics.gmean_threshold,
        metrics.expected_calibration_error,
    ):
        with pytest.raises(UserError, match=message):
            metric(labels, scores)
    with pytest.raises(UserError, match=message):
        metrics.bootstrap_interval(metrics.ap_of_draws, labels, scores)
