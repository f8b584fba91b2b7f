"""Figures of the sensitivity assessment and the choice of k."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import StrMethodFormatter

from evaluation.assessment import Result
from evaluation.summary import ScoreSummary
from sensitivity_assessment.variants import BASELINE, LAYER_RANDOM, LOW, RANDOM, TOP
from utils.figures import BLACK, BLUE, GREEN, GREY, SKY, VERMILLION, house_style, new_figure, save_figure

_BARS = {
    BASELINE: (GREY, "no map dropped"),
    TOP: (VERMILLION, "top k dropped"),
    RANDOM: (BLUE, "random k"),
    LAYER_RANDOM: (SKY, "random k of the same layers"),
    LOW: (GREEN, "lowest k"),
}
_PANELS = (
    ("ap", "average precision (%)"),
    ("acc_fake", "fakes called fake (%)"),
    ("acc_real", "reals called real (%)"),
)
CURVE_METRICS = tuple(metric for metric, _ in _PANELS)
_DOT: dict[str, Any] = {
    "marker": "o",
    "linestyle": "none",
    "color": "white",
    "markeredgecolor": BLACK,
    "markeredgewidth": 0.8,
    "markersize": 3,
    "clip_on": False,
}


@house_style()
def plot_sensitivity(results: Sequence[Result], path_stem: Path, title: str) -> list[Path]:
    """Grouped bars by generator: AP, and the accuracies on fakes and on reals, of every variant.

    Bars of random choices are means, their draws are dots; whiskers are 95 % intervals. Accuracies are at the threshold
    of the calibration set if there is one, else at 0.5: a threshold chosen on the same images would flatter them.

    Returns:
        The files written.
    """
    shown = [variant for variant in _BARS if variant in results[0].rows]
    calibrated = all(result.record.get("facts", {}).get("calibrated_on") for result in results)
    width = 0.84 / len(shown)
    size = max(8.2, 1.6 + 0.28 * len(shown) * len(results))
    figure, axes = new_figure(size, 7.6, len(_PANELS), 1, sharex=True)
    places = np.arange(len(results))
    for panel, (quantity, label) in zip(axes, _PANELS, strict=True):
        metric = f"{quantity}_calibrated" if calibrated and quantity != "ap" else quantity
        for number, variant in enumerate(shown):
            at = places + (number - (len(shown) - 1) / 2) * width
            _draw_bars(panel, at, width, variant, metric, results)
        panel.set(ylabel=label, ylim=(0, 104), yticks=range(0, 101, 25))
        panel.grid(visible=False, axis="x")
        if metric == "ap":
            chance = 100 * float(np.mean([result.chance for result in results]))
            panel.axhline(chance, color=BLACK, linewidth=0.8, linestyle=":", label="chance")
    axes[-1].set_xticks(places, [result.gan_name for result in results])
    axes[-1].set_xlim(-0.6, len(results) - 0.4)
    handles, labels = axes[0].get_legend_handles_labels()
    handles.append(Line2D([], [], **_DOT))
    labels.append("one random choice (bar: their mean)")
    figure.legend(handles, labels, loc="outside lower center", ncols=3 if size < 11 else 4)
    where = "the threshold of the calibration set" if calibrated else "0.5"
    axes[0].set_title(f"{title}\nwhiskers: 95 % intervals; accuracies at {where}")
    return save_figure(figure, path_stem)


def _draw_bars(panel: Axes, at: np.ndarray, width: float, variant: str, metric: str, results: Sequence[Result]) -> None:
    colour, label = _BARS[variant]
    rows = [result.rows[variant] for result in results]
    wanted, dropped = results[0].rows[TOP].maps_dropped, rows[0].maps_dropped
    if variant == LAYER_RANDOM and dropped != wanted:
        label = f"{label} ({dropped} of {wanted})"
    heights, low, high = (_percent(rows, f"{metric}{end}") for end in ("", "_low", "_high"))
    panel.bar(at, heights, width * 0.92, color=colour, label=label)
    below, above = np.maximum(heights - low, 0), np.maximum(high - heights, 0)
    for centre in at[heights < 0.5]:
        panel.text(centre + 0.12 * width, 1, "0", ha="left", va="bottom", fontsize=8, color=colour)
    panel.errorbar(at, heights, [below, above], fmt="none", ecolor=BLACK, elinewidth=0.8, capsize=1.5)
    for centre, result in zip(at, results, strict=True):
        draws = [row for name, row in result.rows.items() if name.startswith(f"{variant}-") and name[-1].isdigit()]
        if draws:
            spread = centre + width * np.linspace(-0.25, 0.25, len(draws))
            panel.plot(spread, _percent(draws, metric), **_DOT)


def _percent(rows: Iterable[ScoreSummary], metric: str) -> np.ndarray:
    return np.array([100 * getattr(row, metric) for row in rows])


@house_style()
def plot_topk(
    curves: Mapping[str, Mapping[int, ScoreSummary]],
    baseline: ScoreSummary,
    chosen: int | None,
    path_stem: Path,
    title: str,
) -> list[Path]:
    """AP and accuracies at 0.5 against the number of dropped maps, the chosen k marked.

    Args:
        curves: By variant and k, ascending.
        baseline: With no map dropped.
        chosen: k to mark, if there is one.
        path_stem: Where to write, without suffix.
        title: Of the figure.

    Returns:
        The files written.
    """
    figure, axes = new_figure(7.2, 8.2, len(_PANELS), 1, sharex=True)
    for panel, (metric, label) in zip(axes, _PANELS, strict=True):
        panel.axhline(100 * getattr(baseline, metric), color=GREY, linestyle="--", label="no map dropped")
        for variant, points in curves.items():
            colour, name = _BARS[variant]
            numbers = list(points)
            value, low, high = (_percent(points.values(), f"{metric}{end}") for end in ("", "_low", "_high"))
            panel.plot(numbers, value, "o-", color=colour, markersize=4, label=name)
            panel.fill_between(numbers, low, high, color=colour, alpha=0.15, linewidth=0)
        if chosen is not None:
            panel.axvline(chosen, color=BLACK, linewidth=1)
            if metric == "ap":
                panel.text(chosen, 105, f"k = {chosen}", ha="center", va="bottom")
        panel.set(ylabel=label, ylim=(0, 104), xscale="log", yticks=range(0, 101, 25))
    ticks = sorted({k for points in curves.values() for k in points})
    axes[-1].set_xlabel("k, number of feature maps dropped")
    axes[-1].set_xlim(ticks[0] * 0.9, ticks[-1] * 1.1)
    axes[-1].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    handles, labels = axes[0].get_legend_handles_labels()
    meaning = "random k: mean over the draws; bands: 95 % intervals; accuracies at 0.5"
    figure.legend(handles, labels, loc="outside lower center", ncols=4, title=meaning, title_fontsize=9)
    axes[0].set_title(title, pad=18)
    return save_figure(figure, path_stem)
