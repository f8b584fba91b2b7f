"""An analysis whose numbers are scores under conditions: files of one set, and the table over sets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from evaluation.conditions import RGB, Condition, InColour
from evaluation.metrics import checked
from evaluation.options import AssessmentOptions
from evaluation.scores import ScoreCollector, Scores, read_scores
from evaluation.summary import METRICS, ScoreSummary, summarise_columns
from evaluation.thresholds import FIXED, Threshold, gmean_threshold
from images.choice import Reading
from images.sets import ImageSet, find_image_set, shared_images
from passes.analysis import Analysis
from passes.one_pass import PassReport
from passes.shared_forward import SharedForward
from utils.files import sha256_file
from utils.provenance import describes, in_common, read_record
from utils.tables import read_rows, write_rows

AVERAGED = "averaged"
# Detectors are trained on ProGAN, so there 0.5 is what they were made for.
_UNCALIBRATED = "progan"
_CONSTANT = 1e-6


Options = TypeVar("Options", bound=AssessmentOptions)


@dataclass(frozen=True)
class Result:
    """What tables and figures show of a set: rows by condition, the sentence on the threshold, the record."""

    gan_name: str
    rows: Mapping[str, ScoreSummary]
    record: Mapping[str, Any]

    @property
    def note(self) -> str:
        """How the threshold was chosen."""
        return str(self.record.get("threshold_note", ""))

    @property
    def images(self) -> int:
        """Number of images."""
        return next(iter(self.rows.values())).images

    @property
    def fakes(self) -> int:
        """Number of fakes."""
        return next(iter(self.rows.values())).fakes

    @property
    def chance(self) -> float:
        """AP of guessing: the share of fakes."""
        return self.fakes / self.images


class Assessment(Analysis[Options]):
    """p(fake) of every image under several conditions, and what becomes of AP and accuracy."""

    script: ClassVar[str]
    """Command that makes the files, for messages."""
    chosen_on: ClassVar[str] = RGB
    """Condition that the calibrated threshold is chosen on."""
    experiment: ClassVar[str]
    """Folder of the results."""
    one_label: ClassVar[bool] = False
    """Whether it says anything about reals alone or fakes alone."""

    @cached_property
    @abstractmethod
    def conditions(self) -> Sequence[Condition]:
        """Columns of scores."""

    def groups(self) -> Mapping[str, Sequence[str]]:
        """Columns that are draws of one kind, by the kind."""
        return {}

    def maps_dropped(self) -> Mapping[str, int]:
        """Feature maps dropped, by column."""
        return {}

    @property
    def reading(self) -> Reading:
        """How the images that are scored are cut."""
        return self.subject.reading

    @property
    def folder(self) -> Path:
        """Folder of this set."""
        return self.layout.scores(self.experiment, self.gan_name)

    @property
    def outputs(self) -> Sequence[Path]:
        return [self.folder / "scores.csv", self.folder / "summary.csv"]

    def requires(self) -> Sequence[Analysis[Any]]:
        return [] if self.calibration is None else [self.calibration]

    @cached_property
    def calibration(self) -> Calibration | None:
        """Scores of the set that the threshold is chosen on, if that is another one."""
        name = self.options.calibrate_on
        if name is None:
            return None
        below = self.subject.images.root / name
        folder = (below if below.is_dir() else Path(name)).resolve()
        images = find_image_set(folder.parent, folder.name)
        subject = replace(self.subject, reading=self.reading, images=images, gan_name=folder.name)
        return Calibration(subject, AssessmentOptions(bootstrap=self.options.bootstrap))

    def inputs(self) -> dict[str, str]:
        return {} if self.calibration is None else {"calibration": sha256_file(self.calibration.outputs[0])}

    def facts(self) -> dict[str, object]:
        return {
            "conditions": [condition.name for condition in self.conditions],
            "bootstrap": self.options.bootstrap,
            "calibrated_on": None if self.calibration is None else self.calibration.gan_name,
        }

    def collector(self, forward: SharedForward, images: ImageSet) -> ScoreCollector:
        return ScoreCollector(forward, images, self.conditions, published=self.subject.run.published)

    def write(self, collector: ScoreCollector, report: PassReport) -> dict[str, object]:
        scores = collector.result()
        checked(scores.labels, next(iter(scores.columns.values())), one_label=self.one_label)
        threshold = self.threshold(scores)
        columns, groups, dropped = dict(scores.columns), self.groups(), dict(self.maps_dropped())
        for kind, members in groups.items():
            # What the published tables show: the scores of the draws averaged before AP.
            averaged = f"{kind}-{AVERAGED}"
            columns[averaged] = np.mean([scores.columns[member] for member in members], axis=0)
            dropped[kind] = dropped[averaged] = min(dropped[member] for member in members)
        rows = summarise_columns(
            scores.labels,
            columns,
            groups,
            threshold,
            self.images.clusters_of(scores.paths),
            draws=self.options.bootstrap,
            seed=self.subject.run.seed,
            strict=self.subject.run.published,
        )
        scores.write(self.outputs[0])
        write_rows(self.outputs[1], [replace(row, maps_dropped=dropped.get(row.variant)) for row in rows])
        return {"threshold": threshold.value, "threshold_note": threshold.note}

    def threshold(self, scores: Scores) -> Threshold:
        """The threshold for the accuracies called calibrated."""
        published = self.subject.run.published
        if self.calibration is not None:
            held_out, name = self.calibration.scores, self.calibration.gan_name
            chosen = gmean_threshold(held_out.labels, held_out.columns[RGB], name, published=published)
            return chosen.sharing(shared_images(self.calibration.images, self.images))
        if self.gan_name == _UNCALIBRATED or len(set(scores.labels.tolist())) < 2:
            return Threshold(source=FIXED)
        chosen = gmean_threshold(scores.labels, scores.columns[self.chosen_on], self.gan_name, published=published)
        return chosen.sharing(len(scores.labels))

    @property
    def scores(self) -> Scores:
        """Scores, from the file."""
        return read_scores(self.outputs[0], made_by=self.script)

    @property
    def result(self) -> Result:
        """Results, from the files."""
        return read_result(self.folder, self.gan_name, made_by=self.script)

    def numbers(self) -> dict[str, float]:
        return {
            f"{variant}/{metric}": getattr(row, metric)
            for variant, row in self.result.rows.items()
            for metric in METRICS
            if not np.isnan(getattr(row, metric))
        }

    def messages(self) -> list[str]:
        result = self.result
        return [f"{self.gan_name}: {result.images} images; {result.note}", *self.doubts()]

    def doubts(self) -> list[str]:
        """Where the scores of the unchanged detector cannot be what they seem."""
        result = self.result
        row = next(iter(result.rows.values()))
        scores = next(iter(self.scores.columns.values()))
        doubts = []
        if np.ptp(scores) < _CONSTANT:
            doubts.append(f"all scores are near {scores[0]:.4f}: check the checkpoint and its preprocessing")
        elif (row.acc_real, row.acc_fake) in ((1.0, 0.0), (0.0, 1.0)):
            called = "real" if row.acc_real == 1.0 else "fake"
            doubts.append(f"every image is called {called} at 0.5: choose another threshold with --calibrate_on")
        if row.ap_high < result.chance:
            doubts.append("AP is below chance: are the labels, or the sign of the score (--fake_class), exchanged?")
        return [f"warning: {self.gan_name}: {doubt}" for doubt in doubts]

    def results_there(self, others: Sequence[Any]) -> list[Result]:
        """Results of all sets of this detector under these settings: those of `others` first, then any that are there.

        So a table over generators holds all of them, also when each was assessed by a command of its own.
        """
        by_set = {analysis.gan_name: analysis.result for analysis in others}
        wanted = in_common(self.origin().plain())
        for path in sorted(self.folder.parent.glob(f"*_{self.layout.tag}/summary.csv")):
            name, record = path.parent.name.removesuffix(f"_{self.layout.tag}"), read_record(path)
            if name not in by_set and in_common(record) == wanted and describes(record, path):
                by_set[name] = read_result(path.parent, name, made_by=self.script)
        return list(by_set.values())


class Calibration(Assessment[AssessmentOptions]):
    """Scores of the unchanged detector on a set kept apart for the choice of the threshold."""

    name = "calibration"
    experiment = "calibration"
    script = "the command that names it with --calibrate_on"

    @cached_property
    def conditions(self) -> Sequence[Condition]:
        return [InColour(RGB)]


def read_result(folder: Path, gan_name: str, *, made_by: str) -> Result:
    """What an assessment has written about a set.

    Raises:
        UserError: A file is missing or damaged; the message names the script that makes it.
    """
    path = folder / "summary.csv"
    rows = {row.variant: row for row in read_rows(path, ScoreSummary, made_by=made_by)}
    return Result(gan_name, rows, read_record(path))
