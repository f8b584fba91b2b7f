"""The verdict on images without a label, on the console, as a table and as contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from evaluation.conditions import RGB, InColour
from evaluation.options import EvaluationOptions
from evaluation.scores import ScoreCollector
from images.decoding import decode_image
from images.sets import LABEL_NAMES, ImageSet
from passes.analysis import Analysis
from passes.one_pass import PassReport
from passes.shared_forward import SharedForward
from utils.errors import UserError
from utils.files import safe_join, write_csv
from utils.pictures import ContactSheets
from utils.tables import read_table

SCRIPT = "src/evaluate_detector.py"
_SHOWN_VERDICTS = 20


class LooseImages(Analysis[EvaluationOptions]):
    """p(fake) of images without a label, from most fake to most real."""

    name = "images"

    @cached_property
    def images(self) -> ImageSet:
        return self.subject.images

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
        rows = [
            (rank, scores.paths[place], "" if scores.labels[place] < 0 else int(scores.labels[place]), column[place])
            for rank, place in enumerate(np.argsort(-column, kind="stable").tolist(), start=1)
        ]
        write_csv(self.outputs[0], ("rank", "path", "label", "probability_of_fake"), rows)
        return {}

    def _rows(self) -> list[tuple[int, str, float]]:
        _, lines = read_table(self.outputs[0], made_by=SCRIPT)
        return [(int(rank), path, float(score)) for rank, path, _, score in lines]

    def messages(self) -> list[str]:
        rows = self._rows()
        called = sum(score >= 0.5 for _, _, score in rows)
        lines = [
            f"{path}: p(fake) {_shown(score)}: {'fake' if score >= 0.5 else 'real'}"
            for _, path, score in rows[:_SHOWN_VERDICTS]
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
        for rank, path, score in rows:
            item = items[path]
            name = item.path.name if item.label is None else f"{LABEL_NAMES[item.label]} \u00b7 {item.path.name}"
            sheets.add([decode_image(item.path)], [f"{rank}.  {_shown(score)}", name])
        return sheets.finish()


def _shown(probability: float) -> str:
    """Three digits, without rounding to certainty."""
    return "> 0.999" if probability > 0.9995 else "< 0.001" if probability < 0.0005 else f"{probability:.3f}"
