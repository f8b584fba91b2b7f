"""The whole plan: ranking, one pass for each detector and generator, patches, figures, tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path

from activation_histograms.run import count_shares, draw_histograms
from sensitivity_assessment.dropout import MADE_BY as DROPOUT_SCRIPT
from sensitivity_assessment.dropout import Choice, choose_maps, report_dropout
from sensitivity_assessment.results import read_result

from detectors.explaining import make_explainer
from detectors.feature_maps import FeatureMapNetwork
from images.sets import ImageSet
from passes.processes import Ranks
from patch_extraction.collages import draw_collages
from patch_extraction.files import PatchFiles
from patch_extraction.run import extract_patches, find_patches, patches_origin
from reproduction.ledger import Ledger
from reproduction.one_pass import COLOUR_STEP, MEDIAN_TEST, PATCHES, SENSITIVITY, STEPS, GeneratorFiles, GeneratorPass
from reproduction.ranking import RankingUsed, find_or_rank
from reproduction.settings import Subject
from sensitivity_assessment.colour import MADE_BY as COLOUR_SCRIPT
from sensitivity_assessment.colour import ColourDetector, draw_whiskers, write_colour_tables
from utils.figures import chosen_formats
from utils.files import is_made_from


class Progress:
    """Counts the steps of a run and says on standard error where it is.

    Args:
        total: Number of steps.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.finished = 0
        self.computed = 0

    def announce(self, what: str) -> None:
        """Say what is computed next."""
        self.computed += 1
        sys.stderr.write(f"[{self.finished + 1}/{self.total}] {what}\n")
        sys.stderr.flush()

    def finish(self) -> None:
        """A step is over, computed or found done."""
        self.finished += 1


