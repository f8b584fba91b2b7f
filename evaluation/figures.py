"""Figures of an evaluation, drawn from its tables."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve

from evaluation.assessment import Result
from evaluation.conditions import RGB, SWEEPS
from evaluation.metrics import average_precision
from evaluation.summary import ScoreSummary
from utils.figures import FAKE, GREY, PALETTE, REAL, house_style, new_figure, save_figure

_AXIS_NAMES = {"jpeg": "JPEG quality", "blur": "blur, sigma in pixels", "rescale": "scaling factor"}
_WIDEST = 3


@house_style()
def draw_precision_recall(scores: Sequence[tuple[str, str, tuple[np.ndarray, np.ndarray]]], stem: Path) -> list[Path]:
    """Precision against recall on RGB images: a panel for each detector, a curve for each test set.

    Args:
        scores: Detector, set, and its labels and scores (n,); sets of one label have no curve.
        stem: Path without suffix.
    """
    both = [entry for entry in scores if len(np.unique(entry[2][0])) == 2]
    detectors = list(dict.fromkeys(name for name, _, _ in both))
    if not detectors:
        return []
    figure, panels = _grid(len(detectors), 6.6, 4.2)
    for axes, detector in zip(panels, detectors, strict=False):
        styles = _styles()
        for name, test_set, (labels, values) in both:
            if name != detector:
                continue
            recall, precision = _steps(labels, values)
            ap = 100 * average_precision(labels, values)
            axes.step(recall, precision, where="pre", label=f"{test_set}, AP {ap:.1f}", **next(styles))
        axes.set(title=detector, xlabel="recall of fakes", ylabel="precision", xlim=(-0.02, 1.02), ylim=(0.0, 1.03))
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return save_figure(figure, stem)


@house_style()
def draw_accuracies(results: Sequence[tuple[str, Result]], stem: Path) -> list[Path]:
    """Accuracy on reals and fakes of each test set, RGB images, with 95 % intervals: a panel for each detector."""
    detectors = list(dict.fromkeys(name for name, _ in results))
    most = max(sum(name == detector for name, _ in results) for detector in detectors)
    figure, panels = new_figure(max(6.4, 1.1 * most + 1.6), 3.2 * len(detectors), rows=len(detectors), squeeze=False)
    for axes, detector in zip(panels[:, 0], detectors, strict=True):
        of_detector = [result for name, result in results if name == detector]
        rows = [result.rows[RGB] for result in of_detector]
        for label, color, shift in (("real", REAL, -0.2), ("fake", FAKE, 0.2)):
            values, low, high = (
                np.array([100 * getattr(row, f"acc_{label}{end}") for row in rows]) for end in ("", "_low", "_high")
            )
            places = np.arange(len(rows)) + shift
            axes.bar(places, values, 0.38, color=color, label=label)
            axes.errorbar(places, values, [values - low, high - values], fmt="none", ecolor="black", capsize=3)
            for centre, value, top in zip(places, values, high, strict=True):
                if not np.isnan(value):
                    axes.annotate(f"{value:.0f}", (centre, top), (0, 2), textcoords="offset points", ha="center")
        axes.axhline(50, color=GREY, linewidth=1, linestyle=":")
        axes.set_xticks(range(len(rows)), [result.gan_name.replace("-", "-\n") for result in of_detector])
        axes.set(title=detector, ylabel="accuracy at 0.5 (%)", ylim=(0, 118), yticks=range(0, 101, 20))
        axes.grid(visible=False, axis="x")
    panels[0, 0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="95 % intervals")
    return save_figure(figure, stem)


@house_style()
def draw_robustness(results: Sequence[tuple[str, Result]], stem: Path) -> list[Path]:
    """AP against JPEG quality, blur and scaling: a row for each detector, a curve for each test set.

    Dotted lines mark the AP on the images as they are. Nothing is drawn without such conditions.
    """
    rows = [(name, result.gan_name, row) for name, result in results for row in result.rows.values()]
    sweeps = [kind for kind in SWEEPS if any(_sweep_value(row, kind) is not None for _, _, row in rows)]
    if not sweeps:
        return []
    detectors = list(dict.fromkeys(name for name, _ in results))
    size = 4.2 * len(sweeps) + 1.6, 3.4 * len(detectors)
    figure, panels = new_figure(*size, rows=len(detectors), columns=len(sweeps), squeeze=False, sharey=True)
    for line, detector in zip(panels, detectors, strict=True):
        sets = list(dict.fromkeys(result.gan_name for name, result in results if name == detector))
        for axes, kind in zip(line, sweeps, strict=True):
            for style, test_set in zip(_styles(), sets, strict=False):
                swept = [row for name, of_set, row in rows if (name, of_set) == (detector, test_set)]
                _draw_sweep(axes, swept, kind, style, test_set)
            values = {value for _, _, row in rows if (value := _sweep_value(row, kind)) is not None}
            axes.set(xlabel=_AXIS_NAMES[kind], ylim=(0, 103), xticks=sorted(values))
            if kind == "jpeg":
                axes.invert_xaxis()
        line[0].set_title(detector, loc="left")
        line[0].set_ylabel("AP (%)")
    panels[0, -1].legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.0), title="dotted: undistorted\nbands: 95 % intervals"
    )
    return save_figure(figure, stem)


def _steps(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision where the recall rises: the steps whose area is the average precision."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    reached = np.unique(recall[recall > 0])
    highest = np.array([precision[recall == value].max() for value in reached])
    return np.concatenate([[0.0], reached]), np.concatenate([highest[:1], highest])


def _draw_sweep(axes: Any, entries: Sequence[ScoreSummary], kind: str, style: dict[str, Any], name: str) -> None:
    points = sorted(
        (value, 100 * entry.ap, 100 * entry.ap_low, 100 * entry.ap_high)
        for entry in entries
        if (value := _sweep_value(entry, kind)) is not None
    )
    if not points:
        return
    values, aps, lows, highs = (np.array(column) for column in zip(*points, strict=True))
    axes.plot(values, aps, marker="o", markersize=4, label=name, **style)
    axes.fill_between(values, lows, highs, color=style["color"], alpha=0.08, linewidth=0)
    for entry in entries:
        if entry.variant == RGB:
            axes.axhline(100 * entry.ap, color=style["color"], linestyle=":", linewidth=1)


def _sweep_value(entry: ScoreSummary, kind: str) -> float | None:
    name, _, value = entry.variant.partition("-")
    return float(value) if name == kind else None


def _styles() -> Any:
    """Line styles: the palette, then the palette dashed, and so on."""
    return cycle({"color": color, "linestyle": style} for style in ("-", "--", "-.") for color in PALETTE)


def _grid(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    columns = min(count, _WIDEST)
    rows = -(-count // columns)
    figure, panels = new_figure(width * columns, height * rows, rows=rows, columns=columns, squeeze=False)
    for empty in panels.flat[count:]:
        empty.remove()
    return figure, list(panels.flat[:count])
