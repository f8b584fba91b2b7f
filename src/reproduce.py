"""All analyses in as few passes as possible, and a report to open in a browser."""

from images.choice import ImageChoice, Reading
from passes.options import RunOptions
from reproduction.options import Detectors, Reproduction
from utils.cli import run_function

DESCRIPTION = (
    "Rank the feature maps of one or more detectors, drop them, test them, cut out what excites them, and write "
    "report.html with all tables and figures. One pass over the images of each generator feeds all "
    "analyses. What is done is not done again: the same command goes on where an interrupted one stopped."
)
EXAMPLE = "python src/reproduce.py --arch resnet50 --weights detector.pth --real photos/ --fake generated/"

if __name__ == "__main__":
    groups = Detectors, ImageChoice, Reading(crop="center"), Reproduction, RunOptions
    run_function("reproduction.plan.reproduce", DESCRIPTION, EXAMPLE, *groups)
