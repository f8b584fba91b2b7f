"""The scripts that explain single images: their command lines. Nothing slow is imported before these are read."""

from typing import Any

from attribution.options import GradCamOptions, LrpOptions
from detectors.choice import DetectorChoice, named_detectors
from images.choice import Reading
from passes.command import read_step
from utils.errors import UserError

_OUTPUTS = "pictures, raw arrays, contact sheets with probability and label, and a table."
_IMAGES = "--images photo.jpg folder/"


def lrp_heatmaps(classifier: Any, arch: str) -> None:
    """LRP heat maps of a universal detector (`ud`) or an `imagenet` classifier; what a script does.

    Raises:
        UserError: Anything a user can mend.
    """
    imagenet = classifier == "imagenet"
    name, other = ("an ImageNet classifier", "ud") if imagenet else ("a universal detector", "imagenet")
    ending = "" if arch == "resnet50" else f"_{arch}"
    settings = read_step(
        f"LRP heat maps of {name}: {_OUTPUTS}",
        f"python src/{classifier}_lrp{ending}.py {'' if imagenet else '--blur_jpg 0.5 '}{_IMAGES}",
        LrpOptions(classifier=classifier),
        DetectorChoice(arch=arch),
        Reading(crop="center", resize=256) if imagenet else Reading(),
    )
    if settings[3].classifier != classifier:
        raise UserError(f"--classifier {other}: this script explains {name}: use src/{other}_lrp{ending}.py")
    from attribution.lrp_heatmaps import LrpHeatMaps
    from attribution.side_by_side import draw_side_by_side
    from passes.running import run_experiment

    detector, *others = settings
    detectors = named_detectors(detector, settings[3].detectors)
    run_experiment(LrpHeatMaps, detectors, *others, overview=draw_side_by_side)


def guided_gradcam() -> None:
    """Guided Grad-CAM of either; what the script does.

    Raises:
        UserError: Anything a user can mend.
    """
    settings = read_step(
        f"Guided Grad-CAM (Selvaraju et al., ICCV 2017): {_OUTPUTS}",
        f"python src/gradcam.py --classifier ud --arch resnet50 --blur_jpg 0.5 {_IMAGES}",
        GradCamOptions,
        Reading(crop="center", resize=256),
    )
    from attribution.gradcam import GuidedGradCamMaps
    from passes.running import run_experiment

    run_experiment(GuidedGradCamMaps, *settings)
