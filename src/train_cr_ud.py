"""Train a universal detector, its colour-robust variant, or a greyscale-only one."""

from cr_ud.options import Augmentation, Monitoring, Optimisation, TrainedNetwork, TrainingImages
from passes.options import RunOptions
from utils.cli import run_script
from utils.settings import read_settings

DESCRIPTION = (
    "Train a universal detector as Wang et al. (CVPR 2020), or a colour-robust one (--cr) as Chandrasegaran et al. "
    "(ECCV 2022), into <output_dir>/training/<arch>/<name>. "
    "Several processes: torchrun --nproc_per_node N src/train_cr_ud.py ..."
)
EXAMPLE = (
    "python src/train_cr_ud.py --arch resnet50 --cr --train_dir ForenSynths/train --val_dir ForenSynths/val "
    "--classes cat,dog --epochs 1"
)


def main() -> None:
    groups = TrainingImages, TrainedNetwork, Augmentation, Optimisation, Monitoring, RunOptions
    settings = read_settings(DESCRIPTION, EXAMPLE, *groups)
    # after the arguments, so that --help is quick
    from cr_ud.training_run import train_detectors

    train_detectors(*settings)


if __name__ == "__main__":
    run_script(main)
