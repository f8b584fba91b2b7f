"""The scripts that explain single images: their command lines. Nothing slow is imported before these are read."""

from typing import Any

from attribution.options import GradCamOptions, LrpOptions
from detectors.choice import DetectorChoice
from images.choice import ImageChoice, Reading
from passes.options import RunOptions
from utils.errors import UserError
from utils.settings import read_settings


def lrp_heatmaps(classifier: str, arch: str) -> None:
    """LRP heat maps of a universal detector (`ud`) or an `imagenet` classifier; what a script does.

    Raises:
        UserError: Anything a user can mend.
    """
    imagenet = classifier == "imagenet"
    name, other = ("an ImageNet classifier", "ud") if imagenet else ("a universal detector", "imagenet")
    ending = "" if arch == "resnet50" else f"_{arch}"
    settings = _settings(
        f"LRP heat maps of {name}",
        f"python src/{classifier}_lrp{ending}.py{'' if imagenet else ' --blur_jpg 0.5'}",
        DetectorChoice(arch=arch),
        Reading(crop="center", resize=256) if imagenet else Reading,
        LrpOptions(classifier=classifier),  # type: ignore[arg-type]
    )
    if settings[3].classifier != classifier:
        raise UserError(f"--classifier {other}: this script explains {name}: use src/{other}_lrp{ending}.py")
    from attribution.lrp_heatmaps import LrpHeatMaps
    from attribution.run import explain_images

    explain_images(LrpHeatMaps, *settings)


def guided_gradcam() -> None:
    """Guided Grad-CAM of either; what the script does.

    Raises:
        UserError: Anything a user can mend.
    """
    settings = _settings(
        "Guided Grad-CAM (Selvaraju et al., ICCV 2017)",
        "python src/gradcam.py --classifier ud --arch resnet50 --blur_jpg 0.5",
        DetectorChoice,
        Reading(crop="center", resize=256),
        GradCamOptions,
    )
    from attribution.gradcam import GuidedGradCamMaps
    from attribution.run import explain_images

    explain_images(GuidedGradCamMaps, *settings)


def _settings(what: str, command: str, detector: Any, reading: Any, options: Any) -> tuple[Any, ...]:
    return read_settings(
        f"{what}: pictures, raw arrays, contact sheets with probability and label, and a table.",
        f"{command} --images photo.jpg folder/",
        *(detector, ImageChoice, reading, options, RunOptions),
    )
