"""Step 3: cut out the image regions that excite each feature map most (LRP-max)."""

from passes.command import run_step
from patch_extraction.options import PatchOptions

DESCRIPTION = (
    "For each feature map take the images that excite it most, propagate the relevance of its largest activation to "
    "the image (LRP-max), cut out the box around it, and draw collages. The images come from "
    "get_max_activation_rankings.py."
)
EXAMPLE = (
    "python src/extract_max_activation_patches.py --arch resnet50 --blur_jpg 0.5 --bsize 16 "
    "--dataset_dir ForenSynths/ --gan_name stylegan2 --topk 114 --num_instances 5"
)

if __name__ == "__main__":
    run_step("patch_extraction.analyses.Patches", DESCRIPTION, EXAMPLE, PatchOptions)
