"""Simulated generators: small convolutional autoencoders, one for each family of up-sampling layers.

After AutoGAN (Zhang, Karaman, Chang: Detecting and Simulating Artifacts in GAN Fake Images, WIFS 2019, Sec. 3): what a
GAN's decoder leaves in its images is imitated by an autoencoder with the same kind of up-sampling, which needs
photographs only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mini_forensynths.files import load_weights

_BORDER = 16  # pixels mirrored around an image and cut away again: zero padding must not give a fake away


@dataclass(frozen=True)
class GeneratorSpec:
    """What distinguishes one simulated generator from another.

    Attributes:
        name: Part of folder and file names.
        upsampling: Key of `UPSAMPLING`.
        factor: Side of the image over that of the code: 2, 4 or 8.
        code_channels: Channels of the code.
        width: Channels next to the image; twice as many at each coarser level.
        pixel_loss: `l1` or `l2`.
        skip_rgb: Every level adds its own RGB image to the enlarged one of the level before (as StyleGAN2, Karras et
            al., CVPR 2020), instead of a single RGB image at the end.
    """

    name: str
    upsampling: str
    factor: int
    code_channels: int
    width: int = 16
    pixel_loss: str = "l1"
    skip_rgb: bool = False


SPECS = (
    GeneratorSpec("transposed4", "transposed4", 2, 8),
    GeneratorSpec("transposed3", "transposed3", 2, 5, pixel_loss="l2"),
    GeneratorSpec("nearest", "nearest", 2, 6),
    GeneratorSpec("bilinear", "bilinear", 2, 6, pixel_loss="l2"),
    GeneratorSpec("pixelshuffle", "pixelshuffle", 2, 6),
    GeneratorSpec("skip", "bilinear", 4, 40, skip_rgb=True),
)
"""The generators of the benchmark; the first one trains the detectors."""


class SimulatedGenerator(nn.Module):
    """An autoencoder; its decoder is what is simulated.

    Args:
        spec: Architecture.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        levels = spec.factor.bit_length() - 1
        widths = [spec.width * 2**level for level in range(levels + 1)]
        encoder: list[nn.Module] = [_conv(3, widths[0]), nn.ReLU()]
        for narrow, wide in pairwise(widths):
            encoder += [_conv(narrow, wide, stride=2), nn.ReLU()]
        self.encoder = nn.Sequential(*encoder, _Residual(widths[-1]), _conv(widths[-1], spec.code_channels))
        self.start = nn.Sequential(_conv(spec.code_channels, widths[-1]), nn.ReLU(), _Residual(widths[-1]))
        steps = [(widths[level], widths[level - 1]) for level in range(levels, 0, -1)]
        self.levels = nn.ModuleList(
            nn.Sequential(UPSAMPLING[spec.upsampling](wide, narrow), nn.ReLU(), _conv(narrow, narrow), nn.ReLU())
            for wide, narrow in steps
        )
        outputs = [narrow for _, narrow in steps] if spec.skip_rgb else [widths[0]]
        self.to_rgb = nn.ModuleList(_conv(channels, 3) for channels in outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), about 0..1, to their reconstructions, not clipped; sides are multiples of the factor."""
        features = self.start(self.encoder(images - 0.5))
        image: Tensor | None = None
        for index, level in enumerate(self.levels):
            features = level(features)
            if self.spec.skip_rgb:
                layer = self.to_rgb[index](features)
                image = layer if image is None else layer + interpolate(image, scale_factor=2.0, mode="bilinear")
        return 0.5 + (self.to_rgb[0](features) if image is None else image)


@torch.no_grad()
def reconstruct(generator: SimulatedGenerator, image: np.ndarray) -> np.ndarray:
    """The fake of a photograph: uint8 (H, W, 3) of any size to the same.

    The image is mirrored at its border, so that the fake has no edge of its own, and rounded as a saved image is.
    """
    height, width = image.shape[:2]
    factor = generator.spec.factor
    right, below = _BORDER + -width % factor, _BORDER + -height % factor
    # NumPy mirrors as often as a small image needs it, PyTorch once
    wide = np.pad(image, ((_BORDER, below), (_BORDER, right), (0, 0)), mode="reflect")
    planes = torch.from_numpy(wide).permute(2, 0, 1)[None].float() / 255.0
    fake = generator(planes)[0, :, _BORDER : _BORDER + height, _BORDER : _BORDER + width]
    return (fake.clamp(0.0, 1.0) * 255.0).round().byte().permute(1, 2, 0).numpy()


def load_generator(spec: GeneratorSpec, path: Path) -> SimulatedGenerator:
    """The generator in evaluation mode, float32 on the CPU.

    Raises:
        UserError: The file is missing, damaged, or of another generator.
    """
    return load_weights(SimulatedGenerator(spec), spec.name, path)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels), nn.ReLU(), _conv(channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.body(features)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


def _interpolated(mode: str) -> Callable[[int, int], nn.Module]:
    return lambda inputs, outputs: nn.Sequential(nn.Upsample(scale_factor=2.0, mode=mode), _conv(inputs, outputs))


UPSAMPLING: dict[str, Callable[[int, int], nn.Module]] = {
    "transposed4": lambda inputs, outputs: nn.ConvTranspose2d(inputs, outputs, 4, 2, padding=1),
    "transposed3": lambda inputs, outputs: nn.ConvTranspose2d(inputs, outputs, 3, 2, padding=1, output_padding=1),
    "nearest": _interpolated("nearest"),
    "bilinear": _interpolated("bilinear"),
    "pixelshuffle": lambda inputs, outputs: nn.Sequential(_conv(inputs, 4 * outputs), nn.PixelShuffle(2)),
}
"""Makers of layers that double height and width, by family: (channels in, channels out) to a module."""
