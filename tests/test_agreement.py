"""Agreement of detectors: against SciPy, on redraws, and what the intervals allow to be said."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from evaluation.agreement import agreement_table, agreements, midranks
from evaluation.scores import Scores


def table(labels: np.ndarray, values: np.ndarray) -> Scores:
    return Scores(tuple(f"{place}.png" for place in range(len(labels))), labels, {"rgb": values})


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and scores with ties of two detectors of which each has some skill."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], (25, 35))
    common = rng.normal(size=60)
    first, second = (np.round(1 / (1 + np.exp(-(labels - 0.5 + common + rng.normal(size=60)))), 1) for _ in range(2))
    return labels, first, second


def test_correlations_are_those_of_scipy(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    labels, first, second = drawn
    (row,) = agreements("set", {"a": table(labels, first), "b": table(labels, second)}, clusters={}, draws=200)
    assert (row.test_set, row.first, row.second, row.images, row.fakes) == ("set", "a", "b", 60, 35)
    for value, kept in ((row.rank, labels >= 0), (row.rank_real, labels == 0), (row.rank_fake, labels == 1)):
        assert value == pytest.approx(spearmanr(first[kept], second[kept]).statistic)
    wrong = [(scores >= 0.5) != labels for scores in (first, second)]
    both = wrong[0] & wrong[1]
    assert (row.wrong_first, row.wrong_second, row.wrong_both) == (wrong[0].sum(), wrong[1].sum(), both.sum())
    assert row.shared == pytest.approx(both.sum() / (wrong[0] | wrong[1]).sum())
    chance = sum((labels == k).sum() * wrong[0][labels == k].mean() * wrong[1][labels == k].mean() for k in (0, 1))
    assert row.beyond_chance == pytest.approx((both.sum() - chance) / 60)
    assert row.rank_low < row.rank < row.rank_high
    assert row.beyond_chance_low < row.beyond_chance < row.beyond_chance_high


def test_ranks_of_a_redraw_are_those_of_the_images_repeated() -> None:
    values, counts = np.array([0.3, 0.1, 0.3, 0.9]), np.array([[2.0, 0.0, 1.0, 1.0]])
    first, second = midranks(values, counts)[0], midranks(-values, counts)[0]
    assert (first[[0, 2, 3]].tolist(), second[[0, 2, 3]].tolist()) == ([1.5, 1.5, 3.5], [2.5, 2.5, 0.5])


def test_what_intervals_allow_to_be_said() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 200)
    wrong = rng.random((3, 400)) < 0.3
    wrong[1] = wrong[0]
    scores = {
        name: table(labels, np.where(w, 1 - labels, labels) * 0.8 + 0.1) for name, w in zip("abc", wrong, strict=True)
    }
    rows = {(row.first, row.second): row for row in agreements("set", scores, clusters={}, draws=100)}
    assert rows["a", "b"].finding == "err together more than by chance"
    assert rows["a", "b"].shared == 1.0
    assert rows["a", "c"].finding == "not told apart from chance"
    assert "err together more" in agreement_table(list(rows.values()))


def test_few_errors_say_little_and_none_nothing() -> None:
    labels = np.repeat([0, 1], 10)
    right, one, other = (labels * 0.8 + 0.1 for _ in range(3))
    one[0], other[1] = 0.9, 0.9
    scores = {"right": table(labels, right), "one": table(labels, one), "other": table(labels, other)}
    rows = {(row.first, row.second): row for row in agreements("set", scores, clusters={}, draws=100)}
    assert rows["one", "other"].finding == "not told apart from chance"
    assert rows["right", "one"].finding == "no errors to share"
    assert math.isnan(rows["right", "one"].rank_real)


def test_only_images_that_all_scored_count() -> None:
    labels, values = np.array([0, 1, 1, -1]), np.array([0.2, 0.7, 0.8, 0.5])
    short = Scores(("1.png", "2.png", "3.png"), labels[1:], {"rgb": values[1:]})
    (row,) = agreements(
        "set", {"a": table(labels, values), "b": short}, clusters={"1.png": "x", "2.png": "x"}, draws=10
    )
    assert row.images == row.fakes == 2
    assert agreements("set", {"a": table(labels, values)}, clusters={}) == []
