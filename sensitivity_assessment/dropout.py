"""The sensitivity assessment of a detector on a generator: what is dropped, what is written, what is drawn."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectors.detector import Detector
from detectors.feature_maps import FeatureMapNetwork
from fmap_ranking.locate import find_ranking
from fmap_ranking.ranking import Ranking, read_ranking
from fmap_ranking.topk import default_topk
from images.sets import ImageSet
from passes.one_pass import PassReport
from sensitivity_assessment.figures import plot_sensitivity
from sensitivity_assessment.outputs import GeneratorResult, ResultFiles, write_sensitivity_table
from sensitivity_assessment.results import read_result, write_result
from sensitivity_assessment.scores import Scores
from sensitivity_assessment.variants import BASELINE, Variants, make_variants
from utils.files import sha256_file, sha256_text, write_csv

EXPERIMENT = "transfer"
MADE_BY = "src/transfer_sensitivity_analysis.py"


@dataclass(frozen=True)
class Choice:
    """The ranking read for a generator, and the maps that its variants drop."""

    path: Path
    ranking: Ranking
    k: int
    variants: Variants

    def notes(self) -> list[str]:
        """What to know before the numbers: layers that are dropped whole, and layer-matched draws that lack maps."""
        sizes = Counter(fmap.layer for fmap in self.ranking.maps)
        top = Counter(fmap.layer for fmap in self.ranking.top_k(self.k))
        whole = [f"all {count} maps of {layer}" for layer, count in top.items() if count == sizes[layer]]
        draws: dict[tuple[tuple[str, int], ...], list[str]] = {}
        for column, missing in self.variants.shortfall.items():
            draws.setdefault(tuple(missing.items()), []).append(column)
        notes = [
            f"{', '.join(columns)}: fewer than k maps are dropped, these layers have no more outside the top k: "
            + ", ".join(f"{layer} {count}" for layer, count in missing)
            for missing, columns in draws.items()
        ]
        if whole:
            notes.insert(
                0,
                f"the top {self.k} hold {', '.join(whole)}: where nothing bypasses such a layer, dropping it blinds "
                "any detector, whatever its maps respond to",
            )
        return notes


def choose_maps(args: argparse.Namespace, arch: str, network: FeatureMapNetwork, gan_name: str) -> Choice:
    """Read the ranking that the shared arguments name, and choose the maps to drop.

    Raises:
        UserError: No ranking, one of another network, or k out of range.
    """
    path = find_ranking(arch, gan_name, args.blur_jpg, relevances=args.relevances, output_dir=args.output_dir)
    ranking = read_ranking(path, network.layers)
    k = args.topk or default_topk(arch, len(ranking))
    variants = make_variants(ranking, k, seed=args.seed, draws=args.draws, published=args.compat == "published")
    return Choice(path, ranking, k, variants)


def dropout_origin(
    args: argparse.Namespace, files: ResultFiles, image_set: ImageSet, detector: Detector, choice: Choice
) -> tuple[dict[str, str], dict[str, object]]:
    """Digests of what goes into the scores, and their settings, as their provenance has them."""
    inputs = {"weights": detector.sha256, "images": image_set.digest(), "ranking": sha256_file(choice.path)}
    facts: dict[str, object] = {
        "arch": detector.arch,
        "compat": args.compat,
        "crop": args.crop,
        "draws": args.draws,
        "gan_name": files.gan_name,
        "precision": args.precision,
        "topk": choice.k,
    }
    return inputs, facts


def write_dropout(
    args: argparse.Namespace,
    files: ResultFiles,
    scores: Scores,
    image_set: ImageSet,
    detector: Detector,
    choice: Choice,
    report: PassReport,
    *,
    calibration: tuple[str, Scores] | None = None,
) -> GeneratorResult:
    """Write scores, summary, the dropped maps, and provenance; the result as tables and figures read it.

    Raises:
        UserError: One class is empty.
    """
    inputs, facts = dropout_origin(args, files, image_set, detector, choice)
    if calibration is not None:
        inputs["calibration"] = sha256_text(calibration[1].paths)
    record = {
        "device": detector.device,
        "inputs": inputs,
        "images": report.images,
        "ranking": choice.path,
        "skipped": [[entry.item.name, entry.reason] for entry in report.skipped],
        "shortfall": choice.variants.shortfall,
        **facts,
    }
    dropped = [(column, fmap.key) for column, maps in choice.variants.maps.items() for fmap in maps]
    write_csv(files.maps, ("variant", "key"), dropped)
    write_result(
        files,
        scores,
        chosen_on=BASELINE,
        draws=choice.variants.draws,
        calibration=calibration,
        published=args.compat == "published",
        seed=args.seed,
        record=record,
    )
    return read_result(files, made_by=MADE_BY)


def report_dropout(
    root: Path, arch: str, tag: str, choice: Choice, results: Sequence[GeneratorResult], compat: str
) -> list[Path]:
    """Table (CSV, Markdown) and figure (PNG, PDF) over the generators; the files written."""
    stem = ResultFiles(root, EXPERIMENT, arch, results[0].gan_name, tag).table
    published = compat == "published"
    table = write_sensitivity_table(stem, arch, tag, choice.k, results, ranking=choice.path.name, published=published)
    title = f"{arch}, blur_jpg {tag}: {choice.k} of {len(choice.ranking):,} feature maps dropped"
    return [*table, *plot_sensitivity(results, stem, title)]
