"""Evaluate detectors on test sets, or rank loose images from most fake to most real."""

import argparse
import sys

from utils.cli import (
    add_bool,
    add_data_arguments,
    add_detector_arguments,
    add_loading_arguments,
    add_run_arguments,
    make_parser,
    parse_count,
    parse_name,
    parse_positive,
    run_script,
)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Evaluate one or more detectors on one or more test sets: AP, accuracies, calibration and robustness, RGB "
        "and greyscale, beside the published tables. With --images: loose images, from most fake to most real.",
        "python src/evaluate_detector.py --detectors baseline=resnet50:weights/resnet50/blur_jpg_prob0.5.pth "
        "cr=resnet50:output/training/resnet50/cr/best.pth --dataset_dir ForenSynths/ --gan_name progan cyclegan "
        "--jpeg 90 70 50 --calibrate_on progan",
    )
    parser.add_argument(
        "--detectors",
        nargs="+",
        metavar="NAME=ARCH:FILE",
        help="detectors to evaluate side by side; absent: the one of --arch, --weights and --blur_jpg",
    )
    add_detector_arguments(parser)
    add_data_arguments(parser, required=False)
    add_loading_arguments(parser)
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--rules",
        choices=("none", "wang"),
        default="none",
        help="wang: no scaling, central 224x224, class folders as in Wang et al. (CVPR 2020), their results added",
    )
    group.add_argument(
        "--calibrate_on", type=parse_name, metavar="NAME", help="set of --gan_name to choose a second threshold on"
    )
    group.add_argument("--jpeg", type=int, nargs="+", default=[], metavar="Q", help="JPEG qualities to test")
    group.add_argument("--jpeg_method", choices=("cv2", "pil"), default="pil", help="JPEG encoder")
    group.add_argument("--blur", type=float, nargs="+", default=[], metavar="SIGMA", help="blurs to test, in pixels")
    group.add_argument("--resize", type=float, nargs="+", default=[], metavar="F", help="scaling factors to test")
    group.add_argument("--bootstrap", type=parse_positive, default=1000, metavar="N", help="draws for the intervals")
    add_bool(group, "--redraw", default=False, help="only draw tables and figures anew, from the scores there")
    group.add_argument("--images", nargs="+", metavar="FILE_OR_FOLDER", help="rank these images instead")
    group.add_argument(
        "--sheet_images", type=parse_count, default=48, metavar="N", help="images on the sheets; 0: all of them"
    )
    add_run_arguments(parser, output_help="results go to DIR/evaluation, those of --images to DIR/ranked_images")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    # after the arguments, so that --help is quick
    from cr_ud.evaluation_run import draw, evaluate_sets, find_detectors, find_test_sets, rank_loose_images
    from cr_ud.scoring import RGB, variants
    from detectors.devices import resolve_device
    from passes.processes import process_group
    from utils.tracking import tracker

    folder = args.output_dir / ("ranked_images" if args.images else "evaluation")
    if args.redraw:
        for path in draw(folder, wang=args.rules == "wang"):
            print(path)
        return
    with process_group() as ranks:
        chosen = variants(args.jpeg, args.blur, args.resize, args.jpeg_method)
        sets, warnings = ({}, []) if args.images else find_test_sets(args)
        for warning in warnings if ranks.is_first else ():
            print(f"warning: {warning}", file=sys.stderr)
        detectors = find_detectors(args, ranks.device(resolve_device(args.device)))
        if args.images:
            for path in rank_loose_images(args, detectors, folder, ranks):
                print(path)
            return
        summaries = evaluate_sets(args, detectors, sets, chosen, folder, ranks)
        with tracker(args.wandb and ranks.is_first, job="evaluate", config=vars(args), folder=folder) as track:
            for entry in summaries:
                track.log({f"{entry.detector}/{entry.test_set}/{entry.variant}/ap": entry.ap})
                if entry.variant == RGB:
                    print(
                        f"{entry.detector}, {entry.test_set}: AP {entry.ap:.4f} [{entry.ap_low:.4f}, "
                        f"{entry.ap_high:.4f}], accuracy {entry.acc:.4f} (real {entry.acc_real:.4f}, "
                        f"fake {entry.acc_fake:.4f})"
                    )
        if ranks.is_first:
            print(folder / "tables.md")


if __name__ == "__main__":
    run_script(main)
