"""LRP heat maps of a universal detector, EfficientNet-B0 unless --arch names another network."""

from utils.cli import run_script
from utils.lrp_run import lrp_heatmaps


def main() -> None:
    for line in lrp_heatmaps("ud", "efb0"):
        print(line)


if __name__ == "__main__":
    run_script(main)
