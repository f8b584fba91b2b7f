"""Box-whisker plots of the colour ablation (Fig. 4 of the paper)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from evaluation.conditions import GRAYSCALE, RGB
from evaluation.scores import Scores
from utils.figures import BLACK, GREY, SKY, house_style, new_figure, save_figure

# The paper looks at the fakes that the detector takes for fake with at least this probability.
SMALLEST_SCORE = 0.2
_COLOURS = {RGB: SKY, GRAYSCALE: "#BFBFBF"}
_NAMES = {RGB: "RGB", GRAYSCALE: "greyscale"}


def chosen_fakes(scores: Scores) -> dict[str, np.ndarray]:
    """p(fake) in percent of the fakes with at least 20 % on RGB, as they are and in greyscale."""
    chosen = (scores.labels == 1) & (scores.columns[RGB] >= SMALLEST_SCORE)
    return {condition: 100 * scores.columns[condition][chosen] for condition in (RGB, GRAYSCALE)}


@house_style()
def plot_whiskers(groups: Mapping[str, Mapping[str, Scores]], path_stem: Path, title: str) -> list[Path]:
    """Pairs of boxes, RGB and greyscale, with the drop of the median below them.

    Box: quartiles and median; whiskers: 5th and 95th percentile; dots: the images beyond.

    Args:
        groups: By detector (a panel each) and generator the scores, under `rgb` and `grayscale`.
        path_stem: Where to write, without suffix.
        title: Of the figure.

    Returns:
        The files written.
    """
    pairs = max(len(scores) for scores in groups.values())
    panel_width = max(3.4, 0.9 + 1.15 * pairs)
    stacked = len(groups) > 1 and pairs > 3
    rows, columns = (len(groups), 1) if stacked else (1, len(groups))
    figure, axes = new_figure(
        max(4.6, panel_width * columns), 4.4 * rows if stacked else 4.8, rows, columns, sharey=True, squeeze=False
    )
    for panel, (name, scores) in zip(axes.flat, groups.items(), strict=True):
        _draw_pairs(panel, scores)
        panel.set_title(name)
    for panel in axes[:, 0]:
        panel.set_ylabel("p(fake) in %")
    handles = [Patch(facecolor=_COLOURS[c], edgecolor=BLACK, label=_NAMES[c]) for c in (RGB, GRAYSCALE)]
    meaning = "box: quartiles and median; whiskers: 5th to 95th percentile;\nbelow: change of the median without colour"
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=2, title=meaning, title_fontsize=9)
    legend.get_title().set_multialignment("center")
    figure.suptitle(f"{title}\nfakes with p(fake) of at least {SMALLEST_SCORE:.0%} on RGB".replace("%", " %"))
    return save_figure(figure, path_stem)


def _draw_pairs(panel: Axes, scores: Mapping[str, Scores]) -> None:
    labels = []
    for number, (generator, table) in enumerate(scores.items()):
        boxes = chosen_fakes(table)
        count, total = len(boxes[RGB]), int((table.labels == 1).sum())
        labels.append(f"{generator}\n{count} of {total} fakes")
        if not count:
            panel.text(number, 50, "none", ha="center", va="center", color=GREY)
            continue
        medians = {}
        for condition, offset in ((RGB, -0.19), (GRAYSCALE, 0.19)):
            medians[condition] = float(np.median(boxes[condition]))
            panel.boxplot(
                boxes[condition],
                positions=[number + offset],
                widths=0.3,
                whis=(5, 95),
                patch_artist=True,
                manage_ticks=False,
                boxprops={"facecolor": _COLOURS[condition]},
                medianprops={"color": BLACK, "linewidth": 2},
                flierprops={"marker": ".", "markersize": 3, "markerfacecolor": BLACK, "markeredgecolor": "none"},
            )
        drop = medians[RGB] - medians[GRAYSCALE]
        # Below the axes' zero, where no box can be.
        panel.text(number, -9, f"median {-drop:+.1f}".replace("-", "\N{MINUS SIGN}"), ha="center", va="center")
    panel.set_xticks(range(len(labels)), labels)
    panel.set(xlim=(-0.6, len(labels) - 0.4), ylim=(-15, 104), yticks=range(0, 101, 20))
    panel.grid(visible=False, axis="x")
