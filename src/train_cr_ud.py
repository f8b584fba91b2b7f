"""Train a universal detector, its colour-robust variant, or a greyscale-only one."""

from cr_ud.options import Augmentation, Monitoring, Optimisation, TrainedNetwork, TrainingImages
from passes.options import RunOptions
from utils.cli import run_function

DESCRIPTION = (
    "Train a universal detector as Wang et al. (CVPR 2020), or a colour-robust one (--cr) as Chandrasegaran et al. "
    "(ECCV 2022), into <output_dir>/training/<arch>/<name>. "
    "Several processes: torchrun --nproc_per_node N src/train_cr_ud.py ..."
)
EXAMPLE = (
    "python src/train_cr_ud.py --arch resnet50 --cr --train_dir ForenSynths/train --val_dir ForenSynths/val "
    "--classes cat,dog --epochs 1"
)

if __name__ == "__main__":
    groups = TrainingImages, TrainedNetwork, Augmentation, Optimisation, Monitoring, RunOptions
    run_function("cr_ud.training_run.train_detectors", DESCRIPTION, EXAMPLE, *groups)
