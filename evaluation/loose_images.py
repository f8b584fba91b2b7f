"""The verdict on images without a label, on the console, as a table and as contact sheets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from evaluation.conditions import RGB, InColour
from evaluation.options import EvaluationOptions
from evaluation.scores import ScoreCollector
from images.choice import ImageChoice
from images.decoding import decode_image
from images.sets import LABEL_NAMES, ImageSet, find_loose_images
from passes.analysis import Analysis, Subject
from passes.one_pass import PassReport
from passes.shared_forward import SharedForward
from utils.errors import UserError
from utils.files import safe_join
from utils.pictures import ContactSheets
from utils.tables import read_rows, write_rows

SCRIPT = "src/evaluate_detector.py"
_SHOWN_VERDICTS = 20


@dataclass(frozen=True)
class Judged:
    """A line of the table, from most fake (rank 1) to most real; the label is 0 real, 1 fake, or unknown."""

    rank: int
    path: str
    label: int | None
    probability_of_fake: float

    @property
    def shown(self) -> str:
        """p(fake) in three digits, without rounding to certainty."""
        score = self.probability_of_fake
        return "> 0.999" if score > 0.9995 else "< 0.001" if score < 0.0005 else f"{score:.3f}"


class LooseImages(Analysis[EvaluationOptions]):
    """p(fake) of images without a label, from most fake to most real."""

    name = "images"
    labels: ClassVar[Any] = (0, 1, None)

    def __init__(self, subject: Subject, options: EvaluationOptions) -> None:
        super().__init__(options.tagged(subject), options)

    @classmethod
    def choose_images(cls, choice: ImageChoice, options: EvaluationOptions) -> dict[str, ImageSet]:
        return {"images": find_loose_images(options.images)}

    @property
    def outputs(self) -> Sequence[Path]:
        return [safe_join(self.layout.root, "ranked_images", f"{self.layout.tag}.csv")]

    def inputs(self) -> dict[str, str]:
        return {}

    def facts(self) -> dict[str, object]:
        return {}

    def collector(self, forward: SharedForward, images: ImageSet) -> ScoreCollector:
        return ScoreCollector(forward, images, [InColour(RGB)], published=self.subject.run.published)

    def write(self, collector: ScoreCollector, report: PassReport) -> dict[str, object]:
        scores = collector.result()
        if not scores.paths:
            raise UserError("no image can be decoded, so there is nothing to judge: see the lines above")
        column = scores.columns[RGB]
        labels = [None if label < 0 else label for label in scores.labels.tolist()]
        order = np.argsort(-column, kind="stable").tolist()
        rows = [Judged(rank, scores.paths[i], labels[i], float(column[i])) for rank, i in enumerate(order, start=1)]
        write_rows(self.outputs[0], rows)
        return {}

    def _rows(self) -> list[Judged]:
        return read_rows(self.outputs[0], Judged, made_by=SCRIPT)

    def messages(self) -> list[str]:
        rows = self._rows()
        called = sum(row.probability_of_fake >= 0.5 for row in rows)
        lines = [
            f"{row.path}: p(fake) {row.shown}: {'fake' if row.probability_of_fake >= 0.5 else 'real'}"
            for row in rows[:_SHOWN_VERDICTS]
        ]
        more = f"; the other {len(rows) - len(lines)} are in the table" if len(rows) > len(lines) else ""
        return [
            *lines,
            f"{self.layout.tag}: {called} of {len(rows)} images called fake, from a score of 0.5 on, the threshold of "
            f"training (evaluate on labelled images with --calibrate_on for another){more}",
        ]

    def drawing_settings(self) -> dict[str, object]:
        return {"shown": self.options.sheet_images}

    def draw(self) -> list[Path]:
        """Contact sheets: the most fake and the most real ones."""
        rows, shown = self._rows(), self.options.sheet_images
        title = f"{self.layout.tag}: p(fake) of {len(rows)} images, most fake to most real"
        if 0 < shown < len(rows):
            top = (shown + 1) // 2
            title = (
                f"{self.layout.tag}: p(fake) of the {top} most fake and {shown - top} most real of {len(rows)} images"
            )
            rows = rows[:top] + rows[len(rows) - (shown - top) :]
        items = {item.name: item for item in self.images.items}
        stem = self.outputs[0].with_suffix("")
        sheets = ContactSheets(stem, panels=1, caption_lines=2, columns=6, rows=4, title=title)
        for row in rows:
            item = items[row.path]
            name = item.path.name if item.label is None else f"{LABEL_NAMES[item.label]} \u00b7 {item.path.name}"
            sheets.add([decode_image(item.path)], [f"{row.rank}.  {row.shown}", name])
        return sheets.finish()
