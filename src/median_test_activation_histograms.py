"""Step 6: which top feature maps respond otherwise without colour (Mood's median test, Fig. 6, and a paired one)."""

from activation_histograms.options import MedianTestOptions
from passes.command import run_step

DESCRIPTION = (
    "For each of the top k feature maps, compare its largest activations on fakes as they are and in greyscale: "
    "medians, Mood's median test, a paired test, histograms. One pass for all maps."
)
EXAMPLE = (
    "python src/median_test_activation_histograms.py --arch resnet50 --blur_jpg 0.5 --bsize 16 "
    "--dataset_dir ForenSynths/ --gan_name stylegan2 --topk 114 --num_instances 500"
)

if __name__ == "__main__":
    run_step("activation_histograms.analysis.MedianTests", DESCRIPTION, EXAMPLE, MedianTestOptions)
