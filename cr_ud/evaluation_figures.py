"""Figures of an evaluation, drawn from its tables."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve

from cr_ud.evaluation import SetScores, Summary
from cr_ud.scoring import RGB, SWEEPS
from evaluation.metrics import average_precision
from utils.figures import FAKE, GREY, PALETTE, REAL, house_style, new_figure, save_figure

_AXIS_NAMES = {"jpeg": "JPEG quality", "blur": "blur, sigma in pixels", "resize": "scaling factor"}
_WIDEST = 3


@house_style()
def draw_precision_recall(tables: Sequence[SetScores], stem: Path) -> list[Path]:
    """Precision against recall on RGB images: a panel for each detector, a curve for each test set."""
    detectors = list(dict.fromkeys(table.detector for table in tables))
    figure, panels = _grid(len(detectors), 6.6, 4.2)
    for axes, detector in zip(panels, detectors, strict=False):
        styles = _styles()
        for table in tables:
            if table.detector != detector:
                continue
            recall, precision = _steps(table.labels, table.scores[RGB])
            ap = 100 * average_precision(table.labels, table.scores[RGB])
            axes.step(recall, precision, where="pre", label=f"{table.test_set}, AP {ap:.1f}", **next(styles))
        axes.set(title=detector, xlabel="recall of fakes", ylabel="precision", xlim=(-0.02, 1.02), ylim=(0.0, 1.03))
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return save_figure(figure, stem)


@house_style()
def draw_accuracies(summaries: Sequence[Summary], stem: Path) -> list[Path]:
    """Accuracy on reals and fakes of each test set, RGB images, with standard errors: a panel for each detector."""
    own = [entry for entry in summaries if entry.variant == RGB]
    detectors = list(dict.fromkeys(entry.detector for entry in own))
    most = max(sum(entry.detector == detector for entry in own) for detector in detectors)
    figure, panels = new_figure(max(6.4, 1.1 * most + 1.6), 3.2 * len(detectors), rows=len(detectors), squeeze=False)
    for axes, detector in zip(panels[:, 0], detectors, strict=True):
        entries = [entry for entry in own if entry.detector == detector]
        for label, color, shift in (("real", REAL, -0.2), ("fake", FAKE, 0.2)):
            values = [100 * getattr(entry, f"acc_{label}") for entry in entries]
            errors = [100 * getattr(entry, f"acc_{label}_se") for entry in entries]
            places = np.arange(len(entries)) + shift
            axes.bar(places, values, 0.38, color=color, label=label)
            axes.errorbar(places, values, errors, fmt="none", ecolor="black", capsize=3, linewidth=1)
            for place, value, error in zip(places, values, errors, strict=True):
                axes.annotate(f"{value:.0f}", (place, value + error), (0, 2), textcoords="offset points", ha="center")
        axes.axhline(50, color=GREY, linewidth=1, linestyle=":")
        axes.set_xticks(range(len(entries)), [entry.test_set for entry in entries])
        axes.set(title=detector, ylabel="accuracy at 0.5 (%)", ylim=(0, 118), yticks=range(0, 101, 20))
        axes.grid(visible=False, axis="x")
    panels[0, 0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="± standard error")
    return save_figure(figure, stem)


@house_style()
def draw_robustness(summaries: Sequence[Summary], stem: Path) -> list[Path]:
    """AP against JPEG quality, blur and scaling: a row for each detector, a curve for each test set.

    Dotted lines mark the AP on the images as they are. Nothing is drawn without such variants.
    """
    kinds = [kind for kind in SWEEPS if any(_sweep_value(entry, kind) is not None for entry in summaries)]
    if not kinds:
        return []
    detectors = list(dict.fromkeys(entry.detector for entry in summaries))
    size = 4.2 * len(kinds) + 1.6, 3.4 * len(detectors)
    figure, panels = new_figure(*size, rows=len(detectors), columns=len(kinds), squeeze=False, sharey=True)
    for row, detector in zip(panels, detectors, strict=True):
        own = [entry for entry in summaries if entry.detector == detector]
        sets = list(dict.fromkeys(entry.test_set for entry in own))
        for axes, kind in zip(row, kinds, strict=True):
            for style, name in zip(_styles(), sets, strict=False):
                _draw_sweep(axes, [entry for entry in own if entry.test_set == name], kind, style, name)
            axes.set(xlabel=_AXIS_NAMES[kind], ylim=(0, 103))
            if kind == "jpeg":
                axes.invert_xaxis()
        row[0].set_title(detector, loc="left")
        row[0].set_ylabel("AP (%)")
    panels[0, -1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="dotted: undistorted")
    return save_figure(figure, stem)


def _steps(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision where the recall rises: the steps whose area is the average precision."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    reached = np.unique(recall[recall > 0])
    highest = np.array([precision[recall == value].max() for value in reached])
    return np.concatenate([[0.0], reached]), np.concatenate([highest[:1], highest])


def _draw_sweep(axes: Any, entries: Sequence[Summary], kind: str, style: dict[str, Any], name: str) -> None:
    points = sorted(
        (value, 100 * entry.ap, 100 * entry.ap_low, 100 * entry.ap_high)
        for entry in entries
        if (value := _sweep_value(entry, kind)) is not None
    )
    values, aps, lows, highs = (np.array(column) for column in zip(*points, strict=True))
    axes.plot(values, aps, marker="o", markersize=4, label=name, **style)
    axes.fill_between(values, lows, highs, color=style["color"], alpha=0.08, linewidth=0)
    for entry in entries:
        if entry.variant == RGB:
            axes.axhline(100 * entry.ap, color=style["color"], linestyle=":", linewidth=1)


def _sweep_value(entry: Summary, kind: str) -> float | None:
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
