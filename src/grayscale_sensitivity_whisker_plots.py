"""Step 5: box-whisker plots of p(fake) on images as they are and in greyscale (Fig. 4); also makes the tables."""

from grayscale_sensitivity_analysis import main
from utils.cli import run_script

if __name__ == "__main__":
    run_script(main)
