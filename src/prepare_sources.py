"""Images made ready for source attribution as the published tools do: crop, augment, arrays, statistics."""

from passes.options import RunOptions
from source_attribution.options import DataPreparation
from utils.cli import run_function

DESCRIPTION = (
    "Cut images to squares, alter them, write arrays of splits, or statistics of spectra. Training needs none of it: "
    "src/attribute_source.py reads folders of images and does the same on the way."
)
EXAMPLE = "python src/prepare_sources.py crop celeba/ output/celeba_128 --celeba"

if __name__ == "__main__":
    run_function("source_attribution.data_preparation.prepare", DESCRIPTION, EXAMPLE, RunOptions, DataPreparation)
