"""Step 6: which top feature maps respond otherwise without colour (Mood's median test, Fig. 6)."""

import argparse
from pathlib import Path

from activation_histograms.collector import ActivationPairCollector
from activation_histograms.outputs import MedianTestFiles
from activation_histograms.run import HISTOGRAMS, draw_histograms, median_test_origin, write_median_tests
from detectors.detector import Detector, load_detector
from detectors.feature_maps import FeatureMapNetwork
from fmap_ranking.locate import find_ranking
from fmap_ranking.names import FeatureMap
from fmap_ranking.ranking import read_ranking
from fmap_ranking.topk import default_topk
from images.sets import ImageSet
from passes.experiments import conditions, find_image_sets, show_images
from passes.one_pass import PassState, discard_state
from passes.processes import Ranks, process_group
from passes.shared_forward import SharedForward
from utils.cli import (
    add_data_arguments,
    add_detector_arguments,
    add_loading_arguments,
    add_ranking_arguments,
    add_run_arguments,
    make_parser,
    run_script,
)
from utils.tracking import tracker

FAKE = 1


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "For each of the top k feature maps, compare its largest activations on fakes as they are and in greyscale: "
        "medians, Mood's median test, histograms. One pass for all maps.",
        "python src/median_test_activation_histograms.py --arch resnet50 --blur_jpg 0.5 --bsize 16 "
        "--dataset_dir ForenSynths/ --gan_name stylegan2 --topk 114 --num_instances 500",
    )
    add_detector_arguments(parser)
    add_data_arguments(parser)
    add_loading_arguments(parser)
    add_ranking_arguments(parser)
    group = parser.add_argument_group("figures")
    group.add_argument(
        "--histograms",
        choices=HISTOGRAMS,
        default="all",
        help="all: one figure for each map, and the overview of the first maps",
    )
    add_run_arguments(parser, compat=False)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    with process_group() as ranks:
        detector = load_detector(
            args.arch,
            args.weights,
            args.device,
            blur_jpg=args.blur_jpg,
            precision=args.precision,
        )
        # Everything is looked for before anything is computed.
        image_sets = find_image_sets(args, labels=(FAKE,))
        network = detector.feature_maps()
        chosen = {name: _chosen_maps(args, detector, network, name) for name in image_sets}
        with tracker(
            args.wandb and ranks.is_first, job="median_test", config=vars(args), folder=args.output_dir
        ) as track:
            for name, image_set in image_sets.items():
                _test(args, name, image_set, *chosen[name], detector, network, ranks)
                if ranks.is_first:
                    files = MedianTestFiles(args.output_dir, detector.arch, name, args.blur_jpg)
                    for path in draw_histograms(files, args.histograms):
                        if path.name == f"{files.overview.name}.png":
                            print(path)
                            track.picture(f"{name}/histograms", path)


def _chosen_maps(
    args: argparse.Namespace, detector: Detector, network: FeatureMapNetwork, name: str
) -> tuple[Path, tuple[FeatureMap, ...]]:
    path = find_ranking(detector.arch, name, args.blur_jpg, relevances=args.relevances, output_dir=args.output_dir)
    ranking = read_ranking(path, network.layers)
    return path, ranking.top_k(args.topk or default_topk(detector.arch, len(ranking)))


def _test(
    args: argparse.Namespace,
    name: str,
    image_set: ImageSet,
    ranking: Path,
    maps: tuple[FeatureMap, ...],
    detector: Detector,
    network: FeatureMapNetwork,
    ranks: Ranks,
) -> None:
    files = MedianTestFiles(args.output_dir, detector.arch, name, args.blur_jpg)
    collector = ActivationPairCollector(SharedForward(network), maps, image_set)
    inputs, facts = median_test_origin(args, files, image_set, detector, ranking, len(maps))
    state = PassState(files.state, conditions(args, inputs, facts), args.resume)
    report = show_images(
        args, image_set, [collector], detector, state=state, ranks=ranks, description=f"median test {name}"
    )
    if ranks.is_first:
        record = {"seed": args.seed, "device": detector.device, "inputs": inputs, "ranking": ranking, **facts}
        print(write_median_tests(files, collector.result(), report, record))
    discard_state(state, ranks)


if __name__ == "__main__":
    run_script(main)
