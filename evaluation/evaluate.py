"""Detectors on test sets, side by side; and the verdict on loose images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from detectors.choice import DetectorChoice
from detectors.detector import load_detector
from evaluation.assessment import Assessment, Result, read_result
from evaluation.comparison import write_comparison
from evaluation.conditions import RGB, Condition, InColour, sweeps
from evaluation.figures import draw_accuracies, draw_precision_recall, draw_robustness
from evaluation.options import EvaluationOptions
from evaluation.published import wang_results
from evaluation.scores import ScoreCollector, read_scores
from images.choice import ImageChoice, Reading
from images.decoding import decode_image
from images.finding import find_images
from images.sets import LABEL_NAMES, ImageSet, find_loose_images
from passes.analysis import Analysis, Subject, draw_once
from passes.one_pass import PassReport
from passes.options import RunOptions
from passes.processes import Ranks, process_group
from passes.running import run_analyses, tracked, warned
from passes.shared_forward import SharedForward
from utils.cli import say
from utils.errors import UserError
from utils.files import is_plain_name, safe_join, write_csv
from utils.layout import Layout
from utils.pictures import ContactSheets
from utils.provenance import describes, read_record
from utils.settings import plain
from utils.tables import read_table

SCRIPT = "src/evaluate_detector.py"
# Test sets of Wang et al. that are arranged in class folders; no set is scaled, all are cropped at the centre.
_WANG_WITH_CLASSES = frozenset({"progan", "stylegan", "cyclegan", "stylegan2"})
_SHOWN_VERDICTS = 20


class Evaluation(Assessment[EvaluationOptions]):
    """p(fake) of every image as it is, in greyscale and distorted."""

    name = "evaluation"
    experiment = "evaluation"
    script = SCRIPT

    def __init__(self, subject: Subject, options: EvaluationOptions) -> None:
        crop = subject.reading.cropping()
        # Blur and JPEG act on whole images; where single pixels change, cropping first gives the same.
        self._late = crop if crop.kind != "none" and (options.jpeg or options.blur or options.rescale) else None
        if self._late is not None:
            subject = replace(subject, reading=replace(subject.reading, crop="none"))
        super().__init__(subject, options)

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

    def facts(self) -> dict[str, object]:
        return {**super().facts(), "cropped_late": str(self._late), "encoder": self.options.jpeg_method}

    def messages(self) -> list[str]:
        row = self.result.rows[RGB]
        head = f"{self.layout.tag}, {self.gan_name}: {row.images - row.fakes} real and {row.fakes} fake images"
        ranking = f"AP {row.ap:.4f} [{row.ap_low:.4f}, {row.ap_high:.4f}], accuracy {row.acc:.4f}"
        shares = [f"{name} {value:.4f}" for name, value in (("real", row.acc_real), ("fake", row.acc_fake))]
        known = [share for share in shares if not share.endswith("nan")]
        return [f"{head}, {ranking if not np.isnan(row.ap) else 'accuracy'} ({', '.join(known)})", *self.doubts()]


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
            f"{path}: p(fake) {shown_probability(score)}: {'fake' if score >= 0.5 else 'real'}"
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
            sheets.add([decode_image(item.path)], [f"{rank}.  {shown_probability(score)}", name])
        return sheets.finish()


def evaluate(
    detector: DetectorChoice, images: ImageChoice, reading: Reading, options: EvaluationOptions, run: RunOptions
) -> list[Evaluation] | list[LooseImages]:
    """Evaluate the detectors on the sets named, or judge loose images; tables and figures over all of them.

    Raises:
        UserError: Anything a user can mend.
        Interrupted: After Ctrl-C or SIGTERM, with the state saved.
    """
    if options.rules == "wang":
        reading = replace(reading, crop="center")
    with process_group() as ranks:
        loaded = [(name, choice, load_detector(choice)) for name, choice in named_detectors(detector, options)]
        sets = _test_sets(images, options, ranks)
        subjects = [
            Subject(network, name, set_name, image_set, reading, run, plain(choice, images, reading, options, run))
            for name, choice, network in loaded
            for set_name, image_set in sets.items()
        ]
        with tracked(run, "evaluation", subjects[0].settings, ranks) as tracker:
            if options.images:
                judged = [LooseImages(subject, options) for subject in subjects]
                run_analyses(judged, ranks=ranks, tracker=tracker)
                return judged
            evaluations = [Evaluation(subject, options) for subject in subjects]
            run_analyses(evaluations, ranks=ranks, tracker=tracker)
            if ranks.is_first:
                for path in draw_evaluations(evaluations):
                    say(str(path))
    return evaluations


def named_detectors(detector: DetectorChoice, options: EvaluationOptions) -> list[tuple[str, DetectorChoice]]:
    """The detectors of `NAME=ARCH:FILE ...`, or the one of the settings.

    Raises:
        UserError: A detector is not described so, or two share a name.
    """
    if not options.detectors:
        name = detector.arch if detector.weights is not None else f"{detector.arch}_{detector.blur_jpg}"
        return [(name, detector)]
    found: dict[str, DetectorChoice] = {}
    for text in options.detectors:
        name, equals, rest = text.partition("=")
        arch, colon, file = rest.partition(":")
        if arch == "timm":
            arch, colon, file = rest.rpartition(":")
        if not (equals and colon and file and is_plain_name(name)):
            raise UserError(f"--detectors {text}: write NAME=ARCH:FILE, as in cr=resnet50:weights/cr.pth")
        if name in found:
            raise UserError(f"--detectors: two are called {name}: give each a name of its own")
        found[name] = replace(detector, arch=arch, weights=Path(file), blur_jpg=name)
    return list(found.items())


def _test_sets(images: ImageChoice, options: EvaluationOptions, ranks: Ranks) -> dict[str, ImageSet]:
    if options.images:
        return {"images": find_loose_images(options.images)}
    if options.rules != "wang":
        return warned(find_images(images, alone=True), ranks)
    known = next(iter(wang_results().values()))
    sets: dict[str, ImageSet] = {}
    for name in images.gan_name:
        classes = name in _WANG_WITH_CLASSES if name in known else images.have_classes
        sets |= find_images(replace(images, gan_name=(name,), have_classes=classes))
    return warned(sets, ranks)


def draw_evaluations(evaluations: Sequence[Evaluation]) -> list[Path]:
    """Tables and figures over all detectors and sets that were evaluated under these settings, from the files."""
    first = evaluations[0]
    folder = first.folder.parents[1]
    results = _results_there(evaluations)
    tables = write_comparison(folder, results, wang=first.options.rules == "wang")
    sources = [folder / name / result.gan_name / "summary.csv" for name, result in results]

    def draw() -> list[Path]:
        scores = [(name, result.gan_name, _scores(folder, name, result)) for name, result in results]
        return [
            *draw_precision_recall(scores, folder / "precision_recall"),
            *draw_accuracies(results, folder / "accuracy"),
            *draw_robustness(results, folder / "robustness"),
        ]

    layout = Layout(first.layout.root, "all", "detectors")
    return [*tables, *draw_once(layout, "evaluation", sources, {"names": [name for name, _ in results]}, draw)]


def _scores(folder: Path, name: str, result: Result) -> tuple[np.ndarray, np.ndarray]:
    table = read_scores(folder / name / result.gan_name / "scores.csv", made_by=SCRIPT)
    return table.labels, table.columns[RGB]


def _results_there(evaluations: Sequence[Evaluation]) -> list[tuple[str, Result]]:
    """(Detector, result) of these evaluations, then of others in the folder that were made under the same settings."""
    found = {(e.layout.tag, e.gan_name): e.result for e in evaluations}
    own = {"gan_name", "tag", "arch", "bsize"}
    wanted = {key: value for key, value in evaluations[0].origin().plain()["facts"].items() if key not in own}
    for path in sorted(evaluations[0].folder.parents[1].glob("*/*/summary.csv")):
        name, set_name = path.parts[-3:-1]
        record = read_record(path)
        facts = {key: value for key, value in record.get("facts", {}).items() if key not in own}
        if (name, set_name) not in found and facts == wanted and describes(record, path):
            found[name, set_name] = read_result(path.parent, set_name, made_by=SCRIPT)
    return [(name, result) for (name, _), result in found.items()]


def shown_probability(probability: float) -> str:
    """Three digits, without rounding to certainty."""
    return "> 0.999" if probability > 0.9995 else "< 0.001" if probability < 0.0005 else f"{probability:.3f}"
