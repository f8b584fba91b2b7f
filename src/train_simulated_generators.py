"""Train the simulated generators of mini-ForenSynths on photographs."""

from mini_forensynths.options import Photographs, Training
from utils.cli import run_function

DESCRIPTION = (
    "Train the simulated generators of mini-ForenSynths: autoencoders, one for each family of up-sampling layers."
)
EXAMPLE = "python src/train_simulated_generators.py --photos photos/ --output_dir output/generators"

if __name__ == "__main__":
    # The photographs of the first share train; the others are kept for the detectors.
    groups = Photographs(shares=(0.7, 0.1, 0.2)), Training
    run_function("mini_forensynths.generator_training.train_generators", DESCRIPTION, EXAMPLE, *groups, lines=True)
