"""Which maps of the shared layers carry which source: rankings of secondary modules side by side.

A primary's early layers are useful to all its secondaries if these use different maps of them, or the same ones. FF-RS
says which: omega is a share of a layer's relevance, so that maps of narrow layers have larger ones. It is compared as a
multiple of the layer's mean here, and overlaps are judged by those of random maps of the same layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.stats import hypergeom, rankdata
from torch import nn

from detectors.attribution_networks import primary_network, shared_layers
from fmap_ranking.names import FeatureMap, maps_of
from fmap_ranking.ranking import Ranking, read_ranking
from passes.options import RunOptions
from source_attribution.options import Overlap
from utils.cli import say, say_files
from utils.errors import UserError
from utils.figures import house_style, new_figure, save_figure
from utils.files import sha256_file, write_csv
from utils.provenance import Origin, write_record
from utils.settings import plain
from utils.tables import write_rows

_COMPUTATION = 1
_MOST_BY_CHANCE = 0.975


@dataclass(frozen=True)
class OverlapRow:
    """Two sources.

    Attributes:
        first, second: Their names.
        k: Size of the top sets.
        common: Maps in both.
        by_chance: Mean number of them for random maps, as many of each layer as are in the sets.
        most_by_chance: Quantile 97.5 % of that number.
        correlation: Of ranks within layers, over all maps of shared layers; NaN without any order.
    """

    first: str
    second: str
    k: int
    common: int
    by_chance: float
    most_by_chance: int
    correlation: float


def compare_sources(options: Overlap, run: RunOptions) -> list[Path]:
    """Write the table of overlaps and that of omega by map and source, and draw both.

    Raises:
        UserError: A ranking is missing, or of a network without shared layers.
    """
    layers = shared_layers(primary_network()).named_children()
    maps = maps_of((name, layer.out_channels) for name, layer in layers if isinstance(layer, nn.Conv2d))
    omega = {name: shares_of_shared(read_ranking(path), maps, path) for name, path in options.named()}
    if not 1 <= options.topk <= len(maps):
        raise UserError(f"--topk {options.topk}: the shared layers have {len(maps)} maps")
    rows = overlaps(omega, maps, options.topk)
    folder = run.output_dir / "attribution_overlap"
    tables = [folder / "overlaps.csv", folder / "shared_maps.csv"]
    write_rows(tables[0], rows, OverlapRow)
    values = zip(maps, *omega.values(), strict=True)
    write_csv(tables[1], ("key", *omega), ((entry.key, *numbers) for entry, *numbers in values))
    inputs = {name: sha256_file(path) for name, path in options.named()}
    write_record(tables, Origin(_COMPUTATION, inputs, {"topk": options.topk}), settings=plain(options))
    pictures = draw_overlap(rows, omega, maps, folder / "overlap")
    for row in rows:
        say(
            f"{row.first} and {row.second}: {row.common} of the top {row.k} maps in common, {row.by_chance:.1f} by "
            f"chance (97.5 %: {row.most_by_chance}); correlation within layers {row.correlation:.2f}"
        )
    say_files([*tables, *pictures])
    return tables


def shares_of_shared(ranking: Ranking, maps: Sequence[FeatureMap], path: Path) -> np.ndarray:
    """Omega of all maps of the shared layers, in their order, as a multiple of the mean of its layer, float64.

    Raises:
        UserError: The ranking lacks one of them.
    """
    omega = dict(zip(ranking.maps, ranking.values.tolist(), strict=True))
    if missing := [entry.key for entry in maps if entry not in omega]:
        raise UserError(f"{path} ranks no map {missing[0]}: give rankings of attribution networks")
    means = {row.layer: row.mean or 1.0 for row in ranking.per_layer_summary()}
    return np.array([omega[entry] / means[entry.layer] for entry in maps])


def overlaps(omega: Mapping[str, np.ndarray], maps: Sequence[FeatureMap], k: int) -> list[OverlapRow]:
    """Each pair of sources."""
    layer_of = np.array([entry.layer for entry in maps])
    rows = []
    for first, second in combinations(omega, 2):
        tops = [np.argsort(-omega[name], kind="stable")[:k] for name in (first, second)]
        chances, mean = [np.ones(1)], 0.0
        for layer in np.unique(layer_of):
            size = int((layer_of == layer).sum())
            a, b = (int((layer_of[top] == layer).sum()) for top in tops)
            chances.append(hypergeom.pmf(np.arange(min(a, b) + 1), size, a, b))
            mean += a * b / size
        most = int(np.searchsorted(np.cumsum(reduce(np.convolve, chances)), _MOST_BY_CHANCE))
        ranks = [_ranks_within(omega[name], layer_of) for name in (first, second)]
        correlation = float(np.corrcoef(ranks)[0, 1]) if min(map(np.ptp, ranks)) > 0 else float("nan")
        rows.append(OverlapRow(first, second, k, len(set(tops[0]) & set(tops[1])), mean, most, correlation))
    return rows


def _ranks_within(values: np.ndarray, layer_of: np.ndarray) -> np.ndarray:
    """Ranks of values within their layer, -0.5..0.5."""
    ranks = np.zeros(len(values))
    for layer in np.unique(layer_of):
        within = layer_of == layer
        ranks[within] = (rankdata(values[within]) - 0.5) / within.sum() - 0.5
    return ranks


@house_style()
def draw_overlap(
    rows: Sequence[OverlapRow], omega: Mapping[str, np.ndarray], maps: Sequence[FeatureMap], stem: Path
) -> list[Path]:
    """Omega of all shared maps by source, and maps in common for each pair; more than chance allows in bold."""
    names = list(omega)
    size = 1.6 + 0.42 * len(names)
    figure, (all_maps, pairs) = new_figure(13.0, max(3.2, size), columns=2, width_ratios=(2.4, 1.0))
    values = np.stack([omega[name] for name in names])
    shown = all_maps.imshow(values, cmap="Oranges", vmin=0, vmax=max(2.0, np.quantile(values, 0.98)), aspect="auto")
    starts = [index for index, entry in enumerate(maps) if entry.index == 0]
    for start in starts[1:]:
        all_maps.axvline(start - 0.5, color="black", linewidth=1)
    all_maps.set_xticks(starts, [maps[start].layer for start in starts], rotation=40, ha="right")
    all_maps.set_yticks(range(len(names)), names)
    all_maps.set(title="relevance of each shared map", xlabel="feature maps")
    figure.colorbar(shown, ax=all_maps, label="times the mean of its layer")
    table = np.full((len(names), len(names)), np.nan)
    for row in rows:
        a, b = names.index(row.first), names.index(row.second)
        table[b, a] = row.common
        weight = "bold" if row.common > row.most_by_chance else "normal"
        pairs.text(a, b, row.common, ha="center", va="center", weight=weight)
        pairs.text(b, a, f"{row.by_chance:.1f}", ha="center", va="center", color="#555555")
    pairs.imshow(table, cmap="Blues", vmin=0, vmax=rows[0].k, alpha=0.6)
    pairs.set_xticks(range(len(names)), names, rotation=40, ha="right")
    pairs.set_yticks(range(len(names)), names)
    pairs.set(
        title=f"of the top {rows[0].k} maps in common", xlabel="below: common (bold: beyond chance)\nabove: by chance"
    )
    for axes in (all_maps, pairs):
        axes.grid(visible=False)
    return save_figure(figure, stem)
