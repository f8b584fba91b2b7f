"""Step 3: cut out the image regions that excite each feature map most (LRP-max)."""

import argparse
from pathlib import Path

from detectors.detector import load_detector
from detectors.explaining import add_lrp_arguments, make_explainer
from passes.processes import process_group
from patch_extraction.run import extract_patches, find_patches
from patch_extraction.selection import add_map_arguments
from utils.cli import (
    add_bool,
    add_detector_arguments,
    add_run_arguments,
    make_parser,
    parse_count,
    parse_have_classes,
    parse_name,
    parse_positive,
    run_script,
)
from utils.tracking import tracker


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "For each feature map take the images that excite it most, propagate the relevance of its largest activation "
        "to the image (LRP-max), and cut out the box around it. The images come from get_max_activation_rankings.py.",
        "python src/extract_max_activation_patches.py --arch resnet50 --blur_jpg 0.5 --bsize 16 "
        "--dataset_dir ForenSynths/ --gan_name stylegan2 --topk 114 --num_instances 5",
    )
    add_detector_arguments(parser)
    group = parser.add_argument_group("images")
    group.add_argument(
        "--dataset_dir",
        type=Path,
        metavar="DIR",
        help="folder of the generators' folders; absent: the one that the images were ranked in",
    )
    group.add_argument("--gan_name", type=parse_name, nargs="+", required=True, metavar="NAME", help="folders there")
    group.add_argument(
        "--have_classes",
        type=parse_have_classes,
        default="auto",
        metavar="True|False|auto",
        help="taken for the sake of common command lines: the rankings name each image with its class",
    )
    group.add_argument(
        "--num_instances", type=parse_positive, default=5, metavar="N", help="most activating images of each map"
    )
    group = parser.add_argument_group("reading")
    group.add_argument("--bsize", type=parse_positive, default=16, metavar="N", help="images, and maps, in a batch")
    group.add_argument(
        "--num_workers",
        type=parse_count,
        metavar="N",
        help="processes that decode images, 0 for none; absent: as many as are useful on the device",
    )
    add_bool(
        group, "--skip_bad_images", default=False, help="leave out images that cannot be decoded instead of stopping"
    )
    add_map_arguments(parser)
    add_lrp_arguments(parser)
    add_run_arguments(parser)
    # Boxes are in pixels of whole images.
    parser.set_defaults(crop="none")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    with process_group() as ranks:
        detector = load_detector(args.arch, args.weights, args.device, blur_jpg=args.blur_jpg, precision=args.precision)
        # Everything is looked for before anything is computed.
        found = {name: find_patches(args, detector, name) for name in args.gan_name}
        explainer = make_explainer(args, detector)
        with tracker(args.wandb and ranks.is_first, job="patches", config=vars(args), folder=args.output_dir) as track:
            for name, (selection, plan) in found.items():
                files = extract_patches(args, name, selection, plan, detector, explainer, ranks)
                if files is not None:
                    for fmap in selection.maps[:10]:
                        track.picture(f"{name}/{fmap.key}", files.picture(fmap, 1))


if __name__ == "__main__":
    run_script(main)
