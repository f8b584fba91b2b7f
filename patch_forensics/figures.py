"""Figures of patch classifiers, drawn from their files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.figures import FAKE, GREY, REAL, house_style, new_figure, save_figure

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
