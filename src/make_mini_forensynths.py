"""Make mini-ForenSynths: photographs, and the same passed through simulated generators, in the ForenSynths layout."""

from mini_forensynths.options import DataSet, Photographs, Sizes
from utils.cli import run_function

DESCRIPTION = (
    "Make mini-ForenSynths: photographs as reals, and as fakes the same photographs passed through simulated "
    "generators, with controls, in the ForenSynths layout: DIR/<set>/{0_real,1_fake}/*.png."
)
EXAMPLE = "python src/make_mini_forensynths.py --photos holiday/ --output_dir output/holiday_mini"

if __name__ == "__main__":
    run_function("mini_forensynths.build.build", DESCRIPTION, EXAMPLE, Photographs, Sizes, DataSet, lines=True)
