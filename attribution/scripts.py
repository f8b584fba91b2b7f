"""The scripts of LRP heat maps: their command lines. Nothing slow is imported before these are read."""

from typing import Any

from attribution.options import LrpOptions
from detectors.choice import DetectorChoice, named_detectors
from images.choice import Reading
from passes.command import read_step
from utils.cli import run_script
from utils.errors import UserError


def lrp_heatmaps(classifier: Any, arch: str) -> None:
    """Run the script that explains a universal detector (`ud`) or an `imagenet` classifier, of this network by default.

    Raises:
        UserError: Anything a user can mend.
    """
    imagenet = classifier == "imagenet"
    name, other = ("an ImageNet classifier", "ud") if imagenet else ("a universal detector", "imagenet")
    ending = "" if arch == "resnet50" else f"_{arch}"

    def main() -> None:
        detector, images, reading, options, run = read_step(
            f"LRP heat maps of {name}: pictures, raw arrays, contact sheets with probability and label, and a table.",
            f"python src/{classifier}_lrp{ending}.py {'' if imagenet else '--blur_jpg 0.5 '}--images photo.jpg folder/",
            LrpOptions(classifier=classifier),
            DetectorChoice(arch=arch),
            Reading(crop="center", resize=256) if imagenet else Reading(),
        )
        if options.classifier != classifier:
            raise UserError(f"--classifier {other}: this script explains {name}: use src/{other}_lrp{ending}.py")
        from attribution.lrp_heatmaps import LrpHeatMaps
        from attribution.side_by_side import draw_side_by_side
        from passes.running import run_experiment

        detectors = named_detectors(detector, options.detectors)
        overview = draw_side_by_side if len(detectors) > 1 else None
        run_experiment(LrpHeatMaps, detectors, images, reading, options, run, overview=overview)

    run_script(main)
