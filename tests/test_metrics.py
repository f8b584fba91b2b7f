"""Metrics, thresholds and intervals against scikit-learn, SciPy, hand calculations, simulations and golden numbers."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

from evaluation import metrics
from evaluation.intervals import Resampling, ranking_of_draws, wilson_interval
from evaluation.summary import METRICS, ScoreSummary, mean_over_sets, summarise_columns
from evaluation.thresholds import Threshold, gmean_threshold
from utils.errors import UserError
from utils.tables import read_rows, write_rows

LABELS = np.array([0, 0, 0, 1, 1])
SCORES = np.array([0.1, 0.4, 0.6, 0.5, 0.9])


def drawn(count: int, seed: int = 0, decimals: int = 2) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    scores = np.clip(generator.normal(0.4 + 0.2 * labels, 0.2), 0, 1).round(decimals)
    return labels, scores


def summary(labels: np.ndarray, scores: np.ndarray, **options: object) -> ScoreSummary:
    (row,) = summarise_columns(labels, {"x": scores}, {}, **options)  # type: ignore[arg-type]
    return row


def bounds(row: ScoreSummary, metric: str) -> tuple[float, float, float]:
    low, value, high = (getattr(row, metric + suffix) for suffix in ("_low", "", "_high"))
    return low, value, high


both_labels = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(1, 3)), min_size=2, max_size=30
).filter(lambda rows: len({label for label, _, _ in rows}) == 2)


def test_accuracies_count_the_threshold_itself_as_fake_unless_strict() -> None:
    assert metrics.accuracies(LABELS, SCORES, 0.5) == pytest.approx((2 / 3, 1.0, 4 / 5))
    assert metrics.accuracies(LABELS, SCORES, 0.5, strict=True) == pytest.approx((2 / 3, 0.5, 3 / 5))


def test_average_precision_and_area_are_those_of_scikit_learn() -> None:
    labels, scores = drawn(300)
    row = summary(labels, scores, draws=2)
    assert (row.ap, row.roc_auc) == pytest.approx(
        (average_precision_score(labels, scores), roc_auc_score(labels, scores))
    )
    assert metrics.average_precision(labels, scores) == average_precision_score(labels, scores)


@pytest.mark.parametrize("case", ["resnet50|single", "resnet50|classes", "efb0|single", "efb0|classes"])
def test_golden_sensitivity(shared_dir: Path, case: str) -> None:
    folder = shared_dir / "reference" / "golden"
    expected = json.loads((folder / "sensitivity.json").read_text())[case]
    with np.load(folder / "sensitivity_scores.npz") as arrays:
        labels = arrays[f"{case}|label"]
        scores = {variant: arrays[f"{case}|{variant}"] for variant in ("baseline", "topk", "lowk")}
    threshold = gmean_threshold(labels, scores["baseline"], case, published=True)
    assert threshold.value == pytest.approx(expected["threshold"], abs=1e-12)
    for row in summarise_columns(labels, scores, {}, threshold, draws=2, strict=True):
        numbers = expected[row.variant]
        assert row.ap == pytest.approx(numbers["ap"], abs=1e-9)
        for name in ("acc_real_calibrated", "acc_fake_calibrated", "acc_calibrated"):
            assert getattr(row, name) == pytest.approx(numbers[name])


def test_expected_calibration_error_by_hand() -> None:
    # two bins of confidence in use: 0.9 with one of two right, 0.6 with both right
    labels, scores = np.array([1, 0, 0, 1]), np.array([0.9, 0.9, 0.4, 0.6])
    expected = (2 * abs(0.5 - 0.9) + 2 * abs(1.0 - 0.6)) / 4
    assert summary(labels, scores, draws=2).ece == pytest.approx(expected)


def test_perfectly_calibrated_scores_have_small_error() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random(50_000)
    labels = (generator.random(50_000) < scores).astype(int)
    assert summary(labels, scores, draws=2).ece < 0.01


# Thresholds


def gmean(labels: np.ndarray, scores: np.ndarray, threshold: float, *, strict: bool = False) -> float:
    real, fake, _ = metrics.accuracies(labels, scores, threshold, strict=strict)
    return math.sqrt(real * fake)


@given(both_labels)
def test_the_threshold_is_the_best_finite_and_in_the_middle_of_its_interval(rows: list[tuple[int, int, int]]) -> None:
    labels, scores, _ = (np.array(column) for column in zip(*rows, strict=True))
    scores = scores / 5
    best = max(gmean(labels, scores, threshold) for threshold in np.unique(scores))
    threshold = gmean_threshold(labels, scores, "set")
    if best == 0:
        assert threshold.value == 0.5
        assert threshold.note.startswith("threshold 0.5, since the unchanged detector's scores on set are ")
        return
    assert threshold.value == (threshold.low + threshold.high) / 2
    assert not ((scores > threshold.low) & (scores < threshold.high)).any()
    for strict in (False, True):
        assert gmean(labels, scores, threshold.value, strict=strict) == pytest.approx(best)


def test_a_small_change_of_separated_scores_flips_nothing() -> None:
    """At the upper end of the gap, where the published code puts it, any fake that falls a little is lost."""
    labels, scores = np.repeat([0, 1], 3), np.array([0.1, 0.15, 0.21, 0.39, 0.8, 0.9])
    threshold = gmean_threshold(labels, scores, "set")
    assert (threshold.low, threshold.value, threshold.high) == pytest.approx((0.21, 0.3, 0.39))
    published = gmean_threshold(labels, scores, "set", published=True)
    assert published.value == 0.39
    assert metrics.accuracies(labels, scores - 0.05, threshold.value) == (1, 1, 1)
    assert metrics.accuracies(labels, scores - 0.05, published.value)[1] == pytest.approx(2 / 3)
    assert "between the scores 0.21 and 0.39" in threshold.note
    assert "4 of these images are reported on" in replace(threshold, shared=4).note


@pytest.mark.parametrize(("scores", "kind"), [([0.3, 0.3, 0.3], "constant"), ([0.8, 0.2, 0.2], "inverted")])
@pytest.mark.parametrize("published", [False, True])
def test_scores_without_a_threshold_fall_back(scores: list[float], kind: str, published: bool) -> None:
    threshold = gmean_threshold([0, 1, 1], scores, "set", published=published)
    assert threshold.value == 0.5
    assert kind in threshold.reason


def test_neighbouring_floats_are_still_told_apart() -> None:
    high = np.nextafter(0.5, 1)
    assert metrics.accuracies([0, 1], [0.5, high], gmean_threshold([0, 1], [0.5, high], "set").value) == (1, 1, 1)


# Redraws


@given(both_labels)
def test_statistics_of_draws_equal_those_of_the_repeated_images(rows: list[tuple[int, int, int]]) -> None:
    labels, scores, counts = (np.array(column) for column in zip(*rows, strict=True))
    scores = scores / 5
    repeated = np.repeat(labels, counts), np.repeat(scores, counts)
    precision, area = ranking_of_draws(labels, scores, counts[None].astype(float))
    assert precision[0] == pytest.approx(metrics.average_precision(*repeated))
    assert area[0] == pytest.approx(roc_auc_score(*repeated))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=30))
def test_redraws_hold_whole_clusters_and_as_many_of_each_kind(rows: list[tuple[int, int]]) -> None:
    labels, clusters = (np.array(column) for column in zip(*rows, strict=True))
    resampling = Resampling(labels, clusters, draws=20)
    counts = np.concatenate(list(resampling.blocks()))
    assert counts.shape == (20, len(labels))
    kinds: dict[tuple[int, ...], list[int]] = {}
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        assert (counts[:, members] == counts[:, members[:1]]).all()
        kinds.setdefault(tuple(np.unique(labels[members])), []).append(members[0])
    for firsts in kinds.values():
        assert (counts[:, firsts].sum(axis=1) == len(firsts)).all()
    for label in np.unique(labels):
        assert (counts[:, labels == label].sum(axis=1) > 0).all()


def test_an_image_each_is_no_cluster() -> None:
    labels, scores = drawn(60)
    names = [f"{number}.png" for number in range(60)]
    assert summary(labels, scores, clusters=names).clusters == 60
    for metric in ("acc", "acc_real", "acc_fake"):
        assert bounds(summary(labels, scores, clusters=names), metric) == bounds(summary(labels, scores), metric)


def test_redraws_are_seeded() -> None:
    labels, scores = drawn(200)
    assert str(summary(labels, scores, seed=1)) == str(summary(labels, scores, seed=1))
    assert summary(labels, scores, seed=1).ap_low != summary(labels, scores, seed=2).ap_low


# Intervals


@pytest.mark.parametrize(("successes", "count"), [(81, 263), (0, 20), (20, 20), (1, 1)])
def test_wilson_interval_is_that_of_scipy(successes: int, count: int) -> None:
    expected = binomtest(successes, count).proportion_ci(method="wilson")
    assert wilson_interval(successes, count) == pytest.approx((expected.low, expected.high))


def test_an_interval_holds_its_number_where_copies_of_images_tie() -> None:
    """All reals above all fakes: each redraw has ties, and so a larger AP than the images themselves."""
    labels, scores = np.repeat([0, 1], 10), np.arange(20, 0, -1) / 20
    low, value, high = bounds(summary(labels, scores), "ap")
    assert low < value < high
    assert low < 1 - math.log(2) < high  # what infinitely many such images give


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=20).filter(
        lambda rows: len({label for label, _, _ in rows}) == 2
    ),
    st.booleans(),
)
def test_every_interval_holds_its_number_and_has_a_width(rows: list[tuple[int, int, int]], clustered: bool) -> None:
    labels, scores, clusters = (np.array(column) for column in zip(*rows, strict=True))
    columns = {"a": scores / 5, "b": 1 - scores / 5}
    found = summarise_columns(
        labels, columns, {"c": ["a", "b"]}, Threshold(0.3), clusters if clustered else None, draws=20
    )
    assert [row.variant for row in found] == ["a", "b", "c"]
    for row in found:
        for metric in METRICS:
            low, value, high = bounds(row, metric)
            assert 0 <= low <= value <= high <= 1
            assert low < high


@pytest.mark.parametrize(
    ("reals", "fakes", "low"), [(1, 1, 0.05), (8, 8, 0.05 ** (1 / 8)), (500, 28, 0.05 ** (1 / 28))]
)
def test_perfect_ranking_leaves_room_by_the_rule_of_three(reals: int, fakes: int, low: float) -> None:
    labels = np.repeat([0, 1], [reals, fakes])
    row = summary(labels, labels * 0.8 + 0.1, threshold=Threshold(0.4))
    for metric in ("ap", "roc_auc"):
        assert bounds(row, metric) == pytest.approx((low, 1, 1))
    assert bounds(row, "acc_fake_calibrated") == pytest.approx((wilson_interval(fakes, fakes)[0], 1, 1))
    assert bounds(row, "acc_real") == pytest.approx((wilson_interval(reals, reals)[0], 1, 1))


def test_clusters_widen_intervals() -> None:
    """Twenty copies of ten images hold no more than the ten, though they look like two hundred."""
    labels, scores = drawn(10, seed=1)
    repeated, clusters = (np.repeat(labels, 20), np.repeat(scores, 20)), np.repeat(np.arange(10), 20)
    alone, naive, honest = summary(labels, scores), summary(*repeated), summary(*repeated, clusters=clusters)
    assert (honest.clusters, honest.images, naive.clusters) == (10, 200, 200)
    for metric in ("ap", "roc_auc", "acc", "acc_real", "acc_fake"):
        widths = [bounds(row, metric)[2] - bounds(row, metric)[0] for row in (alone, naive, honest)]
        assert widths[2] >= 0.9 * widths[0] > 1.5 * widths[1]


def test_a_mean_over_draws_is_no_surer_than_the_draws() -> None:
    """Five draws with standard error 0.2 of their mean, on many images."""
    labels = np.repeat([0, 1], 200)
    shares = (1.0, 0.07, 0.29, 0.93, 0.96)
    columns = {}
    for number, share in enumerate(shares):
        column = np.where(labels == 1, 0.9, 0.1)
        wrong = np.arange(400) % 200 >= round(share * 200)
        columns[f"r{number}"] = np.where(wrong, 1 - column, column)
    row = summarise_columns(labels, columns, {"r": list(columns)})[-1]
    assert (row.draws, row.acc_spread) == (5, pytest.approx(np.std(shares, ddof=1)))
    # Student's t with four degrees of freedom
    half = 2.776 * row.acc_spread / math.sqrt(5)
    assert row.acc_low == pytest.approx(row.acc - half, abs=0.02)
    assert row.acc_high == 1.0


@pytest.mark.parametrize(("count", "distance"), [(10, 2.0), (30, 1.0), (30, -2.0), (100, 0.0)])
def test_intervals_of_average_precision_cover_the_truth(count: int, distance: float) -> None:
    generator = np.random.default_rng(3)

    def sample(size: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat([0, 1], size)
        return labels, 1 / (1 + np.exp(-generator.normal(distance * labels)))

    truth = metrics.average_precision(*sample(200_000))
    covered = 0
    for _ in range(100):
        low, _, high = bounds(summary(*sample(count), draws=200), "ap")
        covered += low <= truth <= high
    assert covered >= 86


# Summaries


def test_one_label_alone_gives_a_rate_with_its_interval() -> None:
    scores = np.array([0.1, 0.6, 0.7, 0.9])
    for label, name, other in ((1, "acc_fake", "acc_real"), (0, "acc_real", "acc_fake")):
        row = summary(np.full(4, label), scores)
        right = 3 if label else 1
        assert bounds(row, name) == pytest.approx(
            (wilson_interval(right, 4)[0], right / 4, wilson_interval(right, 4)[1])
        )
        assert bounds(row, "acc") == bounds(row, name)
        assert np.isnan([*bounds(row, "ap"), *bounds(row, "roc_auc"), *bounds(row, other)]).all()
        assert (row.images, row.fakes) == (4, 4 * label)


def test_a_summary_agrees_with_the_single_metrics_and_survives_a_table(tmp_path: Path) -> None:
    labels, scores = drawn(80)
    threshold = gmean_threshold(labels, scores, "set")
    rows = summarise_columns(labels, {"a": scores, "b": 1 - scores}, {"both": ["a", "b"]}, threshold, draws=50)
    row, _, group = rows
    real, fake, every = metrics.accuracies(labels, scores)
    assert (row.acc_real, row.acc_fake, row.acc) == pytest.approx((real, fake, every))
    assert row.acc_calibrated == pytest.approx(metrics.accuracies(labels, scores, threshold.value)[2])
    assert (row.draws, row.threshold, math.isnan(row.ap_spread)) == (1, threshold.value, True)
    precisions = [metrics.average_precision(labels, values) for values in (scores, 1 - scores)]
    assert (group.ap, group.ap_spread) == pytest.approx((np.mean(precisions), np.std(precisions, ddof=1)))
    rows[0] = replace(rows[0], maps_dropped=11)
    write_rows(tmp_path / "summary.csv", rows)
    assert str(read_rows(tmp_path / "summary.csv", ScoreSummary, made_by="x")) == str(rows)
    assert math.isnan(summary(labels, scores).acc_calibrated_low)


def test_mean_over_sets() -> None:
    sets = [drawn(40, seed) for seed in range(3)]
    rows = [summary(*one) for one in sets]
    precisions = [row.ap for row in rows]
    only_fakes = summary(np.ones(10, int), np.linspace(0, 1, 10))
    means = mean_over_sets([*rows, only_fakes])
    mean, error = means["x"].mean, means["x"].error
    assert (list(means), means["x"].sets) == (["x"], 4)
    assert (mean["ap"], error["ap"]) == pytest.approx((np.mean(precisions), np.std(precisions, ddof=1) / math.sqrt(3)))
    assert mean["acc_fake"] == pytest.approx(np.mean([row.acc_fake for row in (*rows, only_fakes)]))
    single = mean_over_sets(rows[:1])["x"]
    assert single.mean["ap"] == rows[0].ap
    assert math.isnan(single.error["ap"])


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
        metrics.accuracies,
        lambda labels, scores: gmean_threshold(labels, scores, "set"),
    ):
        with pytest.raises(UserError, match=message):
            metric(labels, scores)
    if len(set(labels)) != 1:
        with pytest.raises(UserError, match=message):
            summary(np.array(labels), np.array(scores))
