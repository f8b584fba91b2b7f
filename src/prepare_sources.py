"""Images made ready for source attribution as the published tools do: crop, augment, arrays, statistics."""

from passes.options import RunOptions
from source_attribution.options import DataPreparation
from utils.cli import run_script
from utils.settings import read_settings

DESCRIPTION = (
    "Cut images to squares, alter them, write arrays of splits, or statistics of spectra. Training needs none of it: "
    "src/attribute_source.py reads folders of images and does the same on the way."
)
EXAMPLE = "python src/prepare_sources.py crop celeba/ output/celeba_128 --celeba"


def main() -> None:
    run, options = read_settings(DESCRIPTION, EXAMPLE, RunOptions, DataPreparation)
    # after the arguments, so that --help is quick
    from source_attribution.data_preparation import prepare

    prepare(options, run)


if __name__ == "__main__":
    run_script(main)
