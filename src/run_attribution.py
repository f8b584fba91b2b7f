"""Which generator made these images, or none: probabilities and maps of evidence."""

from passes.options import RunOptions
from source_attribution.options import LooseAttribution
from utils.cli import run_function

DESCRIPTION = (
    "Attribute loose images: scores.csv with p_fake and, with att, p_NAME of each source; class activation maps (of "
    "spectra: gradient maps) as arrays and pictures. Images of another size than the network's are cut and resized."
)
EXAMPLE = "python src/run_attribution.py att weights/attribution/mini.safetensors photos/ output/attributed"

if __name__ == "__main__":
    run_function(
        "source_attribution.single_images.attribute_images", DESCRIPTION, EXAMPLE, LooseAttribution, RunOptions
    )
