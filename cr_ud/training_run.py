"""One training run from its arguments: what is trained on, what it is called, and what is left at the end."""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cr_ud.augmentation import Augmentation
from cr_ud.checkpointing import Progress, save_detector
from cr_ud.initialisation import initial_model
from cr_ud.schedule import CosineSchedule, PlateauSchedule, Schedule
from cr_ud.trainer import RunFiles, Trainer, TrainingSettings
from cr_ud.training_data import EpochOrder, find_pairs, find_training_set, split_off
from cr_ud.training_figures import draw_comparison, draw_curves
from cr_ud.training_log import EPOCH, read_log
from detectors.detector import Detector
from detectors.networks import get_architecture
from images.choice import Reading
from images.composition import composition_warning
from images.sets import ImageSet
from passes.processes import Ranks
from utils.errors import UserError
from utils.files import write_csv, write_provenance
from utils.tracking import Tracker, tracker

GRAYSCALE_PROB = {"rgb": 0.0, "cr": 0.5, "grayscale": 1.0}
VARIANT_NAMES = {
    "rgb": "universal detector",
    "cr": "colour-robust universal detector",
    "grayscale": "greyscale-only universal detector",
}


@dataclass(frozen=True)
class TrainingImages:
    """What a run trains and validates on; `warning` if real and fake differ in file format."""

    training: ImageSet
    validation: ImageSet | None
    warning: str | None


def find_images(args: Namespace, classes: Sequence[str]) -> TrainingImages:
    """The training and validation images for `--train_dir`, `--val_dir` or `--val_share`, and classes.

    Raises:
        UserError: a folder or class is missing or empty, an image has no partner for `--pairs`, or it is not said
            what to validate on.
    """
    given = [args.val_dir is not None, args.val_share is not None, args.no_validation]
    if sum(given) != 1:
        raise UserError(
            "no validation set: give --val_dir DIR or --val_share SHARE, or --no_validation to train at a constant "
            "learning rate (unless --schedule cosine)"
            if not any(given)
            else "--val_dir, --val_share and --no_validation exclude each other: give one of them"
        )
    limits = {name: getattr(args, name) or args.num_instances for name in ("num_real", "num_fake")}
    training = find_training_set(args.train_dir, classes, **limits)
    validation: ImageSet | None = None
    if args.val_dir is not None:
        validation = find_training_set(args.val_dir, classes)
    elif args.val_share is not None:
        training, validation = split_off(training, args.val_share, args.seed, pairs=args.pairs)
    if args.pairs:
        find_pairs(training)
    return TrainingImages(training, validation, composition_warning(training))


def augmentation_of(args: Namespace) -> Augmentation:
    """The augmentation for the arguments.

    Raises:
        UserError: a value is out of its range.
    """
    return Augmentation(
        load_size=args.load_size,
        crop_size=args.crop_size,
        interpolations=args.rz_interp,
        blur_prob=args.blur_jpg if args.blur_prob is None else args.blur_prob,
        blur_sigma=args.blur_sig,
        jpeg_prob=args.blur_jpg if args.jpg_prob is None else args.jpg_prob,
        jpeg_quality=args.jpg_qual,
        jpeg_encoders=args.jpg_method,
        flip=args.flip,
        grayscale_prob=GRAYSCALE_PROB[args.variant],
        small_images=args.small_images,
        compat=args.compat,
    )


def train(
    args: Namespace, images: TrainingImages, classes: Sequence[str], folder: Path, device: torch.device, ranks: Ranks
) -> RunFiles:
    """Train one detector into `folder`, or go on with it.

    Raises:
        UserError: as `Trainer`; the folder holds an earlier run and it is not said what to do with it.
    """
    files = RunFiles(folder)
    resume = args.resume and files.checkpoint.exists()
    if files.checkpoint.exists() and not args.resume and not args.overwrite:
        raise UserError(f"{folder} holds an earlier run: give --resume to go on, --overwrite, or another --name")
    model, init_sha256 = initial_model(args.arch, args.init, args.seed)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    detector = Detector(get_architecture(args.arch), model, device)
    augmentation = augmentation_of(args)
    schedule = _schedule(args)
    arguments = _determining(args, augmentation, images, init_sha256)
    with _trackers(args, ranks, folder) as trackers:
        trainer = Trainer(
            detector,
            EpochOrder(images.training, args.bsize, args.accumulate, args.seed, args.class_bal, ranks, args.pairs),
            images.validation,
            augmentation,
            schedule,
            _settings(args, device),
            files,
            arguments=arguments,
            ranks=ranks,
            trackers=trackers,
        )
        if resume:
            trainer.resume()
        made = trainer.run()
        if ranks.is_first:
            _write_results(args, files, detector, images, arguments, classes, made)
            for track in trackers:
                track.picture("curves", files.curves.with_name("curves.png"))
    return files


