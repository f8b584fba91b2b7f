"""Group the most predictive patches by what they show, or by where they lie."""

from patch_forensics.options import RESULTS, ClusterOptions
from utils.cli import run_script
from utils.settings import read_settings

DESCRIPTION = (
    "Group the patches of extract_top_patches.py by label maps (what of a face they show), or without them by "
    "position, beside random places, into PATH/clusters/."
)
EXAMPLE = "python src/cluster_patches.py results/RUN/test/epoch_bestval/celebahq-pgan/patches_top10000"


def main() -> None:
    settings = read_settings(DESCRIPTION, EXAMPLE, ClusterOptions, RESULTS)
    from patch_forensics.clusters import cluster_patches

    cluster_patches(*settings)


if __name__ == "__main__":
    run_script(main)
