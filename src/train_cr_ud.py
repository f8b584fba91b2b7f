"""Train a universal detector, its colour-robust variant, or a greyscale-only one."""

import argparse
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from utils.cli import (
    add_bool,
    add_run_arguments,
    make_parser,
    parse_architecture,
    parse_count,
    parse_name,
    parse_positive,
    run_script,
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(kind: type[int] | type[float], text: str) -> tuple[Any, Any]:
    """One number, or two with a comma between them, as a range."""
    try:
        numbers = [kind(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise argparse.ArgumentTypeError(f"{text!r} is neither one number nor two as in LOW,HIGH")
    return numbers[0], numbers[-1]


def _sigma(text: str) -> tuple[float, float]:
    return _numbers(float, text)


def _quality(text: str) -> tuple[int, int]:
    return _numbers(int, text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0.0 < rate < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return rate


def _norm(text: str) -> float:
    try:
        norm = float(text)
    except ValueError:
        norm = 0.0
    if not 0.0 < norm < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return norm


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Train a universal detector as Wang et al. (CVPR 2020), or a colour-robust one (--cr) as "
        "Chandrasegaran et al. (ECCV 2022). Several processes: torchrun --nproc_per_node N src/train_cr_ud.py ...",
        "python src/train_cr_ud.py --arch resnet50 --cr --train_dir ForenSynths/train --val_dir "
        "ForenSynths/val --classes cat,dog --epochs 1",
    )
    _add_images(parser)
    _add_detector(parser)
    _add_augmentation(parser)
    _add_optimisation(parser)
    _add_output(parser)
    add_run_arguments(parser, output_help="the run goes to DIR/training/<arch>/<name>")
    return parser.parse_args()


def _add_images(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images")
    group.add_argument(
        "--train_dir", type=Path, required=True, metavar="DIR", help="folder with [<class>/]{0_real,1_fake}"
    )
    group.add_argument("--val_dir", type=Path, metavar="DIR", help="validation images in the same layout")
    group.add_argument(
        "--val_share", type=float, metavar="SHARE", help="instead: hold out this share of each class and label"
    )
    add_bool(
        group,
        "--no_validation",
        default=False,
        help="instead: no validation, learning rate constant unless --schedule cosine",
    )
    group.add_argument(
        "--classes",
        type=_words,
        nargs="+",
        default=[()],
        metavar="A,B",
        help="class folders to use; several lists train one detector each and compare them; absent: all",
    )
    for flag, what in (("--num_real", "real"), ("--num_fake", "fake"), ("--num_instances", "real and fake")):
        group.add_argument(
            flag, type=parse_count, metavar="N", help=f"first N {what} training images of a class; 0 or absent: all"
        )
    add_bool(group, "--class_bal", default=False, help="draw real and fake equally often, with replacement")
    add_bool(group, "--pairs", default=False, help="real and fake of one name in the same step, augmented alike")
    group.add_argument(
        "--num_workers", type=parse_count, metavar="N", help="decoding processes; absent: as many as are useful"
    )
    add_bool(group, "--skip_bad_images", default=False, help="leave out images that cannot be used; they are listed")


def _add_detector(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("detector")
    group.add_argument("--arch", type=parse_architecture, default="resnet50", help="any architecture, any spelling")
    group.add_argument(
        "--init",
        default="imagenet",
        metavar="imagenet|scratch|high_pass|FILE",
        help="imagenet: weights/imagenet/<arch>.pth; high_pass: random, for short training; FILE: any checkpoint, "
        "whose head is kept if it has one output",
    )
    add_bool(group, "--cr", default=False, help="colour-robust: half of the training images are made grey")
    add_bool(group, "--grayscale_only", default=False, help="all training and validation images are made grey")


def _add_augmentation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("augmentation")
    group.add_argument(
        "--blur_jpg", type=float, default=0.5, metavar="P", help="probability of blur and of JPEG, each on its own"
    )
    group.add_argument("--blur_prob", type=float, metavar="P", help="probability of blur, if another")
    group.add_argument("--jpg_prob", type=float, metavar="P", help="probability of JPEG, if another")
    group.add_argument("--blur_sig", type=_sigma, default=(0.0, 3.0), metavar="LOW,HIGH", help="pixels")
    group.add_argument("--jpg_qual", type=_quality, default=(30, 100), metavar="LOW,HIGH", help="quality")
    group.add_argument("--jpg_method", type=_words, default=("cv2", "pil"), metavar="A,B", help="encoders drawn from")
    group.add_argument("--rz_interp", type=_words, default=("bilinear",), metavar="A,B", help="scaling drawn from")
    group.add_argument("--load_size", type=parse_count, default=256, metavar="N", help="shorter side; 0: not scaled")
    group.add_argument("--crop_size", type=parse_positive, default=224, metavar="N", help="side of the crop")
    add_bool(group, "--flip", default=True, help="mirror half of the images")
    group.add_argument(
        "--small_images", choices=("refuse", "pad"), default="refuse", help="images smaller than the crop"
    )


def _add_optimisation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimisation")
    group.add_argument(
        "--bsize", type=parse_positive, default=64, metavar="N", help="images of a step, over all processes"
    )
    group.add_argument(
        "--accumulate", type=parse_positive, default=1, metavar="N", help="micro-batches of a step and process"
    )
    group.add_argument("--lr", type=_rate, default=1e-4, help="learning rate of Adam")
    group.add_argument("--beta1", type=_rate, default=0.9, help="of Adam")
    group.add_argument("--clip_norm", type=_norm, metavar="X", help="largest norm of the gradient; absent: any")
    group.add_argument(
        "--schedule",
        choices=("plateau", "cosine"),
        default="plateau",
        help="of the learning rate; cosine: rising, then falling to 0 within --max_steps",
    )
    group.add_argument(
        "--patience", type=parse_positive, default=5, metavar="N", help="epochs without progress until lr / 10"
    )
    group.add_argument("--least_lr", type=_rate, default=1e-6, help="training ends instead of going below")
    group.add_argument("--epochs", type=parse_positive, metavar="N", help="at most; absent: until lr runs out")
    group.add_argument("--max_steps", type=parse_positive, metavar="N", help="at most")
    group.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="fp16: GPU only")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("looking at it, and safety")
    group.add_argument("--name", type=parse_name, help="of the run; absent: rgb, cr or grayscale")
    group.add_argument(
        "--val_every", type=parse_count, default=0, metavar="N", help="validate also every N steps; 0: after epochs"
    )
    group.add_argument(
        "--val_num", type=parse_count, default=0, metavar="N", help="images for validations within epochs; 0: all"
    )
    group.add_argument("--log_every", type=parse_positive, default=20, metavar="N", help="steps between log rows")
    group.add_argument(
        "--checkpoint_every", type=parse_positive, default=1000, metavar="N", help="steps between checkpoints"
    )
    add_bool(group, "--overwrite", default=False, help="start anew where an earlier run is")
    add_bool(group, "--export_fp16", default=False, help="write final.safetensors in float16, too")
    add_bool(group, "--tensorboard", default=False, help="log to TensorBoard, if it is installed")


def main() -> None:
    args = parse_arguments()
    # after the arguments, so that --help is quick
    from cr_ud.parallel import BACKEND
    from cr_ud.training_run import augmentation_of, compare_runs, find_images, train
    from detectors.devices import resolve_device
    from passes.processes import process_group
    from utils.errors import UserError

    if args.cr and args.grayscale_only:
        raise UserError("--cr and --grayscale_only exclude each other: give one of them")
    args.variant = "cr" if args.cr else "grayscale" if args.grayscale_only else "rgb"
    device = resolve_device(args.device)
    with process_group(BACKEND[device.type]) as ranks:
        device = ranks.device(device)
        augmentation = augmentation_of(args)
        folder = args.output_dir / "training" / args.arch / (args.name or args.variant)
        # everything is looked for before anything is computed
        subsets = {"+".join(classes): (classes, find_images(args, classes)) for classes in args.classes}
        runs = {}
        for name, (classes, images) in subsets.items():
            place = folder / name if len(subsets) > 1 else folder
            if ranks.is_first:
                validation = 0 if images.validation is None else len(images.validation)
                print(f"{place}: {len(images.training)} training and {validation} validation images")
                print(f"  {asdict(augmentation)}")
                if images.warning:
                    print(f"warning: {images.warning}", file=sys.stderr)
            runs[name] = train(args, images, classes, place, device, ranks)
        if ranks.is_first:
            for files in runs.values():
                print(files.final)
            if len(runs) > 1:
                print(compare_runs(runs, folder))


if __name__ == "__main__":
    run_script(main)
