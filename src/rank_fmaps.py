"""Step 1: rank all feature maps of a detector by their forensic relevance (FF-RS)."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from detectors.detector import PROJECT_ROOT, load_detector
from detectors.devices import resolve_device
from detectors.explainers import add_lrp_arguments, make_explainer
from fmap_ranking.collector import Confidence
from fmap_ranking.outputs import RankingFiles
from fmap_ranking.relevance_files import RelevanceFiles
from fmap_ranking.run import rank_images
from fmap_ranking.topk import default_topk
from images.composition import composition_warning
from images.sets import ImageSet, find_image_set
from passes.processes import Ranks, process_group
from utils.cli import (
    add_bool,
    add_data_arguments,
    add_detector_arguments,
    add_loading_arguments,
    add_ranking_arguments,
    add_run_arguments,
    add_save_pt_files,
    make_parser,
    run_script,
)
from utils.errors import UserError
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
        root = (PROJECT_ROOT if args.output_dir is None else args.output_dir) / "fmap_relevances"
        with tracker(args.wandb and ranks.is_first, job="rank_fmaps", config=vars(args), folder=folder) as track:
            for name, image_set in image_sets.items():
                files = RankingFiles(root, detector.arch, name, args.blur_jpg)
                keep = None
                if args.save_pt_files:
                    keep = RelevanceFiles(folder / "pt_files" / detector.arch / f"{name}_{args.blur_jpg}").add
                results = rank_images(args, files, image_set, detector, explainer, confidence, topk, ranks, keep)
                if results is not None:
                    for label in results.labels:
                        counts = asdict(results.counts[label])
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
    warning = composition_warning(image_set)
    if warning and ranks.is_first:
        print(f"warning: {name}: {warning}", file=sys.stderr)
    return image_set


if __name__ == "__main__":
    run_script(main)
