"""Test a patch classifier on a group of data sets, and make tables over all that was tested."""

from patch_forensics.options import RESULTS, GroupTest
from utils.cli import run_function

DESCRIPTION = (
    "Test a classifier on the data sets of a group, as test_patch_forensics.py does on one, and write tables over all "
    "classifiers and data sets in <results_dir>: runs.csv, tables.md and a figure."
)
EXAMPLE = "python src/test_patch_forensics_runs.py checkpoints/RUN gen_models test"

if __name__ == "__main__":
    run_function("patch_forensics.tables.test_group", DESCRIPTION, EXAMPLE, GroupTest, RESULTS)
