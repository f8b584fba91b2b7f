"""Choice of k: AP against the number of dropped feature maps."""

from passes.command import run_step
from sensitivity_assessment.options import TopkOptions

DESCRIPTION = (
    "Drop the top k, random k and lowest k feature maps of a ranking for several k, and mark the smallest k at "
    "which the AP of top-k has fallen to a target."
)
EXAMPLE = (
    "python src/find_topk.py --arch resnet50 --blur_jpg 0.5 --bsize 16 --dataset_dir ForenSynths/ "
    "--gan_name progan_val --num_instances 50"
)

if __name__ == "__main__":
    run_step("sensitivity_assessment.topk.find_k_of_sets", DESCRIPTION, EXAMPLE, TopkOptions)
