"""Agreement of two rankings: Spearman correlation, top-k overlap and the layers the top maps come from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fmap_ranking.names import FeatureMap
from fmap_ranking.ranking import Ranking
from utils.errors import UserError


@dataclass(frozen=True)
class TopKOverlap:
    """Two rankings at one k.

    Attributes:
        maps: number of maps ranked.
        spearman: rank correlation of all omega, ties given their mean rank; NaN if one ranking is constant.
        k: size of the top sets.
        common: number of maps in both.
        overlap: their part of k.
        overlap_by_chance: mean of it for unrelated rankings.
    """

    maps: int
    spearman: float
    k: int
    common: int
    overlap: float
    overlap_by_chance: float


@dataclass(frozen=True)
class LayerShare:
    """Part of each top k that lies in one layer, 0..1."""

    k: int
    layer: str
    first: float
    second: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two rankings of the same maps, side by side.

    Attributes:
        maps: all maps, in the order of the first ranking.
        ranks: two arrays (n,) int64, position of `maps` in each ranking, from 1.
        spearman: as in `TopKOverlap`.
        overlaps: one for each k asked for.
        overlap_curve: (n,) float64, share of the top k in common for k = 1..n.
        layer_shares: for each k asked for, by layer in the order of the first ranking.
    """

    maps: tuple[FeatureMap, ...]
    ranks: tuple[np.ndarray, np.ndarray]
    spearman: float
    overlaps: tuple[TopKOverlap, ...]
    overlap_curve: np.ndarray
    layer_shares: tuple[LayerShare, ...]


def compare_rankings(a: Ranking, b: Ranking, ks: Sequence[int]) -> Comparison:
    """Compare two rankings of the same feature maps.

    Args:
        a, b: rankings; maps are matched by name, the order of the files does not matter.
        ks: sizes of the top sets to compare, each in 1..number of maps.

    Raises:
        UserError: the rankings are over different maps, or a k is out of range.
    """
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
    constant = np.ptp(a.values) == 0 or np.ptp(omega_b) == 0
    spearman = float("nan") if constant else float(stats.spearmanr(a.values, omega_b).statistic)
    shares = []
    for k in ks:
        second = {row.layer: row.in_top_k for row in b.per_layer_summary(k)}
        for row in a.per_layer_summary(k):
            shares.append(LayerShare(k, row.layer, row.in_top_k / k, second[row.layer] / k))
    return Comparison(
        maps=a.maps,
        ranks=(rank_a, rank_b),
        spearman=spearman,
        overlaps=tuple(
            TopKOverlap(size, spearman, k, int(common[k - 1]), float(common[k - 1] / k), k / size) for k in ks
        ),
        overlap_curve=common / rank_a,
        layer_shares=tuple(shares),
    )