class SubjectRun:
    """One detector on its way through the plan.

    Args:
        subject: The detector.
        image_sets: By generator.
        progress: Of the whole run.
        ledger: What has been drawn.
        steps: The steps of `STEPS` that are wanted; those that they need are done, too.
    """

    def __init__(
        self,
        subject: Subject,
        image_sets: Mapping[str, ImageSet],
        progress: Progress,
        ledger: Ledger,
        steps: Collection[str] = STEPS,
    ) -> None:
        self.subject, self.image_sets, self._steps = subject, image_sets, steps
        self._progress, self._ledger = progress, ledger
        self.ranking: RankingUsed | None = None
        self._choice: Choice | None = None

    @staticmethod
    def count(generators: int) -> int:
        """Number of steps of a detector: ranking, three for each generator, tables."""
        return 2 + 3 * generators

    def check(self) -> None:
        """Read the ranking if it is named, so that a mistake in it shows before anything is computed.

        Raises:
            UserError: No such ranking, one of another network, or k out of range.
        """
        if self.subject.args.relevances is not None:
            self._choose()

    def run(self) -> None:
        """Do all that is not done yet.

        Raises:
            UserError: Something a user can mend.
            Interrupted: With the state saved.
        """
        if set(self._steps) != {COLOUR_STEP}:
            self.ranking = find_or_rank(self.subject, self.image_sets, self._announce)
            self.subject.args.relevances = self.ranking.path
            self._choose()
        self._progress.finish()
        for name, image_set in self.image_sets.items():
            step = GeneratorPass(self.subject, self._choice, name, image_set, self._steps)
            if not step.is_done:
                self._announce(f"one pass over {len(image_set)} images of {name}")
                step.run(lambda: self._network)
            self._progress.finish()
            if PATCHES in self._steps:
                self._cut_patches(name, image_set)
            self._progress.finish()
            self._draw_generator(name)
            self._progress.finish()
        self._draw_tables()
        self._progress.finish()

    @property
    def choice(self) -> Choice:
        """The ranking, and the maps that are dropped."""
        assert self._choice is not None
        return self._choice

    def _choose(self) -> None:
        args = self.subject.args
        self._choice = choose_maps(args, self.subject.arch, self._network, next(iter(self.image_sets)))
        args.topk = self._choice.k

    @cached_property
    def _network(self) -> FeatureMapNetwork:
        return self.subject.detector.feature_maps()

    def _announce(self, what: str) -> None:
        self._progress.announce(f"{self.subject.arch}: {what}")

    def _cut_patches(self, name: str, image_set: ImageSet) -> None:
        detector = self.subject.detector
        own = {"dataset_dir": image_set.root, "num_instances": self.subject.args.patches}
        args = argparse.Namespace(**{**vars(self.subject.args), **own})
        selection, plan = find_patches(args, detector, name)
        inputs, facts = patches_origin(args, name, selection, detector)
        files = PatchFiles(args.output_dir, self.subject.arch, name)
        if not (
            is_made_from(files.index, inputs, {**facts, "maps": self.choice.k})
            and all(files.table(fmap).is_file() for fmap in selection.maps)
        ):
            self._announce(f"patches of {len(selection.maps)} feature maps from {len(plan.image_set)} fakes of {name}")
            extract_patches(args, name, selection, plan, detector, make_explainer(args, detector), Ranks())

    def _draw_generator(self, name: str) -> None:
        files = GeneratorFiles.of(self.subject, name)
        patches = PatchFiles(self.subject.args.output_dir, self.subject.arch, name)
        step = f"{self.subject.arch}_{self.subject.tag}/{name}"
        k = 0 if self._choice is None else self._choice.k
        most = min(self.subject.args.maps_drawn or k, k)

        def histograms() -> list[Path]:
            self._announce(f"histograms of {name}")
            return draw_histograms(files.tests, most=most)

        def collages() -> list[Path]:
            self._announce(f"collages of {name}")
            of_maps, pages = draw_collages(patches, self.subject.tag, most)
            return [*of_maps, *pages]

        if MEDIAN_TEST in self._steps:
            sources = [files.tests.activations, files.tests.tests]
            self._ledger.draw(f"{step}/histograms", sources, {"maps": most, "formats": chosen_formats()}, histograms)
        if PATCHES in self._steps:
            tables = [patches.table(fmap) for fmap in self.choice.ranking.top_k(self.choice.k)]
            settings = {"tag": self.subject.tag, "maps": most, "formats": chosen_formats()}
            self._ledger.draw(f"{step}/collages", [patches.index, *tables], settings, collages)

    def _draw_tables(self) -> None:
        args, subject = self.subject.args, self.subject
        arch, tag, names = subject.arch, subject.tag, list(self.image_sets)
        files = [GeneratorFiles.of(subject, name) for name in names]

        def sensitivity() -> list[Path]:
            results = [read_result(entry.dropout, made_by=DROPOUT_SCRIPT) for entry in files]
            return report_dropout(args.output_dir, arch, tag, self.choice, results, args.compat)

        def colour() -> list[Path]:
            detector = ColourDetector(f"{arch}, blur_jpg {tag}", subject.detector, tag)
            results = [read_result(entry.colour, made_by=COLOUR_SCRIPT) for entry in files]
            return [*write_colour_tables(args, [detector], [results]), *draw_whiskers(args, [detector], names)]

        def shares() -> list[Path]:
            return count_shares([entry.tests for entry in files])[1]

        settings: dict[str, object] = {"generators": names, "compat": args.compat, "formats": chosen_formats()}
        if SENSITIVITY in self._steps:
            sources = [path for entry in files for path in (entry.dropout.scores, entry.dropout.summary)]
            own = {**settings, "k": self.choice.k, "ranking": self.choice.path.name}
            self._draw_table(SENSITIVITY, sources, own, sensitivity)
        if COLOUR_STEP in self._steps:
            sources = [path for entry in files for path in (entry.colour.scores, entry.colour.summary)]
            self._draw_table(COLOUR_STEP, sources, settings, colour)
        if MEDIAN_TEST in self._steps:
            self._draw_table(MEDIAN_TEST, [entry.tests.tests for entry in files], settings, shares)

    def _draw_table(
        self, step: str, sources: list[Path], settings: Mapping[str, object], make: Callable[[], list[Path]]
    ) -> None:
        def draw() -> list[Path]:
            self._announce(f"tables and figures over all generators: {step}")
            return make()

        self._ledger.draw(f"{self.subject.arch}_{self.subject.tag}/{step}", sources, settings, draw)
