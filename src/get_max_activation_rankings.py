"""Step 3: rank the images of a generator by how strongly they excite each feature map."""

import argparse

from detectors.detector import Detector, load_detector
from images.sets import ImageSet
from passes.experiments import conditions, find_image_sets, show_images
from passes.one_pass import PassState, discard_state
from passes.processes import Ranks, process_group
from passes.shared_forward import SharedForward
from patch_extraction.activations import MaxActivations, TopActivations
from patch_extraction.rankings import ActivationRankingFiles, ActivationRankings, Source, write_rankings
from patch_extraction.selection import ALL, Selection, add_map_arguments, select_maps
from utils.cli import (
    add_data_arguments,
    add_detector_arguments,
    add_loading_arguments,
    add_run_arguments,
    make_parser,
    parse_bool,
    parse_count,
    run_script,
)
from utils.files import sha256_text
from utils.tracking import tracker

KEPT_OF_ALL = 40
FAKE = 1


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Rank the fake images of a generator by the largest activation of each feature map, all maps in one pass: one "
        "CSV for each map, and all of them in one compact file.",
        "python src/get_max_activation_rankings.py --arch resnet50 --blur_jpg 0.5 --bsize 16 "
        "--dataset_dir ForenSynths/ --gan_name stylegan2 --topk 114",
    )
    add_detector_arguments(parser)
    add_data_arguments(parser)
    add_loading_arguments(parser)
    add_map_arguments(parser)
    group = parser.add_argument_group("rankings")
    group.add_argument(
        "--keep",
        type=parse_count,
        metavar="N",
        help="keep only the N most activating images of each map, so that memory does not grow with the images; "
        f"0: all images; absent: all images, but {KEPT_OF_ALL} with --topk all",
    )
    group.add_argument(
        "--csv",
        type=parse_bool,
        nargs="?",
        const=True,
        metavar="True|False",
        help="write a CSV for each map; absent: yes, but not with --topk all, which makes tens of thousands",
    )
    add_run_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    with process_group() as ranks:
        detector = load_detector(args.arch, args.weights, args.device, blur_jpg=args.blur_jpg, precision=args.precision)
        # Everything is looked for before anything is computed.
        image_sets = find_image_sets(args, labels=(FAKE,))
        selections = {name: _selection(args, detector, name) for name in args.gan_name}
        forward = SharedForward(detector.feature_maps())
        with tracker(
            args.wandb and ranks.is_first, job="activation_rankings", config=vars(args), folder=args.output_dir
        ) as track:
            for name, image_set in image_sets.items():
                rankings = _rank(args, name, image_set, selections[name], detector, forward, ranks)
                if rankings is not None:
                    track.log({f"{name}/images": len(rankings.names), f"{name}/maps": len(rankings.maps)})


def _selection(args: argparse.Namespace, detector: Detector, name: str) -> Selection:
    return select_maps(
        detector,
        name,
        args.blur_jpg,
        topk=args.topk,
        layers=args.layers,
        relevances=args.relevances,
        output_dir=args.output_dir,
    )


def _rank(
    args: argparse.Namespace,
    name: str,
    image_set: ImageSet,
    selection: Selection,
    detector: Detector,
    forward: SharedForward,
    ranks: Ranks,
) -> ActivationRankings | None:
    files = ActivationRankingFiles(args.output_dir, detector.arch, name, args.blur_jpg)
    keep = (KEPT_OF_ALL if args.topk == ALL else 0) if args.keep is None else args.keep
    collector = (
        TopActivations(forward, selection.maps, image_set, keep)
        if keep
        else MaxActivations(forward, selection.maps, image_set)
    )
    inputs = {"weights": detector.sha256, "images": image_set.digest(), **selection.inputs()}
    facts = {
        "arch": detector.arch,
        "crop": args.crop,
        "gan_name": name,
        "keep": keep,
        "maps": len(selection.maps),
        "precision": args.precision,
    }
    keys = sha256_text(fmap.key for fmap in selection.maps)
    state = PassState(files.state, {**conditions(args, inputs, facts), "keys": keys}, args.resume)
    report = show_images(
        args, image_set, [collector], detector, state=state, ranks=ranks, description=f"activations {name}"
    )
    if not ranks.is_first:
        discard_state(state, ranks)
        return None
    rankings = collector.result(Source(detector.sha256, str(image_set.root.resolve()), args.crop))
    with_tables = args.topk != ALL if args.csv is None else args.csv
    write_rankings(
        files,
        rankings,
        tables=with_tables,
        seed=args.seed,
        device=detector.device,
        inputs=inputs,
        bsize=args.bsize,
        images=report.images,
        ranking=selection.ranking,
        skipped=[[entry.item.name, entry.reason] for entry in report.skipped],
        **facts,
    )
    discard_state(state, ranks)
    tables = "and a CSV for each" if with_tables else "no CSV (--csv True writes one for each map)"
    print(f"{files.arrays}: {len(rankings.maps):,} maps, {report.images} images, {tables}")
    return rankings


if __name__ == "__main__":
    run_script(main)
