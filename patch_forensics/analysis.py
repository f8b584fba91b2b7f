"""How well a patch classifier tells real from fake, and where: metrics of its averages, heat maps of telling images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.special import expit

from evaluation.metrics import checked
from evaluation.scores import Scores
from evaluation.summary import summarise_columns
from images.sets import ImageSet
from passes.analysis import Subject
from passes.one_pass import PassReport
from passes.shared_forward import SharedForward
from patch_forensics.averages import AVERAGES, FILES, FULL, PATCH, ClassMetrics, MapCollector
from patch_forensics.figures import draw_precision_recall
from patch_forensics.geometry import check_sizes, geometries
from patch_forensics.options import PatchTest
from patch_forensics.trained import OfTrained, run_tested
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
        ap_low, ap_high: Its 95 % interval; NaN of `patch`.
        acc: Share decided rightly.
        n: Number of images, or of patches.
    """

    average: str
    ap_class_1: float
    ap_fake: float
    ap_low: float
    ap_high: float
    acc: float
    n: int


class PatchEvaluation(OfTrained[PatchTest]):
    """Scores of images by the averages of their patches' scores."""

    name = "patch_test"
    computation = 2

    def __init__(self, subject: Subject, options: PatchTest) -> None:
        super().__init__(subject, options)
        trained = self.trained
        if options.visualize and not trained.is_patch:
            raise UserError(
                f"--visualize: {trained.network} classifies whole images and has no heat maps: leave it out"
            )
        if trained.is_patch and not trained.load_size:
            check_sizes(geometries(subject.detector.model), self.images, subject.reading)

    @property
    def averages(self) -> tuple[str, ...]:
        """Scores of an image: three of a classifier of patches, or one."""
        return AVERAGES if self.trained.is_patch else (FULL,)

    @property
    def outputs(self) -> Sequence[Path]:
        named = (*self.averages, PATCH) if self.trained.is_patch else self.averages
        tables = ("scores.csv", "summary.csv", "metrics.csv")
        return [*(self.folder / name for name in tables), *(self.folder / f"{FILES[name]}.npz" for name in named)]

    def facts(self) -> dict[str, object]:
        options = self.options
        vis = {"average_mode": options.average_mode, "topn": options.topn} if options.visualize else {}
        return {**super().facts(), "bootstrap": options.bootstrap, **vis}

    def collector(self, forward: SharedForward, images: ImageSet) -> MapCollector:
        return MapCollector(forward, images, self.trained.fake_class)

    def write(self, collector: MapCollector, report: PassReport) -> dict[str, object]:
        seen = np.flatnonzero(collector.seen).tolist()
        items = [collector.images.items[position] for position in seen]
        labels = np.array([item.label for item in items])
        first_class = collector.values[seen][:, -len(self.averages) :]
        p_fake = first_class if self.trained.fake_class == 1 else 1 - first_class
        checked(labels, p_fake[:, 0])
        columns = {name: p_fake[:, index] for index, name in enumerate(self.averages)}
        classes = np.where(labels == 1, self.trained.fake_class, 1 - self.trained.fake_class)
        samples = {name: (classes, first_class[:, index]) for index, name in enumerate(self.averages)}
        if self.trained.is_patch:
            maps = [collector.maps[position].ravel() for position in seen]
            of_patches = np.repeat(classes, [len(part) for part in maps])
            samples[PATCH] = of_patches, expit(np.concatenate(maps), dtype=np.float64)
        summary = summarise_columns(labels, columns, {}, None, draws=self.options.bootstrap, seed=self.subject.run.seed)
        bounds = {row.variant: (row.ap_low, row.ap_high) for row in summary}
        rows = []
        for name, (truth, scores) in samples.items():
            metrics = ClassMetrics.of(truth, scores)
            metrics.write(self.folder / f"{FILES[name]}.npz")
            fakes = metrics.ap if self.trained.fake_class == 1 else ClassMetrics.of(1 - truth, 1 - scores).ap
            low, high = bounds.get(name, (math.nan, math.nan))
            rows.append(MetricRow(name, metrics.ap, fakes, low, high, metrics.acc, metrics.n))
        if self.options.visualize and self.options.average_mode:
            mode = AVERAGES.index(self.options.average_mode)
            write_telling_images(
                self.folder / "vis",
                self.images,
                dict(zip(seen, first_class[:, mode].tolist(), strict=True)),
                lambda position: expit(collector.maps[position]),
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

    def rows(self) -> list[MetricRow]:
        """What was found, from the file."""
        return read_rows(self.folder / "metrics.csv", MetricRow, made_by=SCRIPT)

    def numbers(self) -> dict[str, float]:
        shown = ("ap_class_1", "ap_fake", "acc")
        return {f"{row.average}/{name}": getattr(row, name) for row in self.rows() for name in shown}

    def messages(self) -> list[str]:
        rows = self.rows()
        lines = [
            f"{self.gan_name}, {self.trained.name}: {rows[0].n} images; class {1 - self.trained.fake_class} is real"
        ]
        for row in rows:
            bounds = "" if math.isnan(row.ap_low) else f" [{row.ap_low:.4f}, {row.ap_high:.4f}]"
            what = "AP of fakes" if row.average != PATCH else "AP of fakes, every patch a sample,"
            lines.append(
                f"{row.average}: {what} {row.ap_fake:.4f}{bounds}, of class 1 {row.ap_class_1:.4f}, acc {row.acc:.4f}"
            )
        return lines


evaluate_patches = partial(run_tested, PatchEvaluation)
