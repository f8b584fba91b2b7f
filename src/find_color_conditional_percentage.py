"""Step 7: the share of a generator's top feature maps that depend on colour."""

import argparse

from activation_histograms.outputs import MedianTestFiles
from activation_histograms.run import count_shares
from utils.cli import (
    add_data_arguments,
    add_detector_arguments,
    add_run_arguments,
    make_parser,
    parse_positive,
    run_script,
)
from utils.errors import UserError
from utils.tracking import tracker


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Count the feature maps with a p-value of at most 0.05 in what median_test_activation_histograms.py has "
        "written: one table and one figure for all generators named. Nothing is computed from images.",
        "python src/find_color_conditional_percentage.py --arch resnet50 --blur_jpg 0.5 --gan_name stylegan2 biggan",
    )
    add_detector_arguments(parser)
    add_data_arguments(parser, required=False)
    parser.add_argument("--bsize", type=parse_positive, metavar="N", help="accepted for the sake of old commands")
    parser.add_argument(
        "--topk", type=parse_positive, metavar="K", help="count the first K maps only; absent: all tested"
    )
    add_run_arguments(parser, compat=False, resume=False)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if not args.gan_name:
        raise UserError("--gan_name is missing: name the generators to count for")
    files = [MedianTestFiles(args.output_dir, args.arch, name, args.blur_jpg) for name in args.gan_name]
    shares, paths = count_shares(files, args.topk)
    print(paths[1].read_text(encoding="utf-8"))
    for path in paths:
        print(path)
    with tracker(args.wandb, job="colour_share", config=vars(args), folder=args.output_dir) as track:
        track.log({f"{share.generator}/share": share.share for share in shares})
        track.picture("shares", next(path for path in paths if path.suffix == ".png"))


if __name__ == "__main__":
    run_script(main)
