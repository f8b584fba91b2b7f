"""All analyses in as few passes as possible, and a report to open in a browser."""

import argparse
import os
import sys
from pathlib import Path

from detectors.explaining import parse_rule
from reproduction.ledger import Ledger
from reproduction.one_pass import STEPS
from reproduction.page import write_report
from reproduction.run import Progress, SubjectRun
from reproduction.settings import find_images, load_subjects
from reproduction.summary import write_summary_files
from utils.cli import (
    add_bool,
    add_data_arguments,
    add_loading_arguments,
    add_run_arguments,
    make_parser,
    parse_architecture,
    parse_name,
    parse_positive,
    run_script,
)
from utils.errors import UserError
from utils.figures import figure_formats


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Rank the feature maps of one or more detectors, drop them, test them, cut out what excites them, and write "
        "report.html with all tables and figures. One pass over the images for each detector and generator feeds all "
        "analyses. What is done is not done again: the same command goes on where an interrupted one stopped.",
        "python src/reproduce.py --arch resnet50 --weights detector.pth --real photos/ --fake generated/",
    )
    group = parser.add_argument_group("detectors")
    group.add_argument(
        "--arch", type=parse_architecture, nargs="+", default=["resnet50"], metavar="ARCH", help="one or more"
    )
    group.add_argument(
        "--weights",
        nargs="+",
        metavar="FILE|ARCH=FILE",
        help="checkpoint of each; else weights/<arch>/blur_jpg_prob<TAG>.pth",
    )
    group.add_argument("--blur_jpg", type=parse_name, default="0.5", metavar="TAG", help="part of file names")
    group.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the convolutions")
    group = parser.add_argument_group("two folders of images, instead of a data set")
    group.add_argument("--real", type=Path, metavar="DIR", help="folder of real images")
    group.add_argument("--fake", type=Path, metavar="DIR", help="folder of generated images")
    group.add_argument(
        "--name", type=parse_name, default="my_images", metavar="NAME", help="what they are called in the results"
    )
    add_data_arguments(parser, required=False)
    add_loading_arguments(parser, crop="center")
    group = parser.add_argument_group("analyses")
    group.add_argument(
        "--topk",
        nargs="+",
        metavar="K|ARCH=K",
        help="feature maps to look at; absent: the paper's 114 for resnet50, 27 for efb0, the same share for others",
    )
    group.add_argument(
        "--relevances", nargs="+", metavar="FILE|ARCH=FILE", help="ranking of each; else one is looked for, or computed"
    )
    group.add_argument(
        "--rank_on",
        type=parse_name,
        metavar="NAME",
        help="generator to compute a ranking on; absent: progan_val, or else the first generator",
    )
    group.add_argument("--rule", type=parse_rule, default="beta0", metavar="NAME", help="propagation rule")
    group.add_argument("--draws", type=parse_positive, default=5, metavar="N", help="random choices of each kind")
    group.add_argument("--patches", type=parse_positive, default=5, metavar="N", help="patches of each feature map")
    group.add_argument(
        "--maps_drawn",
        type=parse_positive,
        metavar="N",
        help="draw histograms and collages of the first N feature maps; absent: of all",
    )
    add_bool(group, "--pdf", default=True, help="save figures as PDF, too: for papers; PNG alone is much faster")
    group.add_argument(
        "--only", nargs="+", choices=STEPS, help="these analyses, and what they need, without the report; absent: all"
    )
    add_run_arguments(parser, resume=False, wandb=False)
    add_bool(
        parser,
        "--report_only",
        default=False,
        help="draw report.html anew from the files of an earlier run in --output_dir, and nothing else",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.report_only and args.only:
        raise UserError("--only and --report_only exclude each other: leave one out")
    if not args.report_only:
        with figure_formats("png", *(["pdf"] if args.pdf else [])):
            _analyse(args)
    if not args.only:
        print(f"report: {write_report(args.output_dir)}")


def _analyse(args: argparse.Namespace) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("reproduce.py is one process: run it without torchrun, or use the scripts of the single steps")
    # Everything is looked for before anything is computed.
    image_sets = find_images(args)
    subjects = load_subjects(args, parse_positive)
    progress = Progress(len(subjects) * SubjectRun.count(len(image_sets)))
    steps = args.only or STEPS
    ledger = Ledger(args.output_dir)
    runs = [SubjectRun(subject, image_sets, progress, ledger, steps) for subject in subjects]
    for run in runs:
        run.check()
    print(
        f"{len(runs)} x {len(image_sets)} (detectors x generators), {progress.total} steps: "
        f"{', '.join(subject.arch for subject in subjects)} on {', '.join(image_sets)}"
    )
    for run in runs:
        run.run()
        if run.ranking is not None:
            print(f"{run.subject.arch}: ranking {run.ranking.path} ({run.ranking.origin})")
    print("all steps were done before" if not progress.computed else f"computed: {progress.computed} steps")
    if args.only:
        return
    settings = {"compat": args.compat, "draws": args.draws, "patches": args.patches, "seed": args.seed}
    for path in write_summary_files(args.output_dir, runs, image_sets, settings):
        print(path, file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
