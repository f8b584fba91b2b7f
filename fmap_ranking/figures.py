"""Figures of rankings: the omega distribution, relevance by layer, and two rankings side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmap_ranking.comparison import Comparison
from fmap_ranking.ranking import Ranking
from utils.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, house_style, save_figure

_COLOURS = (VERMILLION, BLUE, GREEN, PURPLE, ORANGE, SKY)
# Below this share of a layer the curves only show float32 noise, and would press the rest together.
_SMALLEST_OMEGA = 1e-8


@house_style()
def plot_omega_distribution(rankings: Mapping[str, Ranking], path_stem: Path, topk: int) -> list[Path]:
    """Omega against rank on logarithmic axes, the top k drawn thick; the legend counts maps with omega 0.

    Args:
        rankings: legend text to ranking, at most six.
        path_stem: where to write, without suffix.
        topk: number of maps marked.

    Returns:
        The files written.
    """
    if not 1 <= len(rankings) <= len(_COLOURS):
        raise ValueError(f"expected 1 to {len(_COLOURS)} rankings, got {len(rankings)}")
    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.subplots()
    for (label, ranking), colour in zip(rankings.items(), _COLOURS, strict=False):
        ranking.check_k(topk)
        omega = ranking.values[ranking.values > 0]
        share = 100 * omega[:topk].sum() / omega.sum() if omega.size else 0.0
        ranks = np.arange(1, omega.size + 1)
        text = f"{label}: top {topk} hold {share:.0f} % of all $\\omega$"
        if zeros := len(ranking) - omega.size:
            text += f"\n({zeros:,} of {len(ranking):,} maps have $\\omega$ = 0)"
        axes.plot(ranks, omega, color=colour, label=text)
        axes.plot(ranks[:topk], omega[:topk], color=colour, linewidth=5, solid_capstyle="butt")
    axes.axvline(topk, color=GREY, linestyle="--", linewidth=1)
    axes.text(topk, 0.98, f" k = {topk}", color=GREY, va="top", transform=axes.get_xaxis_transform())
    axes.set(xscale="log", yscale="log", xlabel="rank of the feature map")
    axes.set_ylabel("forensic relevance $\\omega$ (share of its layer)")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], _SMALLEST_OMEGA))
    axes.legend(loc="lower left", frameon=True, framealpha=1, edgecolor="none")
    return save_figure(figure, path_stem)


@house_style()
def plot_layer_summary(ranking: Ranking, path_stem: Path, topk: int, title: str = "") -> list[Path]:
    """For each layer, the sum of omega, the largest omega, and the number of maps in the top k."""
    rows = ranking.per_layer_summary(topk)
    positions = np.arange(len(rows))
    figure = Figure(figsize=(9.0, _height(len(rows))), layout="constrained")
    total, count = figure.subplots(1, 2, sharey=True)
    total.barh(positions, [row.total for row in rows], color="#CCCCCC", label="all maps of the layer")
    total.barh(positions, [row.maximum for row in rows], color=BLUE, label="its largest map")
    total.set(xlim=(0, 1), xlabel="$\\omega$: positive share of the layer's relevance")
    count.barh(positions, [row.in_top_k for row in rows], color=VERMILLION)
    count.set(xlabel=f"maps in the top {topk}")
    count.xaxis.get_major_locator().set_params(integer=True)
    _name_layers(total, [row.layer for row in rows])
    figure.legend(loc="outside upper left", ncols=2)
    figure.suptitle(title)
    return save_figure(figure, path_stem)


@house_style()
def plot_comparison(
    comparison: Comparison, path_stem: Path, topk: int, names: tuple[str, str] = ("first", "second")
) -> list[Path]:
    """Ranks in both rankings, overlap of the top k against k, and the layers the top maps come from.

    Args:
        comparison: what to draw.
        path_stem: where to write, without suffix.
        topk: one of the k compared; its maps and their layers are shown.
        names: what to call the two rankings.
    """
    names = (_in_lines(names[0]), _in_lines(names[1]))
    shares = [row for row in comparison.layer_shares if row.k == topk and (row.first or row.second)]
    figure = Figure(figsize=(12.0, max(9.0, _height(len(shares)))), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.15, 1))
    _draw_ranks(figure.add_subplot(grid[0, 0]), comparison, topk, names)
    _draw_overlap(figure.add_subplot(grid[1, 0]), comparison)

    axes = figure.add_subplot(grid[:, 1])
    positions = np.arange(len(shares))
    axes.barh(positions - 0.2, [100 * row.first for row in shares], 0.4, color=VERMILLION, label=names[0])
    axes.barh(positions + 0.2, [100 * row.second for row in shares], 0.4, color=BLUE, label=names[1])
    axes.set(xlabel=f"% of the top {topk}", title=f"Layers of the top {topk}")
    axes.legend(loc="best", frameon=True)
    _name_layers(axes, [row.layer for row in shares])
    return save_figure(figure, path_stem)


def _in_lines(name: str) -> str:
    """A long path broken behind slashes, so that it leaves room for the axes."""
    return fill(name.replace("/", "/ "), 30).replace("/ ", "/")


def _draw_ranks(axes: Axes, comparison: Comparison, topk: int, names: tuple[str, str]) -> None:
    size = len(comparison.maps)
    first, second = comparison.ranks
    groups = (
        (np.minimum(first, second) > topk, GREY, 0.3, "others"),
        ((first <= topk) & (second > topk), VERMILLION, 1.0, f"top {topk} of {names[0]} only"),
        ((first > topk) & (second <= topk), BLUE, 1.0, f"top {topk} of {names[1]} only"),
        (np.maximum(first, second) <= topk, BLACK, 1.0, f"both top {topk}"),
    )
    for chosen, colour, alpha, label in groups:
        # Thousands of points as vectors would make the PDF slow to open.
        axes.scatter(
            first[chosen],
            second[chosen],
            s=8,
            linewidths=0,
            color=colour,
            alpha=alpha,
            label=f"{label} ({chosen.sum():,})",
            rasterized=True,
        )
    axes.plot([1, size], [1, size], color=BLACK, linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel=f"rank in {names[0]}", ylabel=f"rank in {names[1]}")
    axes.set_title(f"Ranks of {size:,} feature maps (Spearman correlation {comparison.spearman:.3f})")
    # Below the axes: points may lie anywhere inside.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, markerscale=2)


def _draw_overlap(axes: Axes, comparison: Comparison) -> None:
    every = np.arange(1, len(comparison.maps) + 1)
    axes.plot(every, comparison.overlap_curve, color=PURPLE, label="measured")
    axes.plot(every, every / len(every), color=GREY, linestyle="--", label="expected by chance")
    for row in comparison.overlaps:
        axes.plot(row.k, row.overlap, "o", color=PURPLE)
        axes.annotate(
            f"k = {row.k}: {row.common}",
            (row.k, row.overlap),
            (2, 7),
            textcoords="offset points",
            rotation=55,
            fontsize=9,
        )
    axes.set(xscale="log", ylim=(-0.02, 1.05), xlabel="k", ylabel="share of the top k in common")
    axes.set_title("Overlap of the top k (points: number of maps in common)")
    axes.legend(loc="best")


def _height(rows: int) -> float:
    """Height in inches that keeps one layer name per row readable."""
    return 1.6 + 0.19 * rows


def _name_layers(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
