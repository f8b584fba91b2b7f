"""Step 1: rank all feature maps of a detector by their forensic relevance (FF-RS)."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from fmap_ranking.collector import Confidence, RelevanceCollector
from fmap_ranking.outputs import RankingFiles, draw_rankings, write_rankings
from fmap_ranking.relevance_files import RelevanceFiles
from fmap_ranking.topk import default_topk
from lrp import Explainer
from utils.cli import (
    add_bool,
    add_data_arguments,
    add_detector_arguments,
    add_loading_arguments,
    add_ranking_arguments,
    add_run_arguments,
    add_save_pt_files,
    make_parser,
    resolve_num_workers,
    run_script,
)
from utils.decoding import Crop
from utils.detectors import PROJECT_ROOT, Detector, load_detector
from utils.devices import resolve_device
from utils.distributed import Ranks, process_group
from utils.errors import UserError
from utils.explainers import add_lrp_arguments, make_explainer
from utils.files import sha256_file
from utils.image_sets import ImageSet, composition, find_image_set
from utils.passes import PassState, discard_state, run_pass
from utils.tracking import tracker

LABELS = ("fake", "real")


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Rank all feature maps of a detector by FF-RS (Algorithm 1 of the paper): one CSV for fakes, one for reals, "
        "in the published format, with standard errors, a summary by layer and the omega distribution.",
        "python src/rank_fmaps.py --arch resnet50 --blur_jpg 0.5 --bsize 16 --dataset_dir ForenSynths/ "
        "--gan_name progan_val --have_classes True --num_real 50 --num_fake 50",
    )
    add_detector_arguments(parser)
    add_data_arguments(parser)
    add_loading_arguments(parser, crop="center")
    add_ranking_arguments(parser, relevances=False)
    add_save_pt_files(parser)
    add_lrp_arguments(parser)
    group = parser.add_argument_group("ranking")
    group.add_argument(
        "--fake_confidence", type=float, default=0.9, metavar="P", help="smallest p(fake) of a fake used"
    )
    group.add_argument("--real_confidence", type=float, default=0.1, metavar="P", help="largest p(fake) of a real used")
    group.add_argument(
        "--labels", nargs="+", choices=LABELS, default=list(LABELS), help="rank for fakes, for reals, or both"
    )
    add_bool(group, "--figures", default=True, help="draw the omega distribution and the summary by layer")
    add_run_arguments(
        parser, output_dir=None, output_help="rankings go to DIR/fmap_relevances; absent: to fmap_relevances/ here"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    with process_group() as ranks:
        detector = load_detector(args.arch, args.weights, _device(args, ranks), blur_jpg=args.blur_jpg)
        explainer = make_explainer(args, detector)
        try:
            confidence = Confidence(args.fake_confidence, args.real_confidence)
        except ValueError as error:
            raise UserError(str(error)) from error
        # Everything is looked for before anything is computed.
        image_sets = {name: _image_set(args, name, ranks) for name in args.gan_name}
        topk = _topk(args, detector.arch, sum(channels for _, channels in explainer.layers))
        folder = args.output_dir or Path("output")
        with tracker(args.wandb and ranks.is_first, job="rank_fmaps", config=vars(args), folder=folder) as track:
            for name, image_set in image_sets.items():
                results = _rank(args, name, image_set, detector, explainer, confidence, topk, ranks)
                if results is not None:
                    files, collector, labels = results
                    for label in labels:
                        counts = asdict(collector.counts()[label])
                        track.log({f"{name}/{label}/{key}": value for key, value in counts.items()})
                    if args.figures:
                        track.picture(f"{name}/omega", files.folder / f"{name}-omega.png")


def _device(args: argparse.Namespace, ranks: Ranks) -> torch.device:
    return ranks.device(resolve_device(args.device))


def _topk(args: argparse.Namespace, arch: str, maps: int) -> int:
    topk = args.topk or default_topk(arch, maps)
    if topk > maps:
        raise UserError(f"--topk {topk} is more than the {maps} feature maps of {arch}: choose 1 to {maps}")
    return topk


def _image_set(args: argparse.Namespace, name: str, ranks: Ranks) -> ImageSet:
    image_set = find_image_set(
        args.dataset_dir,
        name,
        have_classes=args.have_classes,
        num_real=args.num_real,
        num_fake=args.num_fake,
        num_instances=args.num_instances,
        labels=tuple(sorted({"real": 0, "fake": 1}[label] for label in args.labels)),
    )
    _, warning = composition(image_set)
    if warning and ranks.is_first:
        print(f"warning: {name}: {warning}", file=sys.stderr)
    return image_set


def _rank(
    args: argparse.Namespace,
    name: str,
    image_set: ImageSet,
    detector: Detector,
    explainer: Explainer,
    confidence: Confidence,
    topk: int,
    ranks: Ranks,
) -> tuple[RankingFiles, RelevanceCollector, list[str]] | None:
    root = PROJECT_ROOT / "fmap_relevances" if args.output_dir is None else args.output_dir / "fmap_relevances"
    files = RankingFiles(root, detector.arch, name, args.blur_jpg)
    keep = None
    if args.save_pt_files:
        pictures = (args.output_dir or Path("output")) / "pt_files" / detector.arch / f"{name}_{args.blur_jpg}"
        keep = RelevanceFiles(pictures).add
    collector = RelevanceCollector(explainer, image_set, confidence, keep)
    inputs = {"weights": detector.sha256, "images": image_set.digest()}
    if args.compat_se is not None:
        inputs["squeeze_excite"] = sha256_file(args.compat_se)
    facts = {
        "arch": detector.arch,
        "bsize": args.bsize,
        "compat": args.compat,
        "crop": args.crop,
        "fake_confidence": confidence.fake,
        "gan_name": name,
        "precision": args.precision,
        "real_confidence": confidence.real,
        "rule": args.rule,
        "save_pt_files": args.save_pt_files,
    }
    conditions = {**inputs, **facts, "device": detector.device.type, "seed": args.seed}
    state = PassState(files.state, {key: str(value) for key, value in conditions.items()}, args.resume)
    report = run_pass(
        image_set,
        [collector],
        preprocess=detector.preprocess,
        device=detector.device,
        batch_size=args.bsize,
        crop=Crop(args.crop),
        seed=args.seed,
        num_workers=resolve_num_workers(args.num_workers, detector.device.type),
        skip_bad_images=args.skip_bad_images,
        state=state,
        ranks=ranks,
        description=f"ranking {name}",
    )
    if not ranks.is_first:
        discard_state(state, ranks)
        return None
    for entry in report.skipped:
        print(f"skipped: {entry.reason}", file=sys.stderr)
    counts = collector.counts()
    labels = [label for label in args.labels if counts[label].used]
    for label in args.labels:
        print(f"{name}: {_counted(label, asdict(counts[label]), confidence)}")
    if not labels:
        discard_state(state)
        raise UserError(
            f"{name}: no image is classified correctly with enough confidence, so there is nothing to rank: "
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
        print(f"{files.ranking(label)}: {len(ranking):,} maps, first {first.key} with omega {ranking.values[0]:.4f}")
    return files, collector, labels


def _counted(label: str, counts: dict[str, int], confidence: Confidence) -> str:
    rule = f"p(fake) >= {confidence.fake:g}" if label == "fake" else f"p(fake) <= {confidence.real:g}"
    return (
        f"{counts['used']} of {counts['images']} {label} images used "
        f"({counts['correct']} classified correctly; used are those with {rule})"
    )


if __name__ == "__main__":
    run_script(main)
