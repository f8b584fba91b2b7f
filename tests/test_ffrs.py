import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fmap_ranking.ffrs import FFRS
from fmap_ranking.ranking import SUM_TOLERANCE

LAYERS = [("conv1", 3), ("layer1.0.conv1", 5)]

Sums = tuple[dict[str, Tensor], dict[str, Tensor]]


def relevance_maps(samples: int, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = {name: torch.randn(samples, c, 4, 4, generator=generator, dtype=dtype) for name, c in LAYERS}
    if samples:
        maps["conv1"][seed % samples] = 0  # a sample without relevance in this layer
    return maps


def sums(maps: dict[str, Tensor], part: slice = slice(None)) -> Sums:
    return (
        {name: r[part].clamp(min=0).sum((2, 3)) for name, r in maps.items()},
        {name: r[part].abs().sum((1, 2, 3)) for name, r in maps.items()},
    )


def statistic_of(*batches: Sums) -> FFRS:
    statistic = FFRS(LAYERS)
    for batch in batches:
        statistic.update(statistic.stack(*batch))
    return statistic


def restored(statistic: FFRS) -> FFRS:
    other = FFRS(statistic.layers)
    other.load_state(statistic.state())
    return other


def errors(statistic: FFRS) -> np.ndarray:
    return np.array(list(statistic.standard_errors().values()))


def assert_same_state(a: FFRS, b: FFRS) -> None:
    first, second = a.state(), b.state()
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def definition(maps: dict[str, Tensor]) -> np.ndarray:
    """Omega written out sample by sample and map by map."""
    omega = []
    for name, channels in LAYERS:
        r = maps[name].numpy().astype(np.float64)
        for c in range(channels):
            shares = []
            for sample in r:
                whole = np.abs(sample).sum()
                shares.append(np.maximum(sample[c], 0).sum() / whole if whole else 0.0)
            omega.append(np.mean(shares))
    return np.array(omega)


@given(samples=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_omega_is_that_of_the_definition(samples: int, seed: int) -> None:
    maps = relevance_maps(samples, seed, torch.float64)
    np.testing.assert_allclose(statistic_of(sums(maps)).omega(), definition(maps), rtol=1e-13)


@given(samples=st.integers(1, 12), seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 12), max_size=4))
@settings(max_examples=50)
def test_batches_give_exactly_what_all_at_once_gives(samples: int, seed: int, cuts: list[int]) -> None:
    maps = relevance_maps(samples, seed)
    edges = sorted({0, samples, *(min(cut, samples) for cut in cuts)})
    batches = [sums(maps, slice(a, b)) for a, b in itertools.pairwise(edges)]
    assert_same_state(statistic_of(*batches), statistic_of(sums(maps)))


@given(sizes=st.tuples(*[st.integers(0, 6)] * 3), seed=st.integers(0, 1000))
@settings(max_examples=50)
def test_merging_is_associative_and_equals_one_pass(sizes: tuple[int, int, int], seed: int) -> None:
    batches = [sums(relevance_maps(n, seed + i)) for i, n in enumerate(sizes)]
    left, middle, last = (statistic_of(batch) for batch in batches)
    left.merge(middle.state())
    left.merge(last.state())
    middle.merge(last.state())
    right = statistic_of(batches[0])
    right.merge(middle.state())
    whole = statistic_of(*batches)
    for merged in (left, right):
        assert merged.count == whole.count == sum(sizes)
        assert merged.zero_relevance == whole.zero_relevance
        for name in ("total", "squares"):
            np.testing.assert_allclose(merged.state()[name], whole.state()[name], rtol=1e-12, atol=1e-15)


