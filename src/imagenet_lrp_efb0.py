"""LRP heat maps of an ImageNet classifier, EfficientNet-B0 unless --arch names another network."""

from attribution.scripts import lrp_heatmaps
from utils.cli import run_script


def main() -> None:
    lrp_heatmaps("imagenet", "efb0")


if __name__ == "__main__":
    run_script(main)
