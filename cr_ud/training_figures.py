"""Curves of training runs, drawn from their logs."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cr_ud.task import Task
from cr_ud.training_log import EPOCH, TRAIN, VALIDATION, LogRow
from utils.figures import BLACK, FAKE, GREY, PALETTE, REAL, house_style, new_figure, save_figure

_COLOURS = {"real": REAL, "fake": FAKE, "all": BLACK}


@house_style()
def draw_curves(rows: Sequence[LogRow], task: type[Task], stem: Path, title: str) -> list[Path]:
    """Loss and metrics against steps, drops of the learning rate marked, as `<stem>.png` and `.pdf`."""
    columns = 1 + len(task.panels)
    figure, (loss, *panels) = new_figure(4.0 * columns, 4.2, columns=columns, sharex=True)
    train, validation = [row for row in rows if row.kind == TRAIN], _validations(rows)
    steps = [row.step for row in validation]
    # more markers than this would hide the lines
    mark: dict[str, Any] = {"marker": "o", "markersize": 4} if len(validation) <= 40 else {}
    loss.plot([row.step for row in train], [row.loss for row in train], color=GREY, label="training")
    if validation:
        loss.plot(steps, [row.loss for row in validation], color=BLACK, label="validation", **mark)
    loss.set(ylabel=task.loss, title="Loss", ylim=(0, None))
    for axes, (name, curves) in zip(panels, task.panels.items(), strict=True):
        for colour, (metric, label) in zip(PALETTE, curves.items(), strict=False):
            values = [row.metrics.get(metric, math.nan) for row in validation]
            axes.plot(steps, values, color=_COLOURS.get(label, colour), label=label, **mark)
        axes.set(ylabel=name, title="Validation", ylim=(-0.03, 1.03))
        if validation and len(curves) > 1:
            axes.legend(loc="lower left")
    for axes in (loss, *panels):
        axes.set_xlabel("steps")
        for number, (step, rate) in enumerate(_drops(rows)):
            legend = "learning rate / 10" if axes is loss and number == 0 else None
            axes.axvline(step, color=PALETTE[5], linestyle="--", linewidth=1.0, label=legend)
            look: dict[str, Any] = {"rotation": 90, "ha": "right", "fontsize": 8, "color": PALETTE[5]}
            axes.text(step, 0.02, f"{rate:.0e} ", transform=axes.get_xaxis_transform(), **look)
    loss.legend()
    figure.suptitle(title)
    return save_figure(figure, stem)


@house_style()
def draw_comparison(runs: Mapping[str, Sequence[LogRow]], task: type[Task], stem: Path, title: str) -> list[Path]:
    """The most important metric of each panel against steps for several runs, as `<stem>.png` and `.pdf`."""
    columns = len(task.panels)
    figure, panels = new_figure(5.0 * columns, 4.2, columns=columns, squeeze=False)
    for axes, (name, curves) in zip(panels[0], task.panels.items(), strict=True):
        metric = list(curves)[-1]
        for number, (run, rows) in enumerate(runs.items()):
            validation = _validations(rows)
            values = [row.metrics.get(metric, math.nan) for row in validation]
            axes.plot(
                [row.step for row in validation],
                values,
                "o-",
                markersize=4,
                color=PALETTE[number % len(PALETTE)],
                label=run,
            )
        axes.set(xlabel="steps", ylabel=f"{name}, all images", ylim=(-0.03, 1.03))
        axes.legend(loc="lower right")
    figure.suptitle(title)
    return save_figure(figure, stem)


def _validations(rows: Sequence[LogRow]) -> list[LogRow]:
    return [row for row in rows if row.kind in (VALIDATION, EPOCH)]


def _drops(rows: Sequence[LogRow]) -> list[tuple[int, float]]:
    """Steps after which the learning rate was a tenth of that before, and what it then was."""
    return [(before.step, after.lr) for before, after in pairwise(rows) if math.isclose(after.lr, 0.1 * before.lr)]
