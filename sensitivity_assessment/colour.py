"""The colour ablation of detectors on generators, as two scripts run it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from detectors.detector import Detector, load_detector
from detectors.feature_maps import FeatureMapNetwork
from images.sets import ImageSet
from passes.experiments import conditions, show_images
from passes.one_pass import PassReport, PassState, discard_state
from passes.processes import Ranks
from passes.shared_forward import SharedForward
from sensitivity_assessment.outputs import GeneratorResult, ResultFiles, write_colour_table
from sensitivity_assessment.results import is_current, read_result, write_result
from sensitivity_assessment.scores import RGB, Scores, colour_scores, read_scores
from sensitivity_assessment.whiskers import plot_whiskers
from utils.cli import (
    add_data_arguments,
    add_detector_arguments,
    add_loading_arguments,
    add_run_arguments,
    parse_architecture,
    parse_name,
)
from utils.errors import UserError
from utils.files import safe_join

EXPERIMENT = "grayscale-transfer"
MADE_BY = "src/grayscale_sensitivity_analysis.py"


@dataclass(frozen=True)
class ColourDetector:
    """A detector under test and what its files and panels are called."""

    name: str
    detector: Detector
    tag: str

    def files(self, root: Path, gan_name: str) -> ResultFiles:
        """Where the results on a generator lie."""
        return ResultFiles(root, EXPERIMENT, self.detector.arch, gan_name, self.tag)


def add_colour_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all arguments of the two scripts."""
    add_detector_arguments(parser)
    group = parser.add_argument_group("second detector, side by side (a colour-robust one, for instance)")
    group.add_argument("--second_weights", type=Path, metavar="FILE", help="its checkpoint; absent: one detector only")
    group.add_argument("--second_arch", type=parse_architecture, metavar="ARCH", help="absent: that of --arch")
    group.add_argument(
        "--second_tag", type=parse_name, default="cr", metavar="TAG", help="stands for --blur_jpg in its file names"
    )
    add_data_arguments(parser)
    add_loading_arguments(parser)
    add_run_arguments(parser)


def load_detectors(args: argparse.Namespace, device: torch.device) -> list[ColourDetector]:
    """The detector of the shared arguments, and the second one if there is one.

    Raises:
        UserError: A checkpoint cannot be used, or the files of the two would be the same.
    """
    first = load_detector(args.arch, args.weights, device, blur_jpg=args.blur_jpg, precision=args.precision)
    detectors = [ColourDetector(f"{first.arch}, blur_jpg {args.blur_jpg}", first, args.blur_jpg)]
    if args.second_weights is not None:
        second = load_detector(args.second_arch or args.arch, args.second_weights, device, precision=args.precision)
        if (second.arch, args.second_tag) == (first.arch, args.blur_jpg):
            raise UserError(f"--second_tag {args.second_tag} is that of the first detector: give it one of its own")
        detectors.append(ColourDetector(f"{second.arch}, {args.second_tag}", second, args.second_tag))
    return detectors


def assess_colour(
    args: argparse.Namespace, subject: ColourDetector, image_sets: Mapping[str, ImageSet], ranks: Ranks, *, reuse: bool
) -> list[GeneratorResult]:
    """Score every generator on RGB and greyscale in one pass and write the results; empty on all ranks but the first.

    Args:
        args: Shared arguments.
        subject: The detector.
        image_sets: By generator.
        ranks: This process among others.
        reuse: Take files that are there and come from the same weights, images and settings.
    """
    detector, published = subject.detector, args.compat == "published"
    network: FeatureMapNetwork | None = None
    results = []
    for name, image_set in image_sets.items():
        files = subject.files(args.output_dir, name)
        inputs, facts = colour_origin(args, files, image_set, detector)
        if not (reuse and is_current(files, inputs, facts)):
            network = network or detector.feature_maps()
            collector = colour_scores(SharedForward(network), image_set, published=published)
            state = PassState(files.state(), conditions(args, inputs, facts), args.resume)
            report = show_images(
                args, image_set, [collector], detector, state=state, ranks=ranks, description=f"greyscale {name}"
            )
            if ranks.is_first:
                write_colour(args, files, collector.result(), image_set, detector, report)
            discard_state(state, ranks)
        if ranks.is_first:
            results.append(read_result(files, made_by=MADE_BY))
    return results


def colour_origin(
    args: argparse.Namespace, files: ResultFiles, image_set: ImageSet, detector: Detector
) -> tuple[dict[str, str], dict[str, object]]:
    """Digests of what goes into the scores, and their settings, as their provenance has them."""
    inputs = {"weights": detector.sha256, "images": image_set.digest()}
    facts: dict[str, object] = {
        "arch": detector.arch,
        "compat": args.compat,
        "crop": args.crop,
        "gan_name": files.gan_name,
        "precision": args.precision,
    }
    return inputs, facts


def write_colour(
    args: argparse.Namespace,
    files: ResultFiles,
    scores: Scores,
    image_set: ImageSet,
    detector: Detector,
    report: PassReport,
) -> None:
    """Write scores, summary and provenance.

    Raises:
        UserError: One class is empty.
    """
    inputs, facts = colour_origin(args, files, image_set, detector)
    record = {
        "device": detector.device,
        "inputs": inputs,
        "images": report.images,
        "skipped": [[entry.item.name, entry.reason] for entry in report.skipped],
        **facts,
    }
    write_result(files, scores, chosen_on=RGB, published=args.compat == "published", seed=args.seed, record=record)


def write_colour_tables(
    args: argparse.Namespace, subjects: list[ColourDetector], results: list[list[GeneratorResult]]
) -> list[Path]:
    """The table over detectors and generators, CSV and Markdown."""
    named = {
        subject.name: (subject.detector.arch, subject.tag, found)
        for subject, found in zip(subjects, results, strict=True)
    }
    stem = subjects[0].files(args.output_dir, results[0][0].gan_name).table
    return write_colour_table(stem, named, published=args.compat == "published")


def draw_whiskers(args: argparse.Namespace, subjects: list[ColourDetector], gan_names: list[str]) -> list[Path]:
    """One figure for each generator, and one of all if there are several; drawn from the files.

    Raises:
        UserError: Scores are missing.
    """
    scores = {
        subject.name: {
            name: read_scores(subject.files(args.output_dir, name).scores, made_by=MADE_BY) for name in gan_names
        }
        for subject in subjects
    }
    first = subjects[0]
    folder = safe_join(args.output_dir, "whisker_plots", first.detector.arch)
    pictures = []
    for name in gan_names:
        one = {panel: {name: tables[name]} for panel, tables in scores.items()}
        pictures += plot_whiskers(one, safe_join(folder, first.tag, name), f"Colour ablation, {name}")
    if len(gan_names) > 1:
        pictures += plot_whiskers(scores, folder / first.tag, "Colour ablation")
    return pictures
