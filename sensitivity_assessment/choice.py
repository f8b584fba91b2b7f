"""The choice of k: how AP falls with the number of top-ranked feature maps dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fmap_ranking.names import FeatureMap
from fmap_ranking.ranking import Ranking
from sensitivity_assessment.summary import METRICS, SummaryRow
from sensitivity_assessment.variants import BASELINE, LOW, RANDOM, TOP, Variants, make_variants

CURVES = (TOP, RANDOM, LOW)
# A bisection ends when k is known to this share of itself.
_PRECISION = 0.05


def variants_for(ranking: Ranking, numbers: Sequence[int], *, seed: int, draws: int) -> Variants:
    """The baseline, and top-k, random-k and low-k for several k; names end in `@<k>`.

    Raises:
        UserError: A k is out of range.
    """
    maps: dict[str, tuple[FeatureMap, ...]] = {BASELINE: ()}
    kinds: dict[str, tuple[str, ...]] = {}
    for k in numbers:
        variants = make_variants(ranking, k, seed=seed, draws=draws, layer_matched=False)
        maps |= {f"{name}@{k}": chosen for name, chosen in variants.maps.items() if name != BASELINE}
        kinds[f"{RANDOM}@{k}"] = tuple(f"{name}@{k}" for name in variants.draws[RANDOM])
    return Variants(maps, kinds, {})


def curves_of(rows: Mapping[str, SummaryRow]) -> dict[str, dict[int, dict[str, float]]]:
    """By curve and k the metrics, and `<metric>_min` and `<metric>_max` over the draws of random choices."""
    curves: dict[str, dict[int, dict[str, float]]] = {name: {} for name in CURVES}
    for name, row in rows.items():
        curve, _, number = name.partition("@")
        if curve in curves and number.isdigit():
            curves[curve][int(number)] = dict(row.values)
    for k, point in curves[RANDOM].items():
        draws = [row for name, row in rows.items() if name.startswith(f"{RANDOM}-") and name.endswith(f"@{k}")]
        for metric in METRICS:
            values = [row.values[metric] for row in draws] or [point[metric]]
            point |= {f"{metric}_min": min(values), f"{metric}_max": max(values)}
    return curves


def halfway(baseline: float, chance: float) -> float:
    """The AP halfway from that of the unchanged detector to that of guessing, which is the share of fakes."""
    return (baseline + chance) / 2


def smallest_below(ap: Mapping[int, float], target: float) -> int | None:
    """The smallest k whose AP is at most `target`, or None."""
    return next((k for k in sorted(ap) if ap[k] <= target), None)


def next_number(ap: Mapping[int, float], target: float) -> int | None:
    """The k to try next in a bisection for AP = `target`, or None when it is done or the target is not bracketed.

    It halves the ratio between the largest k before the first AP at or below `target` and that k, as if AP fell
    steadily with k.

    >>> next_number({10: 0.9, 1000: 0.5}, 0.7)
    100
    >>> next_number({10: 0.9, 11: 0.6}, 0.7) is None
    True
    """
    high = smallest_below(ap, target)
    below = [k for k in ap if high is not None and k < high]
    if high is None or not below:
        return None
    low = max(below)
    middle = round((low * high) ** 0.5)
    middle = min(max(middle, low + 1), high - 1)
    return middle if high - low > max(1.0, _PRECISION * low) else None
