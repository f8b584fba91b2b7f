"""Figures of the median test: activations on RGB and greyscale, map by map, and the shares over generators."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from activation_histograms.collector import ActivationPairs
from activation_histograms.median_test import LEVEL, ColourShare, MedianTest
from utils.figures import BLACK, BLUE, GREY, ORANGE, VERMILLION, house_style, new_figure, save_figure

_RGB, _GRAYSCALE = VERMILLION, "#4D4D4D"
_COLUMNS = 4
_LARGEST_BINS = 40


@house_style()
def plot_histogram(pairs: ActivationPairs, index: int, test: MedianTest, path_stem: Path, title: str) -> list[Path]:
    """Histograms of one map's largest activations on RGB and greyscale, with both medians and the p-value.

    Returns:
        The files written.
    """
    figure, axes = new_figure(5.6, 3.8)
    _draw(axes, pairs, index)
    axes.set(xlabel="largest activation of the map in an image (before batch norm)", ylabel="images")
    axes.set_title(f"{title}\n{_verdict(test)}")
    figure.legend(loc="outside lower center", ncols=4, columnspacing=1.2)
    return save_figure(figure, path_stem)


@house_style()
def plot_overview(
    pairs: ActivationPairs, tests: Sequence[MedianTest], path_stem: Path, title: str, *, most: int = 24
) -> list[Path]:
    """A grid of the first maps' histograms, in the order of the ranking; frames of maps that respond otherwise without
    colour, by the paired test with adjusted p-values, are orange.

    Returns:
        The files written.
    """
    shown = min(most, len(tests))
    columns = min(_COLUMNS, shown)
    rows = -(-shown // columns)
    figure, axes = new_figure(max(5.0, 3.2 * columns), 1.3 + 2.3 * rows, rows, columns, squeeze=False)
    for index, panel in enumerate(axes.flat):
        if index >= shown:
            panel.set_visible(False)
            continue
        _draw(panel, pairs, index)
        test = tests[index]
        name = test.feature_map_name.split("(")[0]
        panel.set_title(f"{index + 1}. {name}\n{_verdict(test)}", fontsize=9)
        panel.tick_params(labelsize=8)
        if test.p_value_paired_bh <= LEVEL:
            for spine in panel.spines.values():
                spine.set(visible=True, edgecolor=ORANGE, linewidth=2.5)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    meaning = "across: largest activation of the map in an image (before batch norm)"
    figure.legend(handles, labels, loc="outside lower center", ncols=4, title=meaning)
    figure.supylabel("images", fontsize=10)
    paired = sum(test.p_value_paired_bh <= LEVEL for test in tests)
    mood = sum(test.p_value <= LEVEL for test in tests)
    drawn = "all" if shown == len(tests) else f"the first {shown}"
    figure.suptitle(
        f"{title}\n{paired} of {len(tests)} maps respond otherwise without colour (paired test, adjusted "
        f"p <= {LEVEL:g}: orange frame),\n{mood} by Mood's test as published; {drawn} are shown"
    )
    return save_figure(figure, path_stem)


@house_style()
def plot_shares(shares: Sequence[ColourShare], path_stem: Path, title: str) -> list[Path]:
    """Colour-conditional share by generator: published with its Wilson interval, and by adjusted p of both tests.

    Returns:
        The files written.
    """
    figure, axes = new_figure(max(4.8, 1.6 + 1.1 * len(shares)), 4.2)
    places = np.arange(len(shares))
    for offset, colour, label, name in (
        (-0.27, ORANGE, f"Mood's test, raw p <= {LEVEL:g}, as published", "share"),
        (0.0, GREY, "Mood's test, adjusted", "share_bh"),
        (0.27, BLUE, "paired test, adjusted", "share_paired_bh"),
    ):
        values = np.array([100 * getattr(share, name) for share in shares])
        axes.bar(places + offset, values, 0.25, color=colour, label=label)
        for position in places[values == 0]:
            axes.text(position + offset + 0.03, 1, "0", va="bottom", fontsize=8, color=colour)
    heights, low, high = np.array([[100 * s.share, 100 * s.share_low, 100 * s.share_high] for s in shares]).T
    errors = [np.maximum(heights - low, 0), np.maximum(high - heights, 0)]
    axes.errorbar(places - 0.27, heights, errors, fmt="none", ecolor=BLACK, elinewidth=1, capsize=3)
    axes.set_xticks(places, [f"{s.generator}\n{s.maps} maps" for s in shares])
    axes.set(ylabel="colour-conditional maps (%)", ylim=(0, 103), title=f"{title}\nwhiskers: 95 % Wilson intervals")
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside lower center", ncols=3 if len(shares) > 5 else 1)
    return save_figure(figure, path_stem)


def _draw(axes: Axes, pairs: ActivationPairs, index: int) -> None:
    samples = ((pairs.rgb[:, index], _RGB, "RGB"), (pairs.grayscale[:, index], _GRAYSCALE, "greyscale"))
    both = np.concatenate([sample for sample, _, _ in samples]).astype(np.float64)
    low, high = float(both.min()), float(both.max())
    # Freedman and Diaconis' rule asks for thousands of bins where one image lies far out.
    bins = min(_LARGEST_BINS, max(8, len(np.histogram_bin_edges(both, "sturges")) * 2)) if high > low else 1
    edges = (np.linspace(low, high, bins + 1) if high > low else np.array([low - 0.5, high + 0.5])).tolist()
    for sample, colour, name in samples:
        axes.hist(sample, edges, color=colour, alpha=0.35, label=name, histtype="stepfilled")
        axes.hist(sample, edges, color=colour, histtype="step", linewidth=1.2)
    for (sample, colour, name), style in zip(samples, ("-", "--"), strict=True):
        axes.axvline(float(np.median(sample)), color=colour, linewidth=2, linestyle=style, label=f"median {name}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _verdict(test: MedianTest) -> str:
    mood = "not testable" if test.degenerate else f"{test.p_value:.2g}"
    paired = "not testable" if test.degenerate_paired else f"{test.p_value_paired_bh:.2g}"
    return f"p: Mood {mood}, paired (adjusted) {paired}"
