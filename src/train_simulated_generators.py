"""Train the simulated generators of mini-ForenSynths on photographs."""

from mini_forensynths.options import Photographs, Training
from utils.cli import run_script, say
from utils.settings import read_settings

DESCRIPTION = (
    "Train the simulated generators of mini-ForenSynths: autoencoders, one for each family of up-sampling layers."
)
EXAMPLE = "python src/train_simulated_generators.py --photos photos/ --output_dir output/generators"


def main() -> None:
    # The photographs of the first share train; the others are kept for the detectors.
    settings = read_settings(DESCRIPTION, EXAMPLE, Photographs(shares=(0.7, 0.1, 0.2)), Training)
    from mini_forensynths.generator_training import train_generators

    for line in train_generators(*settings):
        say(line)


if __name__ == "__main__":
    run_script(main)
