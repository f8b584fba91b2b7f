"""Group the most predictive patches by what they show, or by where they lie."""

from patch_forensics.options import RESULTS, ClusterOptions
from utils.cli import run_function

DESCRIPTION = (
    "Group the patches of extract_top_patches.py by label maps (what of a face they show), or without them by "
    "position, beside random places, into PATH/clusters/."
)
EXAMPLE = "python src/cluster_patches.py results/RUN/test/epoch_bestval/celebahq-pgan/patches_top10000"

if __name__ == "__main__":
    run_function("patch_forensics.clusters.cluster_patches", DESCRIPTION, EXAMPLE, ClusterOptions, RESULTS)
