from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fmap_ranking.comparison import compare_rankings
from fmap_ranking.figures import plot_comparison
from fmap_ranking.ranking import Ranking, read_ranking
from utils.errors import UserError

LAYERS = [("conv1", 10), ("conv2", 30)]


def make_ranking(seed: int) -> Ranking:
    return Ranking.from_values(LAYERS, np.random.default_rng(seed).random(40))


def test_a_ranking_agrees_with_itself() -> None:
    comparison = compare_rankings(make_ranking(0), make_ranking(0), [1, 5, 40])
    assert comparison.spearman == pytest.approx(1)
    assert [row.overlap for row in comparison.overlaps] == [1, 1, 1]
    assert (comparison.overlap_curve == 1).all()
    assert all(row.first == row.second for row in comparison.layer_shares)


def test_the_reverse_ranking_disagrees() -> None:
    values = np.arange(40) / 40
    a, b = Ranking.from_values(LAYERS, values), Ranking.from_values(LAYERS, values[::-1])
    comparison = compare_rankings(a, b, [20, 30])
    assert comparison.spearman == pytest.approx(-1)
    assert [row.common for row in comparison.overlaps] == [0, 20]
    assert [row.overlap_by_chance for row in comparison.overlaps] == [0.5, 0.75]
    assert [(row.layer, row.first, row.second) for row in comparison.layer_shares if row.k == 20] == [
        ("conv1", 0, 0.5),
        ("conv2", 1, 0.5),
    ]


@given(first=st.integers(0, 1000), second=st.integers(0, 1000), k=st.integers(1, 40))
def test_numbers_are_those_of_sets_and_scipy(first: int, second: int, k: int) -> None:
    a, b = make_ranking(first), make_ranking(second)
    comparison = compare_rankings(a, b, [k])
    common = len(set(a.top_k(k)) & set(b.top_k(k)))
    assert comparison.overlaps[0].common == common
    assert comparison.overlap_curve[k - 1] == common / k
    by_map_a, by_map_b = (dict(zip(r.maps, r.values, strict=True)) for r in (a, b))
    paired = [(by_map_a[fmap], by_map_b[fmap]) for fmap in sorted(by_map_a)]
    assert comparison.spearman == pytest.approx(stats.spearmanr(*zip(*paired, strict=True)).statistic)
    assert [b.maps[rank - 1] for rank in comparison.ranks[1]] == list(comparison.maps)
    assert sum(row.first for row in comparison.layer_shares) == pytest.approx(1)
    assert sum(row.second for row in comparison.layer_shares) == pytest.approx(1)


def test_overlap_of_unrelated_rankings_is_that_expected_by_chance() -> None:
    shares = [compare_rankings(make_ranking(i), make_ranking(i + 1000), [10]).overlaps[0].overlap for i in range(400)]
    assert np.mean(shares) == pytest.approx(10 / 40, abs=0.02)


def test_constant_ranking_has_no_correlation(recwarn: pytest.WarningsRecorder) -> None:
    constant = Ranking.from_values(LAYERS, np.zeros(40))
    assert np.isnan(compare_rankings(constant, make_ranking(0), [5]).spearman)
    assert not recwarn.list


def test_different_maps_are_refused() -> None:
    other = Ranking.from_values([("conv1", 10), ("conv2", 31)], np.arange(41) / 1000)
    with pytest.raises(UserError, match=r"different feature maps \(30 only in the first, 31 only in the second"):
        compare_rankings(make_ranking(0), other, [5])


@pytest.mark.parametrize("k", [0, 41])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(UserError, match="out of range"):
        compare_rankings(make_ranking(0), make_ranking(1), [5, k])


@pytest.mark.usefixtures("pdf_too")
def test_figure_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    comparison = compare_rankings(make_ranking(0), make_ranking(1), [5, 20])
    first, second = (plot_comparison(comparison, tmp_path / name / "figure", 5) for name in "ab")
    assert [path.suffix for path in first] == [".png", ".pdf"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("folder", ["fmap_relevances/efb0/both_val_mini", "results/of-many-runs/" * 6])
def test_long_names_leave_room_for_the_axes(folder: str, tmp_path: Path) -> None:
    comparison = compare_rankings(make_ranking(0), make_ranking(1), [5, 20])
    plot_comparison(comparison, tmp_path / "figure", 5, (f"output/{folder}/both_val-fake", f"{folder}/both_val-fake"))


def test_published_rankings_of_fake_and_real(shared_dir: Path) -> None:
    folder = shared_dir / "reference/published_fmap_relevances/resnet50/progan_val_0.5"
    fake, real = (read_ranking(folder / f"progan_val-{label}.csv") for label in ("fake", "real"))
    comparison = compare_rankings(fake, real, [114])
    assert comparison.overlaps[0].common == len(set(fake.maps[:114]) & set(real.maps[:114]))
    assert sum(row.first for row in comparison.layer_shares) == pytest.approx(1)
