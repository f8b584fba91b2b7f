"""Agreement of two rankings: Spearman correlation, top-k overlap and the layers the top maps come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fmap_ranking.names import FeatureMap
from fmap_ranking.ranking import Ranking
from utils.errors import UserError


@dataclass(frozen=True)
class TopKOverlap:
    """Maps in both top k; `share` is their part of k, `by_chance` the mean of it for unrelated rankings."""

    k: int
    common: int
    share: float
    by_chance: float


@dataclass(frozen=True)
class LayerShare:
    """Part of each top k that lies in one layer, 0..1."""

    layer: str
    a: float
    b: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two rankings of the same maps, side by side.

    Attributes:
        maps: all maps, in the order of ranking a.
        omega_a, omega_b: (n,) float64, omega of `maps` in each ranking.
        rank_a, rank_b: (n,) int64, position of `maps` in each file, from 1.
        spearman: rank correlation of omega, ties given their mean rank; NaN if one ranking is constant.
        overlaps: one for each k asked for.
        overlap_curve: (n,) float64, share of the top k in common for k = 1..n.
        layer_shares: for each k asked for, by layer in the order of ranking a.
    """

    maps: tuple[FeatureMap, ...]
    omega_a: np.ndarray
    omega_b: np.ndarray
    rank_a: np.ndarray
    rank_b: np.ndarray
    spearman: float
    overlaps: tuple[TopKOverlap, ...]
    overlap_curve: np.ndarray
    layer_shares: Mapping[int, tuple[LayerShare, ...]]


def compare_rankings(a: Ranking, b: Ranking, ks: Sequence[int]) -> Comparison:
    """Compare two rankings of the same feature maps.

    Args:
        a, b: rankings; maps are matched by name, the order of the files does not matter.
        ks: sizes of the top sets to compare, each in 1..number of maps.

    Raises:
        UserError: the rankings are over different maps, or a k is out of range.
    """
    if not ks:
        raise ValueError("expected at least one k")
    only_a, only_b = set(a.maps) - set(b.maps), set(b.maps) - set(a.maps)
    if only_a or only_b:
        example = min(only_a or only_b)
        raise UserError(
            f"the rankings are over different feature maps ({len(only_a)} only in the first, "
            f"{len(only_b)} only in the second, e.g. {example.key}): "
            "compare rankings of the same architecture"
        )
    size = len(a)
    positions = {fmap: position for position, fmap in enumerate(b.maps)}
    in_b = np.array([positions[fmap] for fmap in a.maps])
    rank_a, rank_b = np.arange(1, size + 1), in_b + 1
    omega_b = b.values[in_b]
    # A map is in both top k from the k on at which the later of its two ranks comes in.
    common = np.cumsum(np.bincount(np.maximum(rank_a, rank_b), minlength=size + 1))[1:]
    overlaps = []
    for k in ks:
        a.check_k(k)
        overlaps.append(TopKOverlap(k, int(common[k - 1]), float(common[k - 1] / k), k / size))
    constant = np.ptp(a.values) == 0 or np.ptp(omega_b) == 0
    spearman = float("nan") if constant else float(stats.spearmanr(a.values, omega_b).statistic)
    return Comparison(
        maps=a.maps,
        omega_a=a.values,
        omega_b=omega_b,
        rank_a=rank_a,
        rank_b=rank_b,
        spearman=spearman,
        overlaps=tuple(overlaps),
        overlap_curve=common / rank_a,
        layer_shares={k: _layer_shares(a, b, k) for k in ks},
    )


def _layer_shares(a: Ranking, b: Ranking, k: int) -> tuple[LayerShare, ...]:
    counts = {row.layer: row.in_top_k for row in b.per_layer_summary(k)}
    return tuple(LayerShare(row.layer, row.in_top_k / k, counts[row.layer] / k) for row in a.per_layer_summary(k))
