"""Evaluate detectors on test sets, or judge loose images, from most fake to most real."""

from evaluation.options import EvaluationOptions
from passes.command import run_step

DESCRIPTION = (
    "Evaluate one or more detectors on one or more test sets: AP, accuracies, calibration and robustness, RGB "
    "and greyscale, beside the published tables. With --images: loose images, from most fake to most real."
)
EXAMPLE = (
    "python src/evaluate_detector.py --detectors baseline=resnet50:weights/resnet50/blur_jpg_prob0.5.pth "
    "cr=resnet50:output/training/resnet50/cr/best.pth --dataset_dir ForenSynths/ --gan_name progan cyclegan "
    "--jpeg 90 70 50 --calibrate_on progan"
)

if __name__ == "__main__":
    run_step("evaluation.evaluate.evaluate", DESCRIPTION, EXAMPLE, EvaluationOptions)
