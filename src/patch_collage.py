"""Step 4: collages of the patches that excite feature maps most (Fig. 1), drawn from files."""

import argparse
from pathlib import Path

from patch_extraction.collages import draw_collages
from patch_extraction.files import PatchFiles
from patch_extraction.selection import ALL, parse_topk
from utils.cli import (
    make_parser,
    parse_architecture,
    parse_name,
    parse_positive,
    run_script,
)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Draw the patches of extract_max_activation_patches.py: a collage for each feature map, and pages with a row "
        "of patches for each, as PDF and PNG. Nothing is computed again.",
        "python src/patch_collage.py --arch resnet50 --blur_jpg 0.5 --gan_name stylegan2 --topk 114",
    )
    parser.add_argument("--arch", type=parse_architecture, default="resnet50", help="architecture of the detector")
    parser.add_argument(
        "--blur_jpg", type=parse_name, default="0.5", metavar="TAG", help="augmentation of the detector"
    )
    parser.add_argument("--gan_name", type=parse_name, nargs="+", required=True, metavar="NAME", help="generators")
    parser.add_argument(
        "--topk", type=parse_topk, metavar="K|all", help="the first K maps with patches; absent: all there are"
    )
    parser.add_argument(
        "--num_instances", type=parse_positive, metavar="N", help="most patches of each map; absent: all there are"
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("output"), metavar="DIR", help="where the patches are and collages go"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    topk = None if args.topk == ALL else args.topk
    for name in args.gan_name:
        files = PatchFiles(args.output_dir, args.arch, name)
        collages, pages = draw_collages(files, args.blur_jpg, topk, args.num_instances)
        print(f"{pages[0]}: pages: {len(pages) - 1}; a collage of each map beside it, {len(collages)} files")


if __name__ == "__main__":
    run_script(main)
