"""Make mini-ForenSynths: photographs, and the same passed through simulated generators, in the ForenSynths layout."""

import argparse
from pathlib import Path

from mini_forensynths.build import Recipe, build
from mini_forensynths.photos import PARTS
from mini_forensynths.sets import Layout
from utils.cli import add_bool, add_run_arguments, make_parser, parse_count, parse_positive, run_script
from utils.files import PROJECT_ROOT


def parse_arguments() -> argparse.Namespace:
    sizes = Layout()
    parser = make_parser(
        "Make mini-ForenSynths: photographs as reals, and as fakes the same photographs passed through simulated "
        "generators, with controls, in the ForenSynths layout: DIR/<set>/{0_real,1_fake}/*.png.",
        "python src/make_mini_forensynths.py --photos holiday/ --output_dir output/holiday_mini",
    )
    group = parser.add_argument_group("photographs")
    group.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help="your own; absent: those that come with scikit-image and scikit-learn",
    )
    group.add_argument(
        "--shares",
        type=float,
        nargs=len(PARTS),
        default=[0.0, 0.4, 0.6],
        metavar="SHARE",
        help="of the photographs for training, validation and test",
    )
    group.add_argument(
        "--tile", type=parse_positive, default=sizes.tile, metavar="N", help="side of val and test images"
    )
    group.add_argument(
        "--train_tile", type=parse_positive, default=sizes.train_tile, metavar="N", help="side of training images"
    )
    group.add_argument(
        "--most_tiles",
        type=parse_positive,
        default=sizes.most_tiles,
        metavar="N",
        help="images of a photograph at most",
    )
    group.add_argument("--split_seed", type=parse_count, default=0, metavar="N", help="of the split of the photographs")
    add_bool(
        group, "--skip_bad_images", default=False, help="leave out photographs that cannot be used; they are listed"
    )
    parser.add_argument(
        "--generators",
        type=Path,
        default=PROJECT_ROOT / "weights" / "simulated_generators",
        metavar="DIR",
        help="<generator>.safetensors",
    )
    add_bool(parser, "--overwrite", default=False, help="replace another data set in --output_dir")
    add_run_arguments(
        parser,
        output_dir=Path("output", "mini_forensynths"),
        output_help="the data set",
        device=False,
        seed=False,
        compat=False,
        resume=False,
        wandb=False,
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    recipe = Recipe(
        photos=args.photos,
        shares=tuple(args.shares),
        layout=Layout(args.tile, args.train_tile, args.most_tiles),
        split_seed=args.split_seed,
        generators=args.generators,
        skip_bad_images=args.skip_bad_images,
    )
    for path in build(recipe, args.output_dir, overwrite=args.overwrite):
        print(path)


if __name__ == "__main__":
    run_script(main)
