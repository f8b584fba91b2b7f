"""Guided Grad-CAM of a detector or an ImageNet classifier on single images."""

from attribution.scripts import guided_gradcam
from utils.cli import run_script


def main() -> None:
    guided_gradcam()


if __name__ == "__main__":
    run_script(main)
