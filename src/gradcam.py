"""Guided Grad-CAM of a detector or an ImageNet classifier on single images."""

from attribution.options import GradCamOptions
from images.choice import Reading
from passes.command import run_step

DESCRIPTION = (
    "Guided Grad-CAM (Selvaraju et al., ICCV 2017): pictures, raw arrays, contact sheets with probability and label, "
    "and a table."
)
EXAMPLE = "python src/gradcam.py --classifier ud --arch resnet50 --blur_jpg 0.5 --images photo.jpg folder/"

if __name__ == "__main__":
    reading = Reading(crop="center", resize=256)
    run_step("attribution.gradcam.GuidedGradCamMaps", DESCRIPTION, EXAMPLE, GradCamOptions, reading)
