"""Step 3: rank the images of a generator by how strongly they excite each feature map."""

from passes.command import run_step
from patch_extraction.options import MapChoice

DESCRIPTION = (
    "Rank the fake images of a generator by the largest activation of each feature map, all maps in one pass: one CSV "
    "for each map, and all of them in one compact file."
)
EXAMPLE = (
    "python src/get_max_activation_rankings.py --arch resnet50 --blur_jpg 0.5 --bsize 16 --dataset_dir ForenSynths/ "
    "--gan_name stylegan2 --topk 114"
)

if __name__ == "__main__":
    run_step("patch_extraction.analyses.ActivationRankings", DESCRIPTION, EXAMPLE, MapChoice)
