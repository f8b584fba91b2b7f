"""Step 2: what a detector loses without its top-ranked feature maps (sensitivity assessment, Tab. 1)."""

from passes.command import run_step
from sensitivity_assessment.options import SensitivityOptions

DESCRIPTION = (
    "Drop the top k feature maps of a ranking, k random ones, k random ones of the same layers, and the lowest k, "
    "and report what becomes of AP and accuracy: one table and one figure for all generators."
)
EXAMPLE = (
    "python src/transfer_sensitivity_analysis.py --arch resnet50 --blur_jpg 0.5 --bsize 16 "
    "--dataset_dir ForenSynths/ --gan_name stylegan2 biggan --topk 114"
)

if __name__ == "__main__":
    run_step("sensitivity_assessment.sensitivity.Sensitivity", DESCRIPTION, EXAMPLE, SensitivityOptions)
