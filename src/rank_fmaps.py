"""Step 1: rank all feature maps of a detector by their forensic relevance (FF-RS)."""

from pathlib import Path

from fmap_ranking.options import RankingOptions
from images.choice import Reading
from passes.command import run_step
from passes.options import RunOptions

DESCRIPTION = (
    "Rank all feature maps of a detector by FF-RS (Algorithm 1 of the paper): one CSV for fakes, one for reals, "
    "in the published format, with standard errors, a summary by layer and the omega distribution."
)
EXAMPLE = (
    "python src/rank_fmaps.py --arch resnet50 --blur_jpg 0.5 --bsize 16 --dataset_dir ForenSynths/ "
    "--gan_name progan_val --have_classes True --num_real 50 --num_fake 50"
)
# As published: rankings are of crops, and lie in fmap_relevances/ here.
DEFAULTS = (Reading(crop="center"), RunOptions(output_dir=Path()))

if __name__ == "__main__":
    run_step("fmap_ranking.analysis.RankFeatureMaps", DESCRIPTION, EXAMPLE, RankingOptions, *DEFAULTS)
