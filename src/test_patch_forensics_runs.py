"""Test a patch classifier on a group of data sets, and make tables over all that was tested."""

from patch_forensics.options import RESULTS, GroupTest
from utils.cli import run_script
from utils.settings import read_settings

DESCRIPTION = (
    "Test a classifier on the data sets of a group, as test_patch_forensics.py does on one, and write tables over all "
    "classifiers and data sets in <results_dir>: runs.csv, tables.md and a figure."
)
EXAMPLE = "python src/test_patch_forensics_runs.py checkpoints/RUN gen_models test"


def main() -> None:
    settings = read_settings(DESCRIPTION, EXAMPLE, GroupTest, RESULTS)
    from patch_forensics.tables import test_group

    test_group(*settings)


if __name__ == "__main__":
    run_script(main)
