"""Figures of patch classifiers, drawn from their files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation.intervals import wilson_interval
from utils.figures import BLACK, FAKE, GREY, PALETTE, PURPLE, REAL, house_style, new_figure, save_figure

_MOST_POINTS = 2000


@house_style()
def draw_precision_recall(curve: Mapping[str, np.ndarray], stem: Path, name: str, fake_class: int) -> list[Path]:
    """Precision against recall of class 1, from a published `.npz`."""
    figure, axes = new_figure(4.4, 4.0)
    kind = "fake" if fake_class == 1 else "real"
    step = max(1, len(curve["recall"]) // _MOST_POINTS)
    axes.plot(curve["recall"][::step], curve["precision"][::step], color=FAKE if fake_class == 1 else REAL)
    # at recall 1 every image is called class 1
    axes.axhline(float(curve["precision"][0]), color=GREY, linestyle="--", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=f"recall of {kind} images", ylabel="precision")
    axes.set_title(f"{name}: AP {float(curve['ap']):.3f}, {int(curve['n'])} images")
    return save_figure(figure, stem)


@house_style()
def draw_groups(patches: Counter[str], random: Counter[str], stem: Path) -> list[Path]:
    """Shares of groups among the most predictive patches beside those of random places, with 95 % intervals."""
    groups = sorted({*patches, *random}, key=lambda group: -patches[group])
    figure, axes = new_figure(max(4.0, 0.9 * len(groups) + 1.5), 3.6)
    for shift, colour, text, counts in (
        (-0.2, PURPLE, "most predictive patches", patches),
        (0.2, GREY, "random places", random),
    ):
        numbers, total = np.array([counts[group] for group in groups]), counts.total()
        shares = numbers / max(1, total)
        bounds = np.array([wilson_interval(number, total) for number in numbers]).T
        places = np.arange(len(groups)) + shift
        axes.bar(places, shares, 0.36, color=colour, label=f"{text} ({total})")
        axes.errorbar(places, shares, abs(bounds - shares), fmt="none", color=BLACK, linewidth=1, capsize=2)
    axes.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
    axes.set(ylabel="share", ylim=(0, None))
    axes.legend()
    return save_figure(figure, stem)


@house_style()
def draw_runs(
    runs: Mapping[str, Mapping[str, tuple[float, float, float]]], sets: Sequence[str], stem: Path
) -> list[Path]:
    """AP of fakes and its 95 % interval on each data set, a colour for each run."""
    figure, axes = new_figure(max(5.0, 1.1 * len(sets) + 2.5), 4.2)
    step = 0.7 / max(1, len(runs))
    for number, (run, values) in enumerate(runs.items()):
        places = [sets.index(name) + (number - (len(runs) - 1) / 2) * step for name in values]
        ap = np.array([value for value, _, _ in values.values()])
        low, high = (np.array([entry[end] for entry in values.values()], dtype=float) for end in (1, 2))
        colour = PALETTE[number % len(PALETTE)]
        axes.errorbar(places, ap, [ap - low, high - ap], fmt="o", color=colour, markersize=4, capsize=2, label=run)
    axes.set_xticks(range(len(sets)), sets, rotation=30, ha="right")
    axes.set(ylabel="average precision of fakes", ylim=(0, 1.03))
    figure.legend(loc="outside lower center", fontsize=8)
    return save_figure(figure, stem)
