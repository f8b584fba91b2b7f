"""The ranking of one image set, from shared arguments to files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detectors.detector import Detector
from fmap_ranking.collector import Confidence, Keep, RelevanceCollector, SampleCounts
from fmap_ranking.outputs import RankingFiles, draw_rankings, write_rankings
from images.sets import ImageSet
from lrp import Explainer
from passes.experiments import conditions, show_images
from passes.one_pass import PassState, discard_state
from passes.processes import Ranks
from utils.errors import UserError
from utils.files import sha256_file


@dataclass(frozen=True)
class RankedImages:
    """What came of a ranking: the labels it was made for, and how many images of each label counted."""

    labels: Sequence[str]
    counts: Mapping[str, SampleCounts]


def ranking_origin(
    args: argparse.Namespace, gan_name: str, image_set: ImageSet, detector: Detector, confidence: Confidence
) -> tuple[dict[str, str], dict[str, object]]:
    """Digests of what goes into a ranking, and its settings, as its provenance has them."""
    inputs = {"weights": detector.sha256, "images": image_set.digest()}
    if args.compat_se is not None:
        inputs["squeeze_excite"] = sha256_file(args.compat_se)
    facts: dict[str, object] = {
        "arch": detector.arch,
        "bsize": args.bsize,
        "compat": args.compat,
        "crop": args.crop,
        "fake_confidence": confidence.fake,
        "gan_name": gan_name,
        "precision": args.precision,
        "real_confidence": confidence.real,
        "rule": args.rule,
        "save_pt_files": args.save_pt_files,
    }
    return inputs, facts


def rank_images(
    args: argparse.Namespace,
    files: RankingFiles,
    image_set: ImageSet,
    detector: Detector,
    explainer: Explainer,
    confidence: Confidence,
    topk: int,
    ranks: Ranks,
    keep: Keep | None = None,
) -> RankedImages | None:
    """Rank by FF-RS in one pass, write the files and say what was used; None on all ranks but the first.

    Args:
        args: Shared arguments, with `labels` and `figures`.
        files: Where to.
        image_set: The images.
        detector, explainer: The detector, and its explainer.
        confidence: Which images count.
        topk: For the summary by layer and the figures.
        ranks: This process among others.
        keep: Called with the relevance of every image.

    Raises:
        UserError: No image is classified correctly with enough confidence.
    """
    collector = RelevanceCollector(explainer, image_set, confidence, keep, detector.head)
    inputs, facts = ranking_origin(args, files.gan_name, image_set, detector, confidence)
    state = PassState(files.state, conditions(args, inputs, facts), args.resume)
    report = show_images(
        args, image_set, [collector], detector, state=state, ranks=ranks, description=f"ranking {files.gan_name}"
    )
    if not ranks.is_first:
        discard_state(state, ranks)
        return None
    counts = collector.counts()
    labels = [label for label in args.labels if counts[label].used]
    for label in args.labels:
        sys.stdout.write(f"{files.gan_name}: {_counted(label, counts[label], confidence)}\n")
    if not labels:
        discard_state(state)
        raise UserError(
            f"{files.gan_name}: no image is classified correctly with enough confidence, so there is nothing to rank: "
            "check the checkpoint, or relax --fake_confidence and --real_confidence"
        )
    rankings = write_rankings(
        files,
        collector,
        labels,
        topk,
        seed=args.seed,
        device=detector.device,
        inputs=inputs,
        skipped=[[entry.item.name, entry.reason] for entry in report.skipped],
        processes=ranks.world_size,
        **facts,
    )
    if args.figures:
        draw_rankings(files, labels, topk, dict(explainer.layers))
    discard_state(state, ranks)
    for label, ranking in rankings.items():
        first = ranking.maps[0]
        sys.stdout.write(
            f"{files.ranking(label)}: {len(ranking):,} maps, first {first.key} with omega {ranking.values[0]:.4f}\n"
        )
    return RankedImages(labels, counts)


def _counted(label: str, counts: SampleCounts, confidence: Confidence) -> str:
    rule = f"p(fake) >= {confidence.fake:g}" if label == "fake" else f"p(fake) <= {confidence.real:g}"
    return (
        f"{counts.used} of {counts.images} {label} images used "
        f"({counts.correct} classified correctly; used are those with {rule})"
    )
