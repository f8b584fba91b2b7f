"""Flags of training, as settings. Imports nothing slow, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.errors import UserError
from utils.settings import count, flag, plain, plain_name, positive, positive_number, rate, share


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included: LOW,HIGH on the command line, or one number for both."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.15g},{self.high:.15g}"

    @classmethod
    def parse(cls, text: str) -> Range:
        """From `LOW,HIGH` or one number."""
        try:
            low, high = map(float, text.split(",") if "," in text else (text, text))
        except ValueError:
            raise ValueError(f"{text!r} is neither one number nor two as in LOW,HIGH") from None
        return cls(low, high)


def words(text: str) -> tuple[str, ...]:
    """The words of a list with commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


@dataclass(frozen=True)
class TrainingImages:
    """Images."""

    train_dir: Path = flag(None, "folder with [<class>/]{0_real,1_fake}", metavar="DIR")
    val_dir: Path | None = flag(None, "validation images in the same layout", metavar="DIR")
    val_share: float | None = flag(
        None, "instead: hold out this share of each class and label", parse=rate, metavar="SHARE"
    )
    no_validation: bool = flag(False, "instead: no validation, learning rate constant unless --schedule cosine")
    classes: tuple[str, ...] = flag(
        (),
        "class folders to use; several lists train one detector each and compare them; absent: all",
        metavar="A,B",
    )
    num_real: int | None = flag(None, "first N real training images of a class; 0: all", parse=count)
    num_fake: int | None = flag(None, "first N fake training images of a class; 0: all", parse=count)
    num_instances: int | None = flag(None, "both, where the two above are not given; 0 or absent: all", parse=count)
    equalize: bool = flag(False, "cut and compress all images alike first, so that real and fake differ in neither")
    num_workers: int | None = flag(
        None, "decoding processes; absent: as many as are useful", parse=count, recorded=False
    )
    skip_bad_images: bool = flag(False, "leave out images that cannot be used; they are listed")

    def __post_init__(self) -> None:
        given = (self.val_dir is not None) + (self.val_share is not None) + self.no_validation
        if self.train_dir is None:
            raise UserError("no training images: give --train_dir DIR")
        if given > 1:
            raise UserError("--val_dir, --val_share and --no_validation exclude each other: give one of them")
        if not given:
            raise UserError(
                "no validation set: give --val_dir DIR or --val_share SHARE, or --no_validation to train at a constant "
                "learning rate (unless --schedule cosine)"
            )


@dataclass(frozen=True)
class TrainedNetwork:
    """Detector."""

    arch: str = flag("resnet50", "any network, any spelling, or one of a plugin")
    init: str = flag(
        "imagenet",
        "imagenet: weights/imagenet/<arch>.pth; lite0: the ImageNet weights that come with the project, for efb0; "
        "high_pass: random, for short training; FILE: any checkpoint, whose head is kept if it has one output",
        metavar="imagenet|lite0|scratch|high_pass|FILE",
    )
    device: str = flag("auto", "auto: a GPU if there is one", metavar="auto|cpu|cuda|cuda:N")
    plugin: tuple[str, ...] = flag((), "Python files or modules that register more networks", metavar="FILE.py")

    def __post_init__(self) -> None:
        from detectors.networks import canonical_architecture

        object.__setattr__(self, "arch", canonical_architecture(self.arch, self.plugin))


