"""Step 4: collages of the patches that excite feature maps most (Fig. 1), drawn from files."""

import argparse
import json
from pathlib import Path

from patch_extraction.collages import PATCHES_IN_A_ROW, plot_map, plot_overview
from patch_extraction.files import MAKE, PatchFiles
from patch_extraction.selection import ALL, parse_topk
from utils.cli import (
    make_parser,
    parse_architecture,
    parse_name,
    parse_positive,
    progress,
    run_script,
)
from utils.errors import UserError


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
    count = None if args.topk == ALL else args.topk
    found = {}
    for name in args.gan_name:
        files = PatchFiles(args.output_dir, args.arch, name)
        found[name] = files.read(count)
        _check_tag(files, args.blur_jpg)
    folder = args.output_dir / "collages" / args.arch / args.blur_jpg
    for name, entries in found.items():
        for entry in progress(entries, description=f"collages {name}", unit="map"):
            plot_map(entry, name, folder / entry.fmap.folder_name / name, args.num_instances)
        columns = min(args.num_instances or PATCHES_IN_A_ROW, PATCHES_IN_A_ROW)
        pages = plot_overview(entries, name, args.arch, folder / name, columns)
        print(f"{pages[0]}: {len(entries)} maps, pages: {len(pages) - 1}; a collage for each map in {folder}")


def _check_tag(files: PatchFiles, tag: str) -> None:
    """Patches of both published detectors lie in one place; make sure that these are the right ones."""
    record = files.index.with_name(f"{files.index.name}.json")
    try:
        made_for = json.loads(record.read_text(encoding="utf-8"))["tag"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if made_for != tag:
        raise UserError(f"the patches in {files.root} are of --blur_jpg {made_for}, not {tag}: run {MAKE} again")


if __name__ == "__main__":
    run_script(main)
