"""The median test of a generator and the share over generators: what is written and drawn from which files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from activation_histograms.collector import ActivationPairs, read_activations
from activation_histograms.figures import plot_histogram, plot_overview, plot_shares
from activation_histograms.median_test import ColourShare, MedianTest, colour_share, median_tests
from activation_histograms.outputs import MedianTestFiles, write_shares
from detectors.detector import Detector
from images.sets import ImageSet
from passes.one_pass import PassReport
from utils.cli import progress
from utils.errors import UserError
from utils.files import sha256_file, write_provenance
from utils.tables import read_rows, write_rows

MADE_BY = "src/median_test_activation_histograms.py"
HISTOGRAMS = ("all", "overview", "none")


def median_test_origin(
    args: argparse.Namespace,
    files: MedianTestFiles,
    image_set: ImageSet,
    detector: Detector,
    ranking: Path,
    maps: int,
) -> tuple[dict[str, str], dict[str, object]]:
    """Digests of what goes into the tests, and their settings, as their provenance has them.

    Args:
        args: Shared arguments.
        files: Where the results go.
        image_set: The fakes.
        detector: The detector.
        ranking: Ranking file.
        maps: Number of its top maps that are tested.
    """
    inputs = {"weights": detector.sha256, "images": image_set.digest(), "ranking": sha256_file(ranking)}
    facts: dict[str, object] = {
        "arch": detector.arch,
        "crop": args.crop,
        "gan_name": files.gan_name,
        "precision": args.precision,
        "topk": maps,
    }
    return inputs, facts


def write_median_tests(
    files: MedianTestFiles, pairs: ActivationPairs, report: PassReport, record: Mapping[str, Any]
) -> str:
    """Write activations and tests with the provenance `record`; a sentence about them.

    Raises:
        UserError: There are no images.
    """
    try:
        tests = median_tests(pairs)
    except UserError as error:
        raise UserError(f"{files.gan_name}: {error}") from error
    skipped = [[entry.item.name, entry.reason] for entry in report.skipped]
    pairs.write(files.activations)
    write_rows(files.tests, tests)
    # Last, here and elsewhere: a table beside an older record is computed again, never the reverse.
    for path in (files.activations, files.tests):
        write_provenance(path, **record, images=len(pairs.paths), skipped=skipped)
    degenerate = sum(test.degenerate for test in tests)
    remark = f"; {degenerate} not testable, alike on all images" if degenerate else ""
    return f"{files.tests}: {len(tests)} maps, {len(pairs.paths)} fakes{remark}"


def draw_histograms(files: MedianTestFiles, which: str = "all", most: int | None = None) -> list[Path]:
    """Draw from the files written: the overview of the first maps, and one figure for each map with `which` "all".

    Args:
        files: Of a generator.
        which: `all`, `overview` or `none`.
        most: Figures of the first so many maps only.

    Raises:
        UserError: A file is missing or damaged.
    """
    if which == "none":
        return []
    pairs = read_activations(files.activations, made_by=MADE_BY)
    tests = read_rows(files.tests, MedianTest, made_by=MADE_BY)
    title = f"{files.arch}, blur_jpg {files.tag}, {len(pairs.paths)} fakes of {files.gan_name}"
    pictures = plot_overview(pairs, tests, files.overview, title)
    if which == "all":
        numbered = list(enumerate(tests[:most]))
        for place, test in progress(numbered, description="histograms", unit="map"):
            title = f"{test.feature_map_name}, {len(pairs.paths)} fakes of {files.gan_name}"
            pictures += plot_histogram(pairs, place, test, files.histogram(test.feature_map_name), title)
    return pictures


def count_shares(files: Sequence[MedianTestFiles], topk: int | None = None) -> tuple[list[ColourShare], list[Path]]:
    """Count the colour-conditional maps of each generator in its tests; write the table and draw the figure.

    Args:
        files: Of the generators, all of one detector.
        topk: Count the first so many maps only.

    Returns:
        The shares, and the files written: CSV, Markdown, PNG, PDF.

    Raises:
        UserError: No tests, or of fewer maps; names the command that makes them.
    """
    shares = []
    for entry in files:
        made_by = (
            f"python {MADE_BY} --arch {entry.arch} --blur_jpg {entry.tag} "
            f"--gan_name {entry.gan_name} --dataset_dir DIR --output_dir {entry.root}"
        )
        tests = read_rows(entry.tests, MedianTest, made_by=made_by)
        if topk is not None and topk > len(tests):
            raise UserError(
                f"--topk {topk} is more than the {len(tests)} maps of {entry.tests}: make it anew with {made_by}"
            )
        shares.append(colour_share(entry.gan_name, tests, topk))
    first = files[0]
    paths = write_shares(first.shares, first.arch, first.tag, shares)
    write_provenance(paths[0], inputs={entry.gan_name: sha256_file(entry.tests) for entry in files}, topk=topk)
    return shares, [*paths, *plot_shares(shares, first.shares, f"{first.arch}, blur_jpg {first.tag}")]
