"""Flags of the scripts that explain single images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detectors.explaining import Explaining
from utils.settings import count, flag, positive


@dataclass(frozen=True)
class AttributionOptions:
    """Explanations of single images."""

    images: tuple[Path, ...] = flag(
        (),
        "image files or folders to explain; absent: the images of --dataset_dir and --gan_name, else the photos "
        "bundled with scikit-image and scikit-learn",
        metavar="FILE_OR_FOLDER",
    )
    classifier: Literal["ud", "imagenet"] = flag("ud", "universal detector or ImageNet classifier")
    target: str | None = flag(
        None,
        "what to explain: for a detector fake, real, or label (each image's own, where unknown the decision); for an "
        "ImageNet classifier top or the number of a class; absent: label (LRP) or fake (Grad-CAM), or top",
        metavar="NAME",
    )
    look: Literal["signed", "published"] = flag(
        "signed",
        "of the pictures: evidence for (orange) and against (purple) over the pale image, or positive relevance alone "
        "as in the published figures",
    )


@dataclass(frozen=True)
class LrpOptions(Explaining, AttributionOptions):
    """Explanations of single images by relevance propagation."""

    detectors: tuple[str, ...] = flag(
        (),
        "detectors to explain side by side; absent: the one of --arch, --weights and --blur_jpg",
        metavar="NAME=ARCH:FILE[,fake_class=0]",
    )
    conservation: bool = flag(False, "write conservation.csv: what every step receives, passes on and absorbs")
    pixels: bool = flag(
        False,
        "of a detector that reads a linear residual of the image (npr, safe, ladeda9): hand its relevance on to the "
        "pixels, and show both",
    )
    maps: int = flag(
        0,
        "of each image, show the patches that its N feature maps with the largest share of relevance look at (LRP-max)",
        parse=count,
    )
    shifts: int = flag(
        1,
        "average the relevance over N shifts of the image by up to 16 pixels: evens out the grid of dots that strided "
        "convolutions leave; 16 do, and take 16 times as long",
        parse=positive,
    )


@dataclass(frozen=True)
class GradCamOptions(AttributionOptions):
    """Explanations of single images by Guided Grad-CAM."""

    layer: str | None = flag(
        None, "layer to weight; absent: layer4 of a ResNet, _conv_head of an EfficientNet", metavar="NAME"
    )
