"""Step 5: box-whisker plots of p(fake) on images as they are and in greyscale (Fig. 4); also makes the tables."""

from grayscale_sensitivity_analysis import DESCRIPTION, EXAMPLE
from passes.command import run_step
from sensitivity_assessment.options import ColourOptions

if __name__ == "__main__":
    run_step("sensitivity_assessment.colour.ablate_colour", DESCRIPTION, EXAMPLE, ColourOptions)
