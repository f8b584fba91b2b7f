"""Step 5: box-whisker plots of p(fake) on images as they are and in greyscale (Fig. 4)."""

import argparse

from detectors.devices import resolve_device
from passes.experiments import find_image_sets
from passes.processes import process_group
from sensitivity_assessment.colour import add_colour_arguments, assess_colour, draw_whiskers, load_detectors
from utils.cli import make_parser, run_script
from utils.tracking import tracker


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Draw how p(fake) of the fakes changes without colour, for one detector or two side by side. Scores that "
        "grayscale_sensitivity_analysis.py has written are used if weights, images and settings are the same; else "
        "they are computed.",
        "python src/grayscale_sensitivity_whisker_plots.py --arch resnet50 --blur_jpg 0.5 --bsize 16 "
        "--dataset_dir ForenSynths/ --gan_name stylegan2 biggan",
    )
    add_colour_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    with process_group() as ranks:
        subjects = load_detectors(args, ranks.device(resolve_device(args.device)))
        image_sets = find_image_sets(args)
        for subject in subjects:
            assess_colour(args, subject, image_sets, ranks, reuse=True)
        if not ranks.is_first:
            return
        pictures = draw_whiskers(args, subjects, list(image_sets))
        with tracker(args.wandb, job="whiskers", config=vars(args), folder=args.output_dir) as track:
            for path in pictures:
                print(path)
                if path.suffix == ".png":
                    track.picture(path.stem, path)


if __name__ == "__main__":
    run_script(main)
