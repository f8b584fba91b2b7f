"""Train a classifier of patches, or of whole images, to tell real from fake."""

import sys

from patch_forensics.experiments import EXPERIMENTS, with_experiment
from patch_forensics.options import CHECKPOINTS, PatchTraining
from utils.cli import run_script
from utils.settings import read_settings

DESCRIPTION = (
    "Train a classifier of patches (Chai et al., ECCV 2020) into <checkpoints_dir>/<name>/. --config also takes the "
    f"name of a published experiment: {', '.join(EXPERIMENTS)}."
)
EXAMPLE = (
    "python src/train_patch_forensics.py --config gp1-gan-winversion --which_model_netD xception_block2 "
    "--real_im_path reals --fake_im_path fakes"
)


def main() -> None:
    words = with_experiment(sys.argv[1:])
    settings = read_settings(DESCRIPTION, EXAMPLE, PatchTraining, CHECKPOINTS, argv=words)
    from patch_forensics.training import train_patch_classifier

    train_patch_classifier(*settings)


if __name__ == "__main__":
    run_script(main)