def _determining(
    args: Namespace, augmentation: Augmentation, images: TrainingImages, init_sha256: str
) -> dict[str, str]:
    """All that the trained weights depend on, besides the number of steps."""
    names = (
        "arch",
        "bsize",
        "accumulate",
        "seed",
        "class_bal",
        "pairs",
        "lr",
        "beta1",
        "clip_norm",
        "precision",
        "schedule",
    )
    shape = ("max_steps",) if args.schedule == "cosine" else ("patience", "least_lr")
    return {
        **{name: str(getattr(args, name)) for name in (*names, *shape)},
        **{name: str(value) for name, value in asdict(augmentation).items()},
        "init": init_sha256 or args.init,
        "training images": images.training.digest(),
        "validation images": "none" if images.validation is None else images.validation.digest(),
    }


def _schedule(args: Namespace) -> Schedule:
    if args.schedule == "plateau":
        return PlateauSchedule(lr=args.lr, patience=args.patience, least_lr=args.least_lr, compat=args.compat)
    if args.max_steps is None:
        raise UserError("--schedule cosine needs to know how long: give --max_steps")
    return CosineSchedule(highest_lr=args.lr, steps=args.max_steps)


def _settings(args: Namespace, device: torch.device) -> TrainingSettings:
    if args.precision == "fp16" and device.type != "cuda":
        raise UserError("--precision fp16 is for GPUs: use bf16 or fp32 on a CPU")
    return TrainingSettings(
        epochs=args.epochs,
        max_steps=args.max_steps,
        beta1=args.beta1,
        val_every=args.val_every,
        val_num=args.val_num,
        checkpoint_every=args.checkpoint_every,
        log_every=args.log_every,
        clip_norm=args.clip_norm,
        precision=args.precision,
        num_workers=Reading(num_workers=args.num_workers).workers_for(device.type),
        skip_bad_images=args.skip_bad_images,
    )


@contextmanager
def _trackers(args: Namespace, ranks: Ranks, folder: Path) -> Iterator[list[Tracker]]:
    """What was asked for, at rank 0."""
    with ExitStack() as stack:
        trackers: list[Tracker] = []
        if args.wandb and ranks.is_first:
            trackers.append(stack.enter_context(tracker(True, job="train_cr_ud", config=vars(args), folder=folder)))
        if args.tensorboard and ranks.is_first:
            trackers.append(stack.enter_context(tensorboard(folder / "tensorboard")))
        yield trackers


class _TensorBoard(Tracker):
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, values: Mapping[str, Any]) -> None:
        step = values["step"]
        for name, value in values.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)


@contextmanager
def tensorboard(folder: Path) -> Iterator[Tracker]:
    """A tracker that writes TensorBoard's event files into `folder`.

    Raises:
        UserError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard: tensorboard is not installed: pip install tensorboard, or leave the flag out"
        ) from error
    with SummaryWriter(str(folder)) as writer:
        yield _TensorBoard(writer)


def _write_results(
    args: Namespace,
    files: RunFiles,
    detector: Detector,
    images: TrainingImages,
    arguments: Mapping[str, str],
    classes: Sequence[str],
    made: Progress,
) -> None:
    if args.export_fp16:
        save_detector(files.final.with_suffix(".safetensors"), detector.model, half=True)
    title = f"{detector.arch}, {VARIANT_NAMES[args.variant]}"
    draw_curves(read_log(files.log), files.curves, f"{title}, {', '.join(classes)}" if classes else title)
    write_provenance(
        files.final,
        seed=args.seed,
        device=detector.device,
        arguments=dict(arguments),
        variant=args.variant,
        classes=list(classes),
        training_images=images.training.counts(),
        validation_images={} if images.validation is None else images.validation.counts(),
        warning=images.warning,
        steps=made.step,
        epochs=made.epoch,
    )


def compare_runs(runs: Mapping[str, RunFiles], folder: Path) -> Path:
    """Write `subsets.csv` and the figure `subsets.{png,pdf}`: the last validation of each run."""
    logs = {name: read_log(files.log) for name, files in runs.items()}
    table = folder / "subsets.csv"
    columns = ("step", "images", "loss", "ap", "acc", "acc_real", "acc_fake")
    rows = []
    for name, log in logs.items():
        rows += [[name, *(getattr(row, column) for column in columns)] for row in log if row.kind == EPOCH][-1:]
    write_csv(table, ("run", *columns), rows)
    draw_comparison(logs, folder / "subsets", "Subsets of classes, validation")
    write_provenance(table, runs=sorted(runs))
    return table