@given(samples=st.integers(0, 6), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_state_round_trip_is_exact_and_goes_on(samples: int, seed: int) -> None:
    statistic = statistic_of(sums(relevance_maps(samples, seed)))
    other = restored(statistic)
    assert_same_state(other, statistic)
    more = statistic.stack(*sums(relevance_maps(3, seed + 1)))
    other.update(more)
    statistic.update(more)
    assert_same_state(other, statistic)


def test_state_is_a_copy() -> None:
    statistic = statistic_of(sums(relevance_maps(3, 0)))
    before, state = statistic.omega(), statistic.state()
    for array in state.values():
        if array.dtype.kind == "f":
            array += 1
    np.testing.assert_array_equal(statistic.omega(), before)


@given(samples=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_shares_of_a_layer_sum_to_at_most_one(samples: int, seed: int) -> None:
    ranking = statistic_of(sums(relevance_maps(samples, seed))).result()
    ranking.check()
    assert all(0 <= row.total <= 1 + 1e-6 for row in ranking.per_layer_summary())


def test_purely_positive_relevance_sums_to_one() -> None:
    maps = {name: torch.rand(4, c, 4, 4) + 0.1 for name, c in LAYERS}
    for row in statistic_of(sums(maps)).result().per_layer_summary():
        assert row.total == pytest.approx(1, abs=1e-6)


def test_samples_without_relevance_contribute_zero_and_are_counted() -> None:
    maps = relevance_maps(4, seed=0)
    statistic = statistic_of(sums(maps))
    assert statistic.zero_relevance == {"conv1": 1}
    present = {name: r[1:] for name, r in maps.items()}
    np.testing.assert_allclose(statistic.omega()[:3], statistic_of(sums(present)).omega()[:3] * 3 / 4, rtol=1e-14)


def test_errors_are_those_of_their_maps() -> None:
    statistic = statistic_of(sums(relevance_maps(9, seed=3)))
    by_map = statistic.standard_errors()
    assert [fmap.key for fmap in by_map] == [f"{name}.#{c}(T={n})" for name, n in LAYERS for c in range(n)]
    assert set(by_map) == set(statistic.result().maps)


def test_tolerance_is_that_of_rankings() -> None:
    """What the statistic accepts is no ranking that is refused afterwards."""
    for excess, accepted in ((SUM_TOLERANCE / 2, True), (SUM_TOLERANCE * 2, False)):
        positive = {name: torch.full((1, c), (1 + excess) / c, dtype=torch.float64) for name, c in LAYERS}
        absolute = {name: torch.ones(1, dtype=torch.float64) for name, _ in LAYERS}
        statistic = FFRS(LAYERS)
        if accepted:
            statistic.update(statistic.stack(positive, absolute))
            statistic.result().check()
        else:
            with pytest.raises(ValueError, match="conv1"):
                statistic.update(statistic.stack(positive, absolute))


def test_standard_error_is_that_of_the_mean() -> None:
    maps = relevance_maps(9, seed=3, dtype=torch.float64)
    shares = np.stack([statistic_of(sums(maps, slice(i, i + 1))).omega() for i in range(9)])
    expected = shares.std(axis=0, ddof=1) / 3
    np.testing.assert_allclose(errors(statistic_of(sums(maps))), expected, rtol=1e-9)


@pytest.mark.parametrize("samples", [0, 1])
def test_standard_error_needs_two_samples(samples: int) -> None:
    assert np.isnan(errors(statistic_of(sums(relevance_maps(samples, 0))))).all()


def test_memory_does_not_grow() -> None:
    statistic = statistic_of(sums(relevance_maps(2, 0)))
    before = {name: array.nbytes for name, array in statistic.state().items()}
    for seed in range(50):
        statistic.update(statistic.stack(*sums(relevance_maps(8, seed))))
    assert {name: array.nbytes for name, array in statistic.state().items()} == before
    assert statistic.count == 402
    assert before["total"] + before["squares"] == 2 * 8 * 8


def test_low_precision_sums_are_accumulated_in_float64() -> None:
    positive = {name: torch.full((1, c), 1.0, dtype=torch.bfloat16) for name, c in LAYERS}
    absolute = {name: torch.full((1,), 2.0 * c, dtype=torch.bfloat16) for name, c in LAYERS}
    statistic = FFRS(LAYERS)
    for _ in range(1000):
        statistic.update(statistic.stack(positive, absolute))
    np.testing.assert_allclose(statistic.omega(), [1 / 6] * 3 + [1 / 10] * 5, rtol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_non_finite_relevance_names_the_layer_and_changes_nothing(value: float, where: int) -> None:
    statistic = statistic_of(sums(relevance_maps(2, 0)))
    before = restored(statistic)
    batch = sums(relevance_maps(2, 1))
    batch[where]["layer1.0.conv1"].view(-1)[-1] = value
    with pytest.raises(FloatingPointError, match=r"layer1\.0\.conv1"):
        statistic.update(statistic.stack(*batch))
    assert_same_state(statistic, before)


def break_layer(batch: Sums) -> None:
    del batch[0]["conv1"]


def break_channels(batch: Sums) -> None:
    batch[0]["conv1"] = batch[0]["conv1"][:, :2]


def break_samples(batch: Sums) -> None:
    batch[1]["conv1"] = batch[1]["conv1"][:1]


def break_sign(batch: Sums) -> None:
    batch[0]["conv1"] = -batch[0]["conv1"] - 1


def break_whole(batch: Sums) -> None:
    batch[1]["conv1"] = batch[1]["conv1"] / 4


@pytest.mark.parametrize("fault", [break_layer, break_channels, break_samples, break_sign, break_whole])
def test_faulty_batches_are_refused_by_name_and_change_nothing(fault: object) -> None:
    statistic, batch = FFRS(LAYERS), sums(relevance_maps(3, 0))
    fault(batch)  # type: ignore[operator]
    with pytest.raises(ValueError, match="conv1"):
        statistic.update(statistic.stack(*batch))
    assert statistic.count == 0
    assert not statistic.state()["total"].any()


def test_no_samples_no_result() -> None:
    for call in (FFRS(LAYERS).omega, FFRS(LAYERS).result):
        with pytest.raises(ValueError, match="no samples"):
            call()


@pytest.mark.parametrize("layers", [[], [("a", 2), ("a", 3)]])
def test_layers_must_be_distinct(layers: list[tuple[str, int]]) -> None:
    with pytest.raises(ValueError, match="layer"):
        FFRS(layers)


def test_other_layers_can_neither_be_merged_nor_loaded() -> None:
    other = FFRS([("conv1", 3), ("layer1.0.conv1", 6)])
    with pytest.raises(ValueError, match="different layers"):
        FFRS(LAYERS).merge(other.state())
    with pytest.raises(ValueError, match="different layers"):
        FFRS(LAYERS).load_state(other.state())
    damaged = FFRS(LAYERS).state() | {"squares": np.zeros(3)}
    with pytest.raises(ValueError, match="squares"):
        FFRS(LAYERS).load_state(damaged)
