"""Step 5: what a detector loses without colour: AP and accuracy on RGB and greyscale, whiskers (Fig. 4)."""

from passes.command import run_step
from sensitivity_assessment.options import ColourOptions

DESCRIPTION = (
    "Score images as they are and in greyscale, with one detector or two side by side: AP and accuracy, a table over "
    "generators, and box-whisker plots of p(fake) of the fakes. What is done already is only drawn."
)
EXAMPLE = (
    "python src/grayscale_sensitivity_analysis.py --arch resnet50 --blur_jpg 0.5 --bsize 16 "
    "--dataset_dir ForenSynths/ --gan_name stylegan2 biggan"
)

if __name__ == "__main__":
    run_step("sensitivity_assessment.colour.ablate_colour", DESCRIPTION, EXAMPLE, ColourOptions)
