"""A tiny detector and tiny images for tests of training and evaluation; also a script: torchrun starts it."""

import runpy
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from detectors.networks import Architecture, architectures, register_architecture
from utils.figures import figure_formats

SOURCE = Path(__file__).resolve().parents[1] / "src"


class _Network(nn.Module):
    """Without batch norm, so that the images of a batch do not matter to each other."""

    def __init__(self, outputs: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(8, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.body(x).mean(dim=(2, 3))))


class _NotANumber(_Network):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * float("nan")


def register_tiny() -> None:
    """Register `tiny`, `tiny-dropout` and `tiny-nan`, once."""
    if "tiny" in architectures():
        return
    for name, build in (
        ("tiny", partial(_Network, dropout=0.0)),
        ("tiny-dropout", partial(_Network, dropout=0.5)),
        ("tiny-nan", partial(_NotANumber, dropout=0.0)),
    ):
        register_architecture(Architecture(name, build, last_layer="fc", gradcam_layer="body"))


def write_images(root: Path, classes: tuple[str, ...] = ("cat", "dog"), number: int = 12, size: int = 24) -> Path:
    """`<root>/<class>/{0_real,1_fake}/<n>.png`: reals are noise, fakes are noise with a raised red checkerboard."""
    for class_number, class_name in enumerate(classes):
        for label, folder_name in enumerate(("0_real", "1_fake")):
            folder = root / class_name / folder_name
            folder.mkdir(parents=True)
            for place in range(number):
                generator = np.random.default_rng([class_number, label, place])
                image = generator.integers(60, 160, (size, size, 3))
                image[::2, ::2, 0] += 80 * label
                Image.fromarray(image.astype(np.uint8)).save(folder / f"{place}.png")
    return root


if __name__ == "__main__":
    register_tiny()
    with figure_formats():
        runpy.run_path(str(SOURCE / f"{sys.argv.pop(1)}.py"), run_name="__main__")
