"""Make mini-ForenSynths: photographs, and the same passed through simulated generators, in the ForenSynths layout."""

from mini_forensynths.options import DataSet, Photographs, Sizes
from utils.cli import run_script, say_files
from utils.settings import read_settings

DESCRIPTION = (
    "Make mini-ForenSynths: photographs as reals, and as fakes the same photographs passed through simulated "
    "generators, with controls, in the ForenSynths layout: DIR/<set>/{0_real,1_fake}/*.png."
)
EXAMPLE = "python src/make_mini_forensynths.py --photos holiday/ --output_dir output/holiday_mini"


def main() -> None:
    settings = read_settings(DESCRIPTION, EXAMPLE, Photographs, Sizes, DataSet)
    from mini_forensynths.build import build

    say_files(build(*settings))


if __name__ == "__main__":
    run_script(main)
