"""Step 5: AP and accuracies on images as they are and in greyscale (colour ablation)."""

import argparse
import sys

from detectors.devices import resolve_device
from passes.experiments import find_image_sets
from passes.processes import process_group
from sensitivity_assessment.colour import add_colour_arguments, assess_colour, load_detectors, write_colour_tables
from utils.cli import make_parser, run_script
from utils.tracking import tracker


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Score each image as it is and in greyscale, in one pass, and report AP and accuracies of both: one table for "
        "all generators named, and for a second detector beside the first.",
        "python src/grayscale_sensitivity_analysis.py --arch resnet50 --blur_jpg 0.5 --bsize 16 "
        "--dataset_dir ForenSynths/ --gan_name stylegan2 biggan",
    )
    add_colour_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    with process_group() as ranks:
        subjects = load_detectors(args, ranks.device(resolve_device(args.device)))
        image_sets = find_image_sets(args)
        with tracker(args.wandb and ranks.is_first, job="colour", config=vars(args), folder=args.output_dir) as track:
            results = [assess_colour(args, subject, image_sets, ranks, reuse=False) for subject in subjects]
            if not ranks.is_first:
                return
            for subject, found in zip(subjects, results, strict=True):
                for result in found:
                    for condition, row in result.rows.items():
                        prefix = f"{subject.name}/{result.gan_name}/{condition}"
                        track.log({f"{prefix}/{metric}": value for metric, value in row.values.items()})
        paths = write_colour_tables(args, subjects, results)
        print(paths[1].read_text(encoding="utf-8"))
        for path in paths:
            print(path, file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
