"""Which detector: flags of the command line and fields for Python alike. Imports nothing slow before it is needed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from utils.errors import UserError
from utils.files import PROJECT_ROOT, is_plain_name
from utils.settings import flag

Precision = Literal["fp32", "tf32", "bf16"]


# Canonical names that scripts have as defaults: nothing slow is imported to check them before --help is shown.
_DEFAULTS = ("resnet50", "efb0", "patchforensics-xception_block2")
LITE0_ARCH = "efb0"
"""The network that `lite0_path` has weights for."""


@dataclass(frozen=True)
class DetectorChoice:
    """Detector.

    Attributes:
        arch: Becomes the canonical name.
        blur_jpg: Part of the names of files, whatever the weights.

    Raises:
        UserError: An unknown architecture, a value out of its range, or a plugin that cannot be loaded.
    """

    arch: str = flag(
        "resnet50",
        "network: resnet50, efb0, npr, timm:NAME ... (src/check_setup.py --detectors lists them), or one of a plugin",
    )
    blur_jpg: str = flag(
        "0.5",
        "training augmentation of the published detectors, 0.1 or 0.5: part of file names",
        metavar="TAG",
    )
    weights: Path | None = flag(None, "checkpoint; else weights/<arch>/blur_jpg_prob<TAG>.pth", metavar="FILE")
    fake_class: int | None = flag(
        None,
        "which class is fake: of a checkpoint with two outputs, or 0 for one logit that is positive for real",
        metavar="0|1",
    )
    precision: Precision = flag(
        "fp32",
        "of the convolutions: fp32 is IEEE float32 everywhere, tf32 faster on a GPU; with bf16 logits of EfficientNet "
        "may differ by 1 and more, and so which images count",
    )
    device: str = flag("auto", "auto: a GPU if there is one", metavar="auto|cpu|cuda|cuda:N")
    plugin: tuple[str, ...] = flag((), "Python files or modules that register more networks", metavar="FILE.py")
    backbone: Path | None = flag(
        None,
        "checkpoint of what a detector stands on, where its own file holds the head alone (univfd, clipbased); else "
        "weights/<arch>/backbone.safetensors or .pth",
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise UserError(f"--precision {self.precision}: choose among {', '.join(get_args(Precision))}")
        if self.fake_class not in (None, 0, 1):
            raise UserError(f"--fake_class {self.fake_class}: use 0 or 1")
        if not is_plain_name(self.blur_jpg):
            raise UserError(
                f"--blur_jpg {self.blur_jpg!r} is not fit for a file name: use 0.1 or 0.5, or --weights FILE"
            )
        if self.arch in _DEFAULTS and not self.plugin:
            return
        from detectors.networks import canonical_architecture

        object.__setattr__(self, "arch", canonical_architecture(self.arch, self.plugin))

    @property
    def checkpoint(self) -> Path:
        """The file of `weights`, or the one that the published recipe is looked for at."""
        return self.weights or default_weights_path(self.arch, self.blur_jpg)


def named_detectors(detector: DetectorChoice, described: Sequence[str]) -> list[DetectorChoice]:
    """The detectors of `NAME=ARCH:FILE ...`, the names as their tags, or without any the one of the settings.

    After FILE may follow `,fake_class=0` and `,backbone=FILE`, for what is not the same of all.

    Raises:
        UserError: A detector is not described so, or two share a name.
    """
    named: dict[str, DetectorChoice] = {}
    for text in described:
        name, equals, rest = text.partition("=")
        # Names of timm's networks have a colon of their own.
        rest, *others = re.split(",(fake_class|backbone)=", rest)
        arch, colon, file = rest.rpartition(":") if rest.startswith("timm:") else rest.partition(":")
        if not (equals and colon and file and is_plain_name(name)):
            raise UserError(f"--detectors {text}: write NAME=ARCH:FILE, as in cr=resnet50:weights/cr.pth")
        if name in named:
            raise UserError(f"--detectors: two are called {name}: give each a name of its own")
        options = dict(zip(others[::2], others[1::2], strict=True))
        backbone = Path(options["backbone"]) if "backbone" in options else detector.backbone
        fake = {"0": 0, "1": 1}.get(options.get("fake_class", ""), detector.fake_class)
        named[name] = replace(
            detector, arch=arch, weights=Path(file), blur_jpg=name, fake_class=fake, backbone=backbone
        )
    return list(named.values()) or [detector]


def default_weights_path(arch: str, tag: str, root: Path = PROJECT_ROOT) -> Path:
    """Where the detector of the published training recipe `tag` (`0.1` or `0.5`) is looked for."""
    return root / "weights" / arch / f"blur_jpg_prob{tag}.pth"


def default_backbone_path(arch: str) -> Path:
    """Where the backbone of a detector that consists of a head is looked for."""
    path = PROJECT_ROOT / "weights" / arch / "backbone.safetensors"
    return path if path.exists() else path.with_suffix(".pth")


def imagenet_weights_path(arch: str, root: Path = PROJECT_ROOT) -> Path:
    """Where the ImageNet classifier of an architecture is looked for."""
    return root / "weights" / "imagenet" / f"{arch}.pth"


def lite0_path() -> Path:
    """The ImageNet classifier that comes with the project: EfficientNet-B0 with the weights of EfficientNet-Lite0."""
    return PROJECT_ROOT / "weights" / "imagenet" / "efb0_lite0.safetensors"
