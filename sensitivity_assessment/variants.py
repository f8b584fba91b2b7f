"""Which feature maps the variants of the sensitivity assessment drop (Sec. 4, Tab. 1 of the paper)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fmap_ranking.names import FeatureMap
from fmap_ranking.ranking import Ranking

BASELINE = "baseline"
TOP = "top-k"
LOW = "low-k"
RANDOM = "random-k"
LAYER_RANDOM = "layer-random-k"


@dataclass(frozen=True)
class Variants:
    """Dropped maps of every variant, by the name of its column of scores.

    Attributes:
        maps: Dropped maps by column; the baseline drops none.
        draws: The columns of each kind of random choice.
        shortfall: By layer how many maps every layer-matched draw lacks, because the layer has no more.
    """

    maps: Mapping[str, tuple[FeatureMap, ...]]
    draws: Mapping[str, tuple[str, ...]]
    shortfall: Mapping[str, int]


def make_variants(
    ranking: Ranking, k: int, *, seed: int, draws: int = 5, published: bool = False, layer_matched: bool = True
) -> Variants:
    """Baseline, top-k, low-k, and seeded random choices of k maps outside the top k.

    random-k draws from all these maps; layer-random-k takes as many maps of every layer as the top k has there, since
    omega is a share of its layer and so favours narrow, early layers.

    Args:
        ranking: Maps in descending order of omega.
        k: Number of maps to drop.
        seed: Of the draws.
        draws: Number of draws of each kind.
        published: Draw with replacement, and leave out the layer-matched choices, as the published code does.
        layer_matched: Make the layer-matched choices, too.

    Raises:
        UserError: k is out of range.
    """
    maps: dict[str, tuple[FeatureMap, ...]] = {BASELINE: (), TOP: ranking.top_k(k), LOW: ranking.low_k(k)}
    columns: dict[str, tuple[str, ...]] = {RANDOM: tuple(f"{RANDOM}-{number}" for number in range(1, draws + 1))}
    shortfall: Mapping[str, int] = {}
    for draw, column in enumerate(columns[RANDOM]):
        chosen = ranking.random_k(k, seed, draw)
        maps[column] = _with_replacement(ranking, k, seed, draw) if published else chosen
    if layer_matched and not published:
        columns[LAYER_RANDOM] = tuple(f"{LAYER_RANDOM}-{number}" for number in range(1, draws + 1))
        for draw, column in enumerate(columns[LAYER_RANDOM]):
            matched = ranking.layer_matched_random_k(k, seed, draw)
            maps[column], shortfall = matched.maps, matched.shortfall
    return Variants(maps, columns, shortfall)


def _with_replacement(ranking: Ranking, k: int, seed: int, draw: int) -> tuple[FeatureMap, ...]:
    """k draws outside the top k of which some may be the same map, which is then dropped once."""
    places = np.random.default_rng([seed, draw]).integers(0, len(ranking) - k, size=k)
    return tuple(ranking.maps[k + index] for index in np.unique(places))
