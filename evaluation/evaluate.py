"""Detectors on test sets, side by side; and the verdict on loose images."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from detectors.choice import DetectorChoice, named_detectors
from evaluation.agreement import Agreement, agreements, draw_agreement
from evaluation.assessment import Assessment, Result, read_result
from evaluation.conditions import RGB, Condition, sweeps
from evaluation.figures import draw_accuracies, draw_precision_recall, draw_robustness
from evaluation.loose_images import SCRIPT, LooseImages
from evaluation.options import EvaluationOptions
from evaluation.published import wang_results
from evaluation.scores import ScoreCollector, Scores, read_scores
from evaluation.tables import write_comparison
from images.choice import ImageChoice, Reading
from images.decoding import Crop, image_size
from images.finding import find_images
from images.sets import ImageSet
from passes.analysis import Subject, draw_once
from passes.one_pass import PassReport
from passes.options import RunOptions
from passes.running import run_experiment
from utils.files import safe_join
from utils.layout import Layout
from utils.provenance import describes, in_common, read_record

# Test sets of Wang et al. that are arranged in class folders; no set is scaled, all are cropped at the centre.
_WANG_WITH_CLASSES = frozenset({"progan", "stylegan", "cyclegan", "stylegan2"})
_OF_DETECTOR_OR_SET = (
    ("images", "weights", "calibration"),
    ("gan_name", "tag", "arch", "weights", "fake_class", "bsize"),
)
_CUT = ("crop", "cropped_late")


class Evaluation(Assessment[EvaluationOptions]):
    """p(fake) of every image as it is, in greyscale and distorted."""

    name = "evaluation"
    experiment = "evaluation"
    script = SCRIPT
    one_label = True

    def __init__(self, subject: Subject, options: EvaluationOptions) -> None:
        subject = options.tagged(subject)
        self._reading, self._crop = subject.reading, subject.crop
        # Blur and JPEG act on whole images; where single pixels change, cropping first gives the same.
        self._late = self._crop if self._crop != Crop() and (options.jpeg or options.blur or options.rescale) else None
        if self._late is not None:
            whole = replace(subject.reading, crop="none", resize=0, preprocessing="as_is")
            subject = replace(subject, reading=whole)
        super().__init__(subject, options)

    @classmethod
    def choose_images(cls, choice: ImageChoice, options: EvaluationOptions) -> dict[str, ImageSet]:
        """As the rules have them: with class folders where Wang et al. have some."""
        if options.rules != "wang":
            return find_images(choice, alone=True)
        known = next(iter(wang_results().values()))
        sets: dict[str, ImageSet] = {}
        for name in choice.gan_name:
            classes = name in _WANG_WITH_CLASSES if name in known else choice.have_classes
            sets |= find_images(replace(choice, gan_name=(name,), have_classes=classes), alone=True)
        return sets or find_images(choice)

    @property
    def reading(self) -> Reading:
        return self._reading

    @property
    def cut_by_authors(self) -> bool:
        """Whether images are cut in a way of the detector's own, whatever the command line says."""
        return self._crop != self._reading.cropping()

    @cached_property
    def conditions(self) -> Sequence[Condition]:
        options = self.options
        return sweeps(
            options.jpeg,
            options.blur,
            options.rescale,
            encoder=options.jpeg_method,
            crop=self._late,
            seed=self.subject.run.seed,
        )

    @property
    def folder(self) -> Path:
        return safe_join(self.layout.root, self.experiment, self.layout.tag, self.gan_name)

    def write(self, collector: ScoreCollector, report: PassReport) -> dict[str, object]:
        crop, smaller = self._crop, 0
        if crop.kind == "center" and not crop.resize:
            scored = set(collector.result().paths)
            sizes = (image_size(item.path) for item in self.images.items if item.name in scored)
            smaller = sum(min(size) < crop.size for size in sizes)
        return {**super().write(collector, report), "smaller_than_crop": smaller, "cut_by_authors": self.cut_by_authors}

    def doubts(self) -> list[str]:
        smaller = self.notes().get("smaller_than_crop")
        more = f"{smaller} images are smaller than the crop: what they lack is black"
        return [*super().doubts(), *([f"warning: {self.gan_name}: {more}"] if smaller else [])]

    def facts(self) -> dict[str, object]:
        return {**super().facts(), "cropped_late": str(self._late), "encoder": self.options.jpeg_method}

    def messages(self) -> list[str]:
        row = self.result.rows[RGB]
        head = f"{self.layout.tag}, {self.gan_name}: {row.images - row.fakes} real and {row.fakes} fake images"
        ranking = f"AP {row.ap:.4f} [{row.ap_low:.4f}, {row.ap_high:.4f}], accuracy {row.acc:.4f}"
        shares = [f"{name} {value:.4f}" for name, value in (("real", row.acc_real), ("fake", row.acc_fake))]
        known = [share for share in shares if not share.endswith("nan")]
        return [f"{head}, {ranking if not np.isnan(row.ap) else 'accuracy'} ({', '.join(known)})", *self.doubts()]


