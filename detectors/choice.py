"""Which detector: settings, and the network that they name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.settings import flag, plain_name


@dataclass(frozen=True)
class DetectorChoice:
    """Detector."""

    arch: str = flag("resnet50", "architecture: resnet50, efb0, ...")
    blur_jpg: str = flag("0.5", "training of the published detectors", parse=plain_name, metavar="TAG")
    weights: Path | None = flag(None, "checkpoint; else weights/<arch>/blur_jpg_prob<TAG>.pth", metavar="FILE")
    precision: Literal["fp32", "bf16"] = flag("fp32", "of the convolutions")
    device: str = flag("auto", "auto: a GPU if there is one", metavar="auto|cpu|cuda|cuda:N")


def load_chosen(choice: DetectorChoice, ranks: Any = None) -> Any:
    """The detector that the settings name."""
    from detectors.detector import load_detector
    from detectors.devices import resolve_device

    device = resolve_device(choice.device)
    detector = load_detector(
        choice.arch, choice.weights, device if ranks is None else ranks.device(device), blur_jpg=choice.blur_jpg
    )
    detector.precision = choice.precision
    return detector
