"""One pass over a generator's images that feeds every analysis that is not done yet."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from activation_histograms.outputs import MedianTestFiles
from activation_histograms.run import median_test_origin, write_median_tests
from sensitivity_assessment.dropout import EXPERIMENT as DROPOUT
from sensitivity_assessment.dropout import Choice, dropout_origin, write_dropout
from sensitivity_assessment.outputs import ResultFiles
from sensitivity_assessment.results import is_current
from sensitivity_assessment.scores import colour_scores, dropout_scores

from activation_histograms.collector import ActivationPairCollector
from detectors.feature_maps import FeatureMapNetwork
from images.sets import ImageSet
from passes.experiments import conditions, show_images
from passes.one_pass import Collector, PassReport, PassState, discard_state
from passes.processes import Ranks
from passes.shared_forward import SharedForward
from patch_extraction.rankings import ActivationRankingFiles, ActivationRankings, Source, write_rankings
from reproduction.settings import Subject
from sensitivity_assessment.colour import EXPERIMENT as COLOUR
from sensitivity_assessment.colour import colour_origin, write_colour
from utils.files import is_made_from, safe_join, sha256_file, sha256_text

FAKE = 1
RANKING, SENSITIVITY, COLOUR_STEP, PATCHES, MEDIAN_TEST = "ranking", "sensitivity", "colour", "patches", "median_test"
STEPS = (RANKING, SENSITIVITY, COLOUR_STEP, PATCHES, MEDIAN_TEST)
HINT = "run the same command again to go on"


@dataclass(frozen=True)
class GeneratorFiles:
    """Where the results of a detector on a generator lie: where the single scripts have them."""

    dropout: ResultFiles
    colour: ResultFiles
    tests: MedianTestFiles
    rankings: ActivationRankingFiles

    @classmethod
    def of(cls, subject: Subject, gan_name: str) -> GeneratorFiles:
        """The files of a detector on a generator."""
        place = subject.args.output_dir, subject.arch, gan_name, subject.tag
        root, arch, name, tag = place
        return cls(
            ResultFiles(root, DROPOUT, arch, name, tag),
            ResultFiles(root, COLOUR, arch, name, tag),
            MedianTestFiles(*place),
            ActivationRankingFiles(*place),
        )


@dataclass(frozen=True)
class _Part:
    """An analysis: whether it is done, what it collects, and how its files are written."""

    name: str
    done: Callable[[], bool]
    collector: Callable[[FeatureMapNetwork, SharedForward], Collector]
    write: Callable[[Any, PassReport], None]


class GeneratorPass:
    """The pass of a detector over a generator.

    Args:
        subject: The detector.
        choice: Its ranking, and the maps that the variants drop; None if the colour ablation is all there is to do.
        gan_name: The generator.
        image_set: Its images.
        steps: The steps of `STEPS` that are wanted.
    """

    def __init__(
        self,
        subject: Subject,
        choice: Choice | None,
        gan_name: str,
        image_set: ImageSet,
        steps: Collection[str] = STEPS,
    ) -> None:
        self._subject, self._gan_name = subject, gan_name
        self._images, self._fakes = image_set, image_set.with_label(FAKE)
        self.files = GeneratorFiles.of(subject, gan_name)
        parts = [self._colour()] if COLOUR_STEP in steps else []
        if choice is not None and SENSITIVITY in steps:
            parts.append(self._dropout(choice))
        if choice is not None and (PATCHES in steps or MEDIAN_TEST in steps):
            parts.append(self._maps(choice))
        self._todo = [part for part in parts if not part.done()]
        self._ranking = "" if choice is None else f"{sha256_file(choice.path)} {choice.k}"

    @property
    def is_done(self) -> bool:
        """Whether all files are there and come from the same detector, ranking, images and settings."""
        return not self._todo

    def run(self, network: Callable[[], FeatureMapNetwork]) -> None:
        """Run what is missing, in one pass, and write its files.

        Args:
            network: Makes the network, or gives the one there is.

        Raises:
            UserError: An image cannot be decoded, or the detector's output is not a number.
            Interrupted: With the state saved.
        """
        args, detector = self._subject.args, self._subject.detector
        forward = SharedForward(network())
        collectors = [part.collector(network(), forward) for part in self._todo]
        inputs = {"weights": detector.sha256, "images": self._images.digest(), "ranking": self._ranking}
        facts = {
            "analyses": " ".join(part.name for part in self._todo),
            "compat": args.compat,
            "draws": args.draws,
            "precision": args.precision,
        }
        wanted = conditions(args, inputs, facts)
        # Named after its conditions: a run under others starts anew instead of being refused.
        folder = safe_join(args.output_dir, "reproduce", "states", f"{detector.arch}_{args.blur_jpg}", self._gan_name)
        name = sha256_text(f"{key}={value}" for key, value in sorted(wanted.items()))[:16]
        state = PassState(folder / f"{name}.npz", wanted, resume=True, hint=HINT)
        report = show_images(
            args,
            self._images,
            collectors,
            detector,
            state=state,
            ranks=Ranks(),
            description=f"{detector.arch} {self._gan_name}",
        )
        for part, collector in zip(self._todo, collectors, strict=True):
            part.write(collector, report)
        discard_state(state)
        self._todo = []

    def _dropout(self, choice: Choice) -> _Part:
        args, detector, files = self._subject.args, self._subject.detector, self.files.dropout
        published = args.compat == "published"

        def done() -> bool:
            inputs, facts = dropout_origin(args, files, self._images, detector, choice)
            return files.maps.is_file() and is_current(files, inputs, {**facts, "seed": args.seed})

        def write(collector: Any, report: PassReport) -> None:
            write_dropout(args, files, collector.result(), self._images, detector, choice, report)

        return _Part(
            "dropout",
            done,
            lambda network, _: dropout_scores(network, choice.variants, self._images, published=published),
            write,
        )

    def _colour(self) -> _Part:
        args, detector, files = self._subject.args, self._subject.detector, self.files.colour
        published = args.compat == "published"

        def done() -> bool:
            inputs, facts = colour_origin(args, files, self._images, detector)
            return is_current(files, inputs, {**facts, "seed": args.seed})

        def write(collector: Any, report: PassReport) -> None:
            write_colour(args, files, collector.result(), self._images, detector, report)

        return _Part(
            "colour", done, lambda _, forward: colour_scores(forward, self._images, published=published), write
        )

    def _maps(self, choice: Choice) -> _Part:
        """Median test and activation rankings: both are about the largest activations of the top maps on fakes."""
        args, detector = self._subject.args, self._subject.detector
        tests, rankings = self.files.tests, self.files.rankings
        maps = choice.ranking.top_k(choice.k)
        inputs, test_facts = median_test_origin(args, tests, self._fakes, detector, choice.path, len(maps))
        facts = {name: value for name, value in test_facts.items() if name != "topk"}
        ranking_facts: dict[str, Any] = {**facts, "keep": 0, "maps": len(maps)}

        def done() -> bool:
            return (
                tests.activations.is_file()
                and is_made_from(tests.tests, inputs, test_facts)
                and is_made_from(rankings.arrays, inputs, ranking_facts)
                and all(rankings.table(fmap).is_file() for fmap in maps)
            )

        def write(collector: Any, report: PassReport) -> None:
            pairs = collector.result()
            of_fakes = replace(report, skipped=[entry for entry in report.skipped if entry.item.label == FAKE])
            record = {"seed": args.seed, "device": detector.device, "inputs": inputs, "ranking": choice.path}
            write_median_tests(tests, pairs, of_fakes, {**record, **test_facts})
            source = Source(detector.sha256, str(self._images.root.resolve()), args.crop)
            write_rankings(
                rankings,
                ActivationRankings.of_all(maps, pairs.paths, pairs.rgb, source),
                **record,
                bsize=args.bsize,
                images=len(pairs.paths),
                skipped=[[entry.item.name, entry.reason] for entry in of_fakes.skipped],
                **ranking_facts,
            )

        return _Part("maps", done, lambda _, forward: ActivationPairCollector(forward, maps, self._images), write)