def evaluate(
    detector: DetectorChoice, images: ImageChoice, reading: Reading, options: EvaluationOptions, run: RunOptions
) -> list[Evaluation] | list[LooseImages]:
    """Evaluate the detectors on the sets named, or judge loose images; tables and figures over all of them.

    Raises:
        UserError: Anything a user can mend.
        Interrupted: After Ctrl-C or SIGTERM, with the state saved.
    """
    if options.rules == "wang":
        reading = replace(reading, crop="center", preprocessing="as_is")
    detectors = named_detectors(detector, options.detectors)
    if options.images:
        return run_experiment(LooseImages, detectors, images, reading, options, run)
    return run_experiment(Evaluation, detectors, images, reading, options, run, overview=draw_evaluations)


def draw_evaluations(evaluations: Sequence[Evaluation]) -> list[Path]:
    """Tables and figures over all detectors and sets that were evaluated under these settings, from the files."""
    first = evaluations[0]
    folder = first.folder.parents[1]
    results = _results_there(evaluations)
    folders = [folder / name / result.gan_name for name, result in results]
    scored = [read_scores(path / "scores.csv", made_by=SCRIPT) for path in folders]
    agreement = _agreement(evaluations, results, scored)
    tables = write_comparison(folder, results, agreement, wang=first.options.rules == "wang")

    def draw() -> list[Path]:
        scores = [
            (name, result.gan_name, (table.labels, table.columns[RGB]))
            for (name, result), table in zip(results, scored, strict=True)
        ]
        return [
            *draw_agreement(agreement, folder / "agreement"),
            *draw_precision_recall(scores, folder / "precision_recall"),
            *draw_accuracies(results, folder / "accuracy"),
            *draw_robustness(results, folder / "robustness"),
        ]

    layout = Layout(first.layout.root, "all", "detectors")
    sources = [path / name for path in folders for name in ("scores.csv", "summary.csv")]
    return [*tables, *draw_once(layout, "evaluation", sources, {"names": [name for name, _ in results]}, draw)]


def _agreement(
    evaluations: Sequence[Evaluation], results: Sequence[tuple[str, Result]], scored: Sequence[Scores]
) -> list[Agreement]:
    """Of every two detectors on each set that they share."""
    by_set: dict[str, dict[str, Scores]] = {}
    for (name, result), scores in zip(results, scored, strict=True):
        by_set.setdefault(result.gan_name, {})[name] = scores
    first = evaluations[0]
    images = {e.gan_name: e.images for e in evaluations}
    rows = []
    for test_set, scores_of in by_set.items():
        items = images[test_set].items if test_set in images else ()
        rows += agreements(
            test_set,
            scores_of,
            clusters={item.name: item.cluster for item in items},
            draws=first.options.bootstrap,
            seed=first.subject.run.seed,
            strict=first.subject.run.published,
        )
    return rows


def _results_there(evaluations: Sequence[Evaluation]) -> list[tuple[str, Result]]:
    """(Detector, result) of these evaluations, then of others in the folder that were made under the same settings."""
    results = {(e.layout.tag, e.gan_name): e.result for e in evaluations}
    # Detectors that cut images in a way of their own stand beside those that follow the command line.
    first = next((e for e in evaluations if not e.cut_by_authors), evaluations[0])
    for path in sorted(evaluations[0].folder.parents[1].glob("*/*/summary.csv")):
        name, set_name = path.parts[-3:-1]
        record = read_record(path)
        cut = _CUT if first.cut_by_authors or record.get("cut_by_authors") else ()
        ignored = _OF_DETECTOR_OR_SET[0], (*_OF_DETECTOR_OR_SET[1], *cut)
        if (
            (name, set_name) not in results
            and in_common(record, *ignored) == in_common(first.origin().plain(), *ignored)
            and describes(record, path)
        ):
            results[name, set_name] = read_result(path.parent, set_name, made_by=SCRIPT)
    return [(name, result) for (name, _), result in results.items()]
