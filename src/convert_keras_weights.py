"""Published weights of source attribution (.h5) into a registry of safetensors, and back."""

from passes.options import RunOptions
from source_attribution.options import Conversion
from utils.cli import run_function

DESCRIPTION = (
    "Weights of Keras (.h5) to <OUT>/<name>.safetensors and, of an attribution, <OUT>/<name>/<source>.safetensors; a "
    "network of such a registry to an .h5 file."
)
EXAMPLE = "python src/convert_keras_weights.py attribution_ganfp_progan.h5 weights/attribution --source progan"

if __name__ == "__main__":
    run_function("source_attribution.conversion.convert", DESCRIPTION, EXAMPLE, Conversion, RunOptions)
