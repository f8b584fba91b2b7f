"""Confusion matrices: what was said of images of which truth, in numbers with intervals and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.intervals import wilson_interval
from utils.figures import house_style, new_figure, save_figure
from utils.tables import percent, percent_range

_Share = tuple[float | None, float | None, float | None]
_NONE: _Share = (None, None, None)


@dataclass(frozen=True)
class ClassRow:
    """How well one class is told from all others; fractions, `_low` and `_high` bound 95 % intervals.

    Attributes:
        name: Of the class; `all` for the accuracy over all images, which stands under `recall`.
        images: Of the class.
        said: Images that were said to be of it.
        precision, recall: With Wilson's intervals.
        f1: 2 J / (1 + J) of the share J of true ones among the images that are or were said to be of the class, and so
            are its bounds.
    """

    name: str
    images: int
    said: int
    precision: float | None
    precision_low: float | None
    precision_high: float | None
    recall: float | None
    recall_low: float | None
    recall_high: float | None
    f1: float | None
    f1_low: float | None
    f1_high: float | None


@dataclass(frozen=True, eq=False)
class Confusion:
    """Counts of images (truths, answers).

    Attributes:
        counts: int64; the answers are the first of the truths, whose last ones nothing may answer.
        truths: Names of the rows.
        answers: Names of the columns.
    """

    counts: np.ndarray
    truths: tuple[str, ...]
    answers: tuple[str, ...]

    @classmethod
    def of(cls, truth: np.ndarray, said: np.ndarray, truths: Sequence[str], answers: Sequence[str]) -> Confusion:
        """From numbers of classes, (n,) each."""
        counts = np.zeros((len(truths), len(answers)), np.int64)
        np.add.at(counts, (truth, said), 1)
        return cls(counts, tuple(truths), tuple(answers))

    def correct(self) -> int:
        """Images that were answered rightly: of truths beyond the answers, with the first answer."""
        beyond = self.counts[len(self.answers) :, 0].sum()
        return int(np.trace(self.counts[: len(self.answers)]) + beyond)

    def rows(self) -> list[ClassRow]:
        """A row for each truth, and one for all images."""
        rows = []
        for index, name in enumerate(self.truths):
            is_answer = index < len(self.answers)
            column = index if is_answer else 0
            images, said = int(self.counts[index].sum()), int(self.counts[:, column].sum())
            true = int(self.counts[index, column])
            precision = _share(true, said) if is_answer else _NONE
            overlap = _share(true, images + said - true) if is_answer else _NONE
            f1 = (None if share is None else 2 * share / (1 + share) for share in overlap)
            rows.append(ClassRow(name, images, said, *precision, *_share(true, images), *f1))
        total = int(self.counts.sum())
        return [*rows, ClassRow("all", total, total, *_NONE, *_share(self.correct(), total), *_NONE)]

    @house_style()
    def draw(self, stem: Path, title: str, note: str = "") -> list[Path]:
        """The matrix as shares of each truth, with counts; the accuracy below."""
        height, width = self.counts.shape
        figure, axes = new_figure(2.4 + 1.15 * width, 2.0 + 0.62 * height)
        shares = self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, column in np.ndindex(height, width):
            colour = "white" if shares[row, column] > 0.6 else "black"
            text = f"{percent(shares[row, column], 0)} %\n{self.counts[row, column]}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(width), self.answers, rotation=30, ha="right")
        axes.set_yticks(range(height), [f"{n} ({c})" for n, c in zip(self.truths, self.counts.sum(1), strict=True)])
        axes.grid(visible=False)
        row = self.rows()[-1]
        accuracy = f"accuracy {percent(row.recall)} {percent_range(row.recall_low, row.recall_high)} %"
        axes.set(title=title, ylabel="truth (images)", xlabel="\n".join(filter(None, ("said", accuracy, note))))
        return save_figure(figure, stem)


def _share(part: int, whole: int) -> _Share:
    return (part / whole, *wilson_interval(part, whole)) if whole else _NONE
