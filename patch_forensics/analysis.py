"""How well a patch classifier tells real from fake, and where: metrics of its averages, heat maps of telling images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.metrics import checked
from evaluation.scores import Scores
from evaluation.summary import ScoreSummary, summarise_columns
from images.sets import ImageSet
from passes.analysis import Analysis, Subject
from passes.one_pass import PassReport
from passes.options import RunOptions
from passes.shared_forward import SharedForward
from patch_forensics.averages import AVERAGES, FILES, FULL, PATCH, ClassMetrics
from patch_forensics.collector import MapCollector
from patch_forensics.figures import draw_precision_recall
from patch_forensics.geometry import Geometries, check_sizes
from patch_forensics.options import PatchTest
from patch_forensics.trained import Trained, result_folder, run_tested
from patch_forensics.visualisation import draw_telling_images, write_telling_images
from utils.errors import UserError
from utils.files import read_npz
from utils.tables import read_rows, write_rows

SCRIPT = "test_patch_forensics.py"


@dataclass(frozen=True)
class MetricRow:
    """A row of `metrics.csv`: an average over patches, or `patch` for every patch alone.

    Attributes:
        ap_class_1: Average precision with class 1 (real, unless trained otherwise) as positive, as published.
        ap_fake: With fakes as positives, as elsewhere in this project.
        acc: Share decided rightly.
        n: Number of images, or of patches.
    """

    average: str
    ap_class_1: float
    ap_fake: float
    acc: float
    n: int


class PatchEvaluation(Analysis[PatchTest]):
    """Scores of images by the averages of their patches' scores."""

    name = "patch_test"

    def __init__(self, subject: Subject, options: PatchTest, trained: Trained) -> None:
        super().__init__(subject, options)
        self.trained = trained
        if options.visualize and not trained.is_patch:
            raise UserError(
                f"--visualize: {trained.network} classifies whole images and has no heat maps: leave it out"
            )
        if trained.is_patch and not trained.load_size:
            check_sizes(Geometries(subject.detector.model), self.images, subject.reading)

    @property
    def folder(self) -> Path:
        """Where the published code writes."""
        return result_folder(self.trained, self.subject, self.options)

    @property
    def averages(self) -> tuple[str, ...]:
        """Scores of an image: three of a classifier of patches, or one."""
        return AVERAGES if self.trained.is_patch else (FULL,)

    @property
    def outputs(self) -> Sequence[Path]:
        named = (*self.averages, PATCH) if self.trained.is_patch else self.averages
        tables = ("scores.csv", "summary.csv", "metrics.csv")
        return [*(self.folder / name for name in tables), *(self.folder / f"{FILES[name]}.npz" for name in named)]

    def inputs(self) -> dict[str, str]:
        return {}

    def facts(self) -> dict[str, object]:
        options = self.options
        vis = {"average_mode": options.average_mode, "topn": options.topn} if options.visualize else {}
        return {"bootstrap": options.bootstrap, "fake_class": self.trained.fake_class, **vis}

    def collector(self, forward: SharedForward, images: ImageSet) -> MapCollector:
        return MapCollector(forward, images, self.trained.fake_class)

    def write(self, collector: MapCollector, report: PassReport) -> dict[str, object]:
        seen = np.flatnonzero(collector.seen).tolist()
        items = [collector.images.items[position] for position in seen]
        labels = np.array([item.label for item in items])
        first_class = collector.values[seen][:, -len(self.averages) :]
        p_fake = first_class if self.trained.fake_class == 1 else 1 - first_class
        checked(labels, p_fake[:, 0])
        columns = {name: p_fake[:, place] for place, name in enumerate(self.averages)}
        classes = np.where(labels == 1, self.trained.fake_class, 1 - self.trained.fake_class)
        samples = {name: (classes, first_class[:, place]) for place, name in enumerate(self.averages)}
        if self.trained.is_patch:
            maps = [collector.maps[position].ravel() for position in seen]
            samples[PATCH] = np.repeat(classes, [len(part) for part in maps]), _sigmoid(np.concatenate(maps))
        rows = []
        for name, (truth, scores) in samples.items():
            metrics = ClassMetrics.of(truth, scores)
            metrics.write(self.folder / f"{FILES[name]}.npz")
            fakes = metrics.ap if self.trained.fake_class == 1 else ClassMetrics.of(1 - truth, 1 - scores).ap
            rows.append(MetricRow(name, metrics.ap, fakes, metrics.acc, metrics.n))
        summary = summarise_columns(labels, columns, {}, None, draws=self.options.bootstrap, seed=self.subject.run.seed)
        if self.options.visualize and self.options.average_mode:
            mode = AVERAGES.index(self.options.average_mode)
            write_telling_images(
                self.folder / "vis",
                self.images,
                dict(zip(seen, first_class[:, mode].tolist(), strict=True)),
                lambda position: _sigmoid(collector.maps[position]),
                self.trained.fake_class,
                self.options.topn,
            )
        Scores(tuple(item.name for item in items), labels, columns).write(self.folder / "scores.csv")
        write_rows(self.folder / "summary.csv", summary)
        write_rows(self.folder / "metrics.csv", rows)
        return {}

    def draw(self) -> list[Path]:
        drawn = []
        for name in self.averages:
            curve = read_npz(self.folder / f"{FILES[name]}.npz")
            drawn += draw_precision_recall(curve, self.folder / FILES[name], name, self.trained.fake_class)
        if self.options.visualize:
            transform = self.subject.reading.cropping()
            drawn += draw_telling_images(self.folder / "vis", self.images, transform, self.trained.fake_class)
        return drawn

    @property
    def summary(self) -> Mapping[str, ScoreSummary]:
        """Metrics with intervals by average, from the file; fakes are the positives."""
        return {row.variant: row for row in read_rows(self.folder / "summary.csv", ScoreSummary, made_by=SCRIPT)}

    def numbers(self) -> dict[str, float]:
        rows = read_rows(self.folder / "metrics.csv", MetricRow, made_by=SCRIPT)
        return {
            f"{row.average}/{name}": getattr(row, name) for row in rows for name in ("ap_class_1", "ap_fake", "acc")
        }

    def messages(self) -> list[str]:
        rows = read_rows(self.folder / "metrics.csv", MetricRow, made_by=SCRIPT)
        summary = self.summary
        lines = [
            f"{self.gan_name}, {self.trained.name}: {rows[0].n} images; class {1 - self.trained.fake_class} is real"
        ]
        for row in rows:
            known = summary.get(row.average)
            bounds = f" [{known.ap_low:.4f}, {known.ap_high:.4f}]" if known else ""
            what = "AP of fakes" if row.average != PATCH else "AP of fakes, every patch a sample,"
            lines.append(
                f"{row.average}: {what} {row.ap_fake:.4f}{bounds}, of class 1 {row.ap_class_1:.4f}, acc {row.acc:.4f}"
            )
        return lines


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """float32, without a warning where exp() leaves its range."""
    return (0.5 * (1 + np.tanh(0.5 * logits))).astype(np.float32)


def test_patches(options: PatchTest, run: RunOptions) -> PatchEvaluation:
    """Evaluate a classifier on the images named.

    Raises:
        UserError: Anything a user can mend.
        Interrupted: After Ctrl-C or SIGTERM, with the state saved.
    """
    return run_tested(PatchEvaluation, options, run)
