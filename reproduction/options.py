"""Flags of the whole reproduction: detectors, images, and what is done with them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from detectors.choice import DetectorChoice, Precision
from detectors.explaining import Explaining
from evaluation.options import AssessmentOptions
from fmap_ranking.options import Confidence
from utils.errors import UserError
from utils.settings import count, flag, plain_name, positive

T = TypeVar("T")
Step = Literal["ranking", "sensitivity", "colour", "patches", "median_test"]
STEPS: tuple[Step, ...] = ("ranking", "sensitivity", "colour", "patches", "median_test")


@dataclass(frozen=True)
class Detectors:
    """Detectors."""

    arch: tuple[str, ...] = flag(("resnet50",), "one or more", metavar="ARCH")
    weights: tuple[str, ...] = flag(
        (), "checkpoint of each; else weights/<arch>/blur_jpg_prob<TAG>.pth", metavar="FILE|ARCH=FILE"
    )
    blur_jpg: str = flag("0.5", "part of file names", parse=plain_name, metavar="TAG")
    fake_class: tuple[str, ...] = flag(
        (), "which class of the checkpoints is fake: one for all, or of each", metavar="0|1|ARCH=0|1"
    )
    precision: Precision = flag("fp32", "of the convolutions")
    device: str = flag("auto", "auto: a GPU if there is one", metavar="auto|cpu|cuda|cuda:N")
    plugin: tuple[str, ...] = flag((), "Python files or modules that register more networks", metavar="FILE.py")
    backbone: tuple[str, ...] = flag(
        (),
        "checkpoint of what a detector stands on, where its own file holds the head alone (univfd, clipbased); else "
        "weights/<arch>/backbone.safetensors or .pth",
        metavar="FILE|ARCH=FILE",
    )

    def choices(self) -> list[DetectorChoice]:
        """One for each detector.

        Raises:
            UserError: A flag does not fit `--arch`.
        """
        archs = self.names()
        weights = by_architecture("--weights", self.weights, archs, Path)
        same = [*self.fake_class] * len(archs) if len(self.fake_class) == 1 else self.fake_class
        fake = by_architecture("--fake_class", self.fake_class if "=" in "".join(same) else same, archs, int)
        backbones = by_architecture("--backbone", self.backbone, archs, Path)
        same_of_all = self.precision, self.device, self.plugin
        return [
            DetectorChoice(
                arch, self.blur_jpg, weights.get(arch), fake.get(arch), *same_of_all, backbone=backbones.get(arch)
            )
            for arch in archs
        ]

    def names(self) -> list[str]:
        """Canonical names, each once."""
        return list(dict.fromkeys(DetectorChoice(arch, plugin=self.plugin).arch for arch in self.arch))


@dataclass(frozen=True)
class Reproduction(AssessmentOptions, Explaining, Confidence):
    """Analyses.

    Raises:
        UserError: Flags that exclude each other.
    """

    real: Path | None = flag(None, "folder of real images, with --fake instead of a data set", metavar="DIR")
    fake: Path | None = flag(None, "folder of generated images", metavar="DIR")
    name: str = flag("my_images", "what these are called in the results", parse=plain_name, metavar="NAME")
    topk: tuple[str, ...] = flag(
        (),
        "feature maps to look at; absent: the paper's 114 for resnet50, 27 for efb0, the same share for others",
        metavar="K|ARCH=K",
    )
    relevances: tuple[str, ...] = flag(
        (), "ranking of each; else one is looked for, or computed", metavar="FILE|ARCH=FILE"
    )
    rank_on: str | None = flag(
        None,
        "generator to compute a ranking on; absent: progan_val, or else the first generator",
        parse=plain_name,
        metavar="NAME",
    )
    draws: int = flag(5, "random choices of each kind", parse=positive)
    patches: int = flag(5, "patches of each feature map", parse=positive)
    examples: int = flag(
        1, "reals and fakes of each generator whose relevance opens the report; 0: no examples", parse=count
    )
    maps_drawn: int = flag(0, "draw histograms and collages of the first N feature maps; 0: of all", parse=count)
    pdf: bool = flag(True, "save figures as PDF, too: for papers; PNG alone is much faster")
    only: tuple[Step, ...] = flag((), "these analyses, and what they need, without the report; absent: all")
    report_only: bool = flag(
        False, "draw report.html anew from the files of an earlier run in --output_dir, and nothing else"
    )
    single_file: bool = flag(False, "put all pictures into report.html, so that it can be sent alone")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.report_only and self.only:
            raise UserError("--only and --report_only exclude each other: leave one out")
        if (self.real is None) != (self.fake is None):
            raise UserError("--real and --fake go together: give a folder of real and a folder of fake images")

    @property
    def steps(self) -> Sequence[Step]:
        """What is wanted."""
        return self.only or STEPS


def by_architecture(
    flag_name: str, given: Sequence[str], archs: Sequence[str], kind: Callable[[str], T]
) -> dict[str, T]:
    """Values of a flag by architecture, given as ARCH=VALUE each, or as plain values in the order of --arch.

    Raises:
        UserError: An unknown architecture, two values for one, or plain values that do not fit --arch.

    >>> by_architecture("--topk", ["efb0=27"], ["resnet50", "efb0"], int)
    {'efb0': 27}
    >>> by_architecture("--topk", ["5", "6"], ["resnet50", "efb0"], int)
    {'resnet50': 5, 'efb0': 6}
    """
    parts = [text.partition("=") for text in given]
    named = [(_canonical(name) if sign else None, name + sign + value, value) for name, sign, value in parts]
    if given and not any(arch for arch, _, _ in named):
        if len(given) != len(archs):
            raise UserError(
                f"{flag_name}: {len(given)} values for {len(archs)} architectures ({', '.join(archs)}): "
                f"give one for each in the same order, or {flag_name} {archs[0]}=VALUE"
            )
        return {arch: _parsed(flag_name, value, kind) for arch, value in zip(archs, given, strict=True)}
    values: dict[str, T] = {}
    for arch, text, value in named:
        if arch is None or arch not in archs:
            raise UserError(f"{flag_name} {text[:80]}: name an architecture of --arch, {flag_name} {archs[0]}=VALUE")
        if arch in values:
            raise UserError(f"{flag_name} {arch}=...: given twice: give one value for each architecture")
        values[arch] = _parsed(flag_name, value, kind)
    return values


def _canonical(name: str) -> str | None:
    from detectors.networks import canonical_architecture

    try:
        return canonical_architecture(name)
    except UserError:
        return None


def _parsed(flag_name: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise UserError(f"{flag_name} {text[:80]}: {error}") from error