@dataclass(frozen=True)
class Augmentation:
    """Augmentation.

    What is drawn for each image, and with which probability; `cr_ud.augmentation` does it.
    """

    cr: bool = flag(False, "colour-robust: half of the training images are made grey")
    grayscale_only: bool = flag(False, "all training and validation images are made grey")
    blur_jpg: float = flag(0.5, "probability of blur and of JPEG, each on its own", parse=share, metavar="P")
    blur_prob: float | None = flag(None, "probability of blur, if another", parse=share, metavar="P")
    jpg_prob: float | None = flag(None, "probability of JPEG, if another", parse=share, metavar="P")
    blur_sig: Range = flag(
        Range(0.0, 3.0), "standard deviation of the blur, pixels; uniform", parse=Range.parse, metavar="LOW,HIGH"
    )
    jpg_qual: Range = flag(Range(30, 100), "integer quality of JPEG", parse=Range.parse, metavar="LOW,HIGH")
    jpg_method: str = flag("cv2,pil", "encoders drawn from", metavar="A,B")
    rz_interp: str = flag("bilinear", "interpolations of the scaling, drawn from", metavar="A,B")
    load_size: int = flag(256, "pixels that the shorter side is scaled to; 0: not scaled", parse=count)
    crop_size: int = flag(224, "side of the crop, at random (in validation at the centre)", parse=positive)
    flip: bool = flag(True, "mirror half of the images")
    small_images: Literal["refuse", "pad"] = flag(
        "refuse", "what to do with images smaller than the crop; pad: black around them"
    )

    def __post_init__(self) -> None:
        if self.cr and self.grayscale_only:
            raise UserError("--cr and --grayscale_only exclude each other: give one of them")
        if not 0.0 <= self.blur_sig.low <= self.blur_sig.high < 100.0:
            raise UserError(f"--blur_sig {self.blur_sig}: use two numbers from 0 to 100, the lower first")
        quality = self.jpg_qual
        if not 1 <= quality.low <= quality.high <= 100 or quality.low % 1 or quality.high % 1:
            raise UserError(f"--jpg_qual {quality}: use two integers from 1 to 100, the lower first")
        if 0 < self.load_size < self.crop_size and self.small_images == "refuse":
            raise UserError(
                f"images of {self.load_size} pixels are smaller than the crop of {self.crop_size}: "
                "raise --load_size, lower --crop_size, or give --small_images pad"
            )

    @property
    def variant(self) -> Literal["rgb", "cr", "grayscale"]:
        """Which detector is trained; the name of a run unless told otherwise."""
        return "cr" if self.cr else "grayscale" if self.grayscale_only else "rgb"


@dataclass(frozen=True)
class Optimisation:
    """Optimisation.

    All of it decides what comes out, `--epochs` and the like by when the run ends only (`determining`).
    """

    bsize: int = flag(64, "images of a step, over all processes", parse=positive)
    accumulate: int = flag(1, "micro-batches of a step and process", parse=positive)
    class_bal: bool = flag(False, "draw real and fake equally often, with replacement")
    pairs: bool = flag(False, "real and fake of one name in the same step, augmented alike")
    lr: float = flag(1e-4, "learning rate of Adam", parse=rate)
    beta1: float = flag(0.9, "of Adam", parse=rate)
    clip_norm: float | None = flag(None, "largest norm of the gradient; absent: any", parse=positive_number)
    schedule: Literal["plateau", "cosine"] = flag(
        "plateau", "of the learning rate; cosine: rising, then falling to 0 within --max_steps"
    )
    patience: int = flag(5, "epochs without progress until lr / 10", parse=positive)
    least_lr: float = flag(1e-6, "training ends instead of going below", parse=rate)
    epochs: int | None = flag(None, "at most; absent: until lr runs out", parse=positive)
    max_steps: int | None = flag(None, "at most", parse=positive)
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = flag(
        "fp32", "of convolutions and linear layers; on GPUs tf32 is faster than fp32; fp16: GPU only"
    )

    def __post_init__(self) -> None:
        if self.schedule == "cosine" and self.max_steps is None:
            raise UserError("--schedule cosine needs to know how long: give --max_steps")

    def determining(self) -> dict[str, Any]:
        """What may not change when a run goes on: all but what its schedule does not look at."""
        idle = ("patience", "least_lr", "epochs") if self.schedule == "cosine" else ("epochs", "max_steps")
        return {name: value for name, value in plain(self).items() if name not in idle}


@dataclass(frozen=True)
class Monitoring:
    """Looking at it, and safety."""

    name: str | None = flag(None, "of the run; absent: rgb, cr or grayscale", parse=plain_name)
    val_every: int = flag(0, "validate also every N steps; 0: after epochs", parse=count)
    val_num: int = flag(0, "images, half of them real, for validations within epochs; 0: all", parse=count)
    log_every: int = flag(20, "steps between rows of the log", parse=positive)
    checkpoint_every: int = flag(1000, "steps between checkpoints", parse=positive)
    export_fp16: bool = flag(False, "write final.safetensors in float16, too")
