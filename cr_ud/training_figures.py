"""Curves of training runs, drawn from their logs."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cr_ud.training_log import EPOCH, TRAIN, VALIDATION, LogRow
from utils.figures import BLACK, FAKE, GREY, PALETTE, REAL, house_style, new_figure, save_figure


@house_style()
def draw_curves(rows: Sequence[LogRow], stem: Path, title: str) -> list[Path]:
    """Loss, AP and accuracies against steps, drops of the learning rate marked, as `<stem>.png` and `.pdf`."""
    figure, (loss, ap, accuracy) = new_figure(12.0, 4.2, columns=3, sharex=True)
    train = [row for row in rows if row.kind == TRAIN]
    validation = [row for row in rows if row.kind in (VALIDATION, EPOCH)]
    steps = [row.step for row in validation]
    # more markers than this would hide the lines
    mark: dict[str, Any] = {"marker": "o", "markersize": 4} if len(validation) <= 40 else {}
    loss.plot([row.step for row in train], [row.loss for row in train], color=GREY, label="training")
    if validation:
        loss.plot(steps, [row.loss for row in validation], color=BLACK, label="validation", **mark)
        ap.plot(steps, [row.ap for row in validation], color=BLACK, **mark)
        for name, label, color in (("acc_real", "real", REAL), ("acc_fake", "fake", FAKE), ("acc", "all", BLACK)):
            accuracy.plot(steps, [getattr(row, name) for row in validation], color=color, label=label, **mark)
    loss.set(ylabel="binary cross-entropy", title="Loss", ylim=(0, None))
    ap.set(ylabel="average precision", title="AP, validation")
    accuracy.set(ylabel="accuracy at 0.5", title="Accuracy, validation")
    drops = _drops(rows)
    for axes in (loss, ap, accuracy):
        axes.set_xlabel("steps")
        for number, (step, rate) in enumerate(drops):
            legend = "learning rate / 10" if axes is loss and number == 0 else None
            axes.axvline(step, color=PALETTE[5], linestyle="--", linewidth=1.0, label=legend)
            axes.annotate(
                f"{rate:.0e}",
                (step, 0.02),
                xycoords=("data", "axes fraction"),
                xytext=(-2, 0),
                textcoords="offset points",
                rotation=90,
                ha="right",
                fontsize=8,
                color=PALETTE[5],
            )
    for axes in (ap, accuracy):
        axes.set_ylim(-0.03, 1.03)
    loss.legend()
    if validation:
        accuracy.legend(loc="lower left")
    figure.suptitle(title)
    return save_figure(figure, stem)


@house_style()
def draw_comparison(runs: Mapping[str, Sequence[LogRow]], stem: Path, title: str) -> list[Path]:
    """Validation AP and accuracy of several runs against steps, as `<stem>.png` and `.pdf`."""
    figure, panels = new_figure(10.0, 4.2, columns=2)
    for axes, name, label in zip(
        panels, ("ap", "acc"), ("average precision", "accuracy at 0.5, all images"), strict=True
    ):
        for color, (run, rows) in zip(PALETTE * (1 + len(runs) // len(PALETTE)), runs.items(), strict=False):
            validation = [row for row in rows if row.kind in (VALIDATION, EPOCH)]
            values = [getattr(row, name) for row in validation]
            axes.plot([row.step for row in validation], values, "o-", markersize=4, color=color, label=run)
        axes.set(xlabel="steps", ylabel=label, ylim=(-0.03, 1.03))
        axes.legend(loc="lower right")
    figure.suptitle(title)
    return save_figure(figure, stem)


def _drops(rows: Sequence[LogRow]) -> list[tuple[int, float]]:
    """Steps after which the learning rate was a tenth of that before, and what it then was."""
    return [(before.step, after.lr) for before, after in pairwise(rows) if math.isclose(after.lr, 0.1 * before.lr)]
