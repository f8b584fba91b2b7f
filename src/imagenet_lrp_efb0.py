"""LRP heat maps of an ImageNet classifier, EfficientNet-B0 unless --arch names another network."""

from attribution.lrp_heatmaps import lrp_heatmaps
from utils.cli import run_script


def main() -> None:
    for line in lrp_heatmaps("imagenet", "efb0"):
        print(line)


if __name__ == "__main__":
    run_script(main)
