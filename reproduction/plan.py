"""The whole plan: rankings, one pass over each generator for all analyses of all detectors, patches, the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from activation_histograms.analysis import MedianTests
from activation_histograms.options import MedianTestOptions
from attribution.lrp_heatmaps import LrpHeatMaps
from attribution.options import LrpOptions
from detectors.detector import Detector, load_detector
from evaluation.published import generators
from fmap_ranking.analysis import RankFeatureMaps
from fmap_ranking.options import RankingChoice, RankingOptions
from fmap_ranking.ranking import PAPER_GENERATOR, find_ranking
from images.choice import ImageChoice, Reading
from images.finding import find_images
from images.sets import FAKE, REAL, ImageSet, find_image_pair
from passes.analysis import Subject
from passes.options import RunOptions
from passes.processes import Ranks, process_group
from passes.running import AnyAnalysis, run_analyses, tracked, warned
from patch_extraction.analyses import ActivationRankings, Patches
from patch_extraction.options import MapChoice, PatchOptions
from reproduction.options import Detectors, Reproduction, by_architecture
from reproduction.page import write_report
from reproduction.summary import Study, write_summary
from sensitivity_assessment.colour import Colour
from sensitivity_assessment.options import ColourOptions, SensitivityOptions
from sensitivity_assessment.sensitivity import Sensitivity
from utils.cli import announce, say
from utils.errors import UserError
from utils.figures import figure_formats
from utils.files import PROJECT_ROOT
from utils.layout import Layout
from utils.provenance import read_record
from utils.settings import plain, positive
from utils.tracking import Tracker

EXAMPLES = "examples"
_EXAMPLE_MAPS = 3
_EXAMPLE_SHIFTS = 4  # evens out most of the grid of strided convolutions


def reproduce(
    detectors: Detectors, images: ImageChoice, reading: Reading, options: Reproduction, run: RunOptions
) -> Path | None:
    """Do all that is not done yet, and write the report; its path, or None with `only` and beside the first process.

    Raises:
        UserError: Something a user can mend.
        Interrupted: With the state saved; the same call goes on.
    """
    if run.part is not None:
        raise UserError("--part divides one step among jobs, and the reproduction has many: give it to each step")
    if options.report_only:
        return _report(options, run)
    with figure_formats("png", *(["pdf"] if options.pdf else [])), process_group() as ranks:
        settings = plain(detectors, images, reading, options, run)
        # Everything is looked for before anything is computed.
        sets = warned(_image_sets(images, options), ranks)
        choices = detectors.choices()
        topk = by_architecture("--topk", options.topk, detectors.names(), positive)
        rankings = by_architecture("--relevances", options.relevances, detectors.names(), Path)
        loaded = [load_detector(choice) for choice in choices]
        plan = _Plan(sets, images, reading, options, run, settings, detectors.blur_jpg, ranks)
        announce(
            f"{len(loaded)} x {len(sets)} (detectors x generators): {', '.join(d.arch for d in loaded)} on "
            f"{', '.join(sets)}",
            ranks.is_first,
        )
        with tracked(run, "reproduce", settings, ranks) as tracker:
            studies = [
                plan.study(detector, topk.get(detector.arch), rankings.get(detector.arch), tracker)
                for detector in loaded
            ]
            plan.run([entry for study in studies for group in study.analyses.values() for entry in group], tracker)
            plan.run([study.examples for study in studies if study.examples], tracker)
            if "patches" in options.steps:
                plan.run([entry for study in studies for entry in plan.patches(study)], tracker)
        if options.only or not ranks.is_first:
            return None
        for path in write_summary(run.output_dir, studies, sets, settings):
            announce(str(path))
        return _report(options, run)


def _report(options: Reproduction, run: RunOptions) -> Path:
    path = write_report(run.output_dir, single_file=options.single_file)
    say(f"report: {path}")
    return path


@dataclass(frozen=True)
class _Plan:
    sets: Mapping[str, ImageSet]
    images: ImageChoice
    reading: Reading
    options: Reproduction
    run_options: RunOptions
    settings: Mapping[str, Any]
    tag: str
    ranks: Ranks

    def run(self, analyses: Sequence[AnyAnalysis], tracker: Tracker) -> None:
        """In as few passes as possible; what an interrupted run has saved is gone on with."""
        if analyses:
            run_analyses(analyses, ranks=self.ranks, tracker=tracker, job="reproduce", always_resume=True)

    def study(self, detector: Detector, k: int | None, named: Path | None, tracker: Tracker) -> Study:
        """The detector's ranking, found or computed, and its analyses."""
        options = self.options
        choice, origin = RankingChoice(k, named), "named with --relevances"
        if set(options.steps) != {"colour"} and named is None:
            path, origin = self._ranking(detector, k, tracker)
            choice = RankingChoice(k, path)
        analyses = {name: self._analyses(self._subject(detector, name, s), choice) for name, s in self.sets.items()}
        examples = self._examples(detector) if options.examples and not options.only else None
        return Study(detector, choice, origin, analyses, examples)

    def patches(self, study: Study) -> list[Patches]:
        """The patches of every generator, whose images the activation rankings name."""
        return [
            Patches(
                self._subject(study.detector, name, image_set),
                PatchOptions(
                    topk=study.choice.topk,
                    relevances=study.choice.relevances,
                    num_instances=self.options.patches,
                    rule=self.options.rule,
                    compat_se=self.options.compat_se,
                    dataset_dir=image_set.root,
                    maps_drawn=self.options.maps_drawn,
                ),
            )
            for name, image_set in self.sets.items()
        ]

    def _examples(self, detector: Detector) -> LrpHeatMaps:
        """Relevance of a few reals and fakes of every generator, as far as possible of different photographs."""
        options, items = self.options, []
        count = options.examples * len(self.sets)
        for index, (name, image_set) in enumerate(self.sets.items()):
            for there in (image_set.with_label(label).items for label in (REAL, FAKE)):
                chosen = {step * len(there) // count for step in range(index, count, len(self.sets)) if there}
                items += [replace(there[at], generator=name) for at in sorted(chosen)]
        if len({item.name for item in items}) < len(items):
            items = [replace(item, name=f"{item.generator}/{item.name}") for item in items]
        images = replace(next(iter(self.sets.values())), items=tuple(items))
        lrp = LrpOptions(rule=options.rule, compat_se=options.compat_se, shifts=_EXAMPLE_SHIFTS, maps=_EXAMPLE_MAPS)
        return LrpHeatMaps(self._subject(detector, EXAMPLES, images), lrp)

    def _subject(self, detector: Detector, name: str, image_set: ImageSet) -> Subject:
        # Analyses are about whole images; --crop is about those that a ranking is computed on.
        reading = replace(self.reading, crop="none")
        return Subject(detector, self.tag, name, image_set, reading, self.run_options, self.settings)

    def _analyses(self, subject: Subject, choice: RankingChoice) -> list[AnyAnalysis]:
        options, steps = self.options, self.options.steps
        shared: dict[str, Any] = {"calibrate_on": options.calibrate_on, "bootstrap": options.bootstrap}
        ranked: dict[str, Any] = {"topk": choice.topk, "relevances": choice.relevances}
        analyses: list[AnyAnalysis] = []
        if "colour" in steps:
            analyses.append(Colour(subject, ColourOptions(**shared)))
        if "sensitivity" in steps:
            analyses.append(Sensitivity(subject, SensitivityOptions(**shared, **ranked, draws=options.draws)))
        if "patches" in steps:
            analyses.append(ActivationRankings(subject, MapChoice(**ranked)))
        if "median_test" in steps:
            analyses.append(MedianTests(subject, MedianTestOptions(**ranked, maps_drawn=options.maps_drawn)))
        return analyses

    def _ranking(self, detector: Detector, k: int | None, tracker: Tracker) -> tuple[Path, str]:
        """The ranking of this detector on the images to rank on: one that is there, or a new one."""
        options, name, image_set = self.options, *self._images_to_rank_on()
        subject = replace(self._subject(detector, name, image_set), reading=self.reading)
        origin = f"FF-RS on the fakes of {name}"
        shipped = Layout(PROJECT_ROOT, detector.arch, self.tag).ranking(name, "fake")
        weights = read_record(shipped).get("inputs", {}).get("weights", detector.sha256)
        ranking = RankFeatureMaps(
            subject,
            RankingOptions(
                rule=options.rule,
                compat_se=options.compat_se,
                fake_confidence=options.fake_confidence,
                real_confidence=options.real_confidence,
                topk=k,
            ),
        )
        # A set named with --rank_on is ranked here.
        is_usable = options.rank_on is None and shipped.is_file() and weights == detector.sha256
        if is_usable and not ranking.is_done():
            ranked = find_ranking(subject, RankingChoice(k, shipped))
            return shipped, f"{origin}, read from fmap_relevances/" + (f"; {ranked.warning}" if ranked.warning else "")
        self.run([ranking], tracker)
        path = subject.layout.ranking(name, "fake")
        if not path.is_file():
            raise UserError(
                f"{name}: no fake is recognised with p(fake) of at least {options.fake_confidence:g}, so there is no "
                "ranking for fakes: check the checkpoint, relax --fake_confidence, give other images with --rank_on, "
                "or a ranking with --relevances"
            )
        return path, origin

    def _images_to_rank_on(self) -> tuple[str, ImageSet]:
        name, folder = self.options.rank_on, self.images.dataset_dir
        if name is None:
            there = folder is not None and (folder / PAPER_GENERATOR).is_dir()
            name = PAPER_GENERATOR if there else next(iter(self.sets))
        if name in self.sets:
            return name, self.sets[name]
        if folder is None:
            raise UserError(f"--rank_on {name}: the only images are {', '.join(self.sets)}: leave the flag out")
        return name, find_images(replace(self.images, gan_name=(name,)))[name]


def _image_sets(images: ImageChoice, options: Reproduction) -> dict[str, ImageSet]:
    """Image sets by generator.

    Raises:
        UserError: Neither a data set nor two folders are named, or images are missing.
    """
    if options.real is not None and options.fake is not None:
        if images.dataset_dir is not None or images.gan_name:
            raise UserError("--real and --fake stand for a data set: leave out --dataset_dir and --gan_name")
        limits = [images.num_instances if number is None else number for number in (images.num_real, images.num_fake)]
        pair = find_image_pair(options.real, options.fake, options.name, num_real=limits[0], num_fake=limits[1])
        return {options.name: pair}
    if images.dataset_dir is None and images.images_from is None:
        raise UserError("no images: give --real DIR --fake DIR, or --dataset_dir DIR with folders of generators")
    if images.gan_name or images.dataset_dir is None:
        return find_images(images)
    root = images.dataset_dir
    names = tuple(name for name in generators() if (root / name).is_dir())
    if not names:
        raise UserError(
            f"none of the paper's generators ({', '.join(generators())}) in {root}: "
            "check --dataset_dir, or name folders with --gan_name"
        )
    return find_images(replace(images, gan_name=names))
