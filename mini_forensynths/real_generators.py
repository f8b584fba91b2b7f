"""Published super-resolution GANs, and enlargement without any network: fakes that did not come from our own training.

Real-ESRGAN (Wang, Xie, Dong, Shan: Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data,
ICCV Workshops 2021). Texture and edges of its images are made by the network; their content is a photograph's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu

from mini_forensynths.files import load_weights

_GROWTH, _WIDTH = 32, 64  # channels that a dense layer adds; of all other layers
_RESIDUAL = 0.2
_FACTOR = 4  # of every network
_BORDER = 8  # pixels mirrored around what is enlarged, and cut away again


class _DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for index in range(5):
            outputs = _WIDTH if index == 4 else _GROWTH
            self.add_module(f"conv{index + 1}", _conv(_WIDTH + index * _GROWTH, outputs))

    def forward(self, features: Tensor) -> Tensor:
        seen = features
        for index in range(1, 5):
            seen = torch.cat([seen, leaky_relu(self.get_submodule(f"conv{index}")(seen), 0.2)], dim=1)
        return features + _RESIDUAL * self.get_submodule("conv5")(seen)


class _TripleBlock(nn.Module):
    """Residual in residual dense block of ESRGAN."""

    def __init__(self) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = _DenseBlock(), _DenseBlock(), _DenseBlock()

    def forward(self, features: Tensor) -> Tensor:
        return features + _RESIDUAL * self.rdb3(self.rdb2(self.rdb1(features)))


class RRDBNet(nn.Module):
    """Generator of ESRGAN and Real-ESRGAN: images (N, 3, H, W) of 0..1 to (N, 3, 4 H, 4 W), not clipped.

    Args:
        blocks: Residual in residual dense blocks.
    """

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv_first = _conv(3, _WIDTH)
        self.body = nn.Sequential(*(_TripleBlock() for _ in range(blocks)))
        self.conv_body = _conv(_WIDTH, _WIDTH)
        self.conv_up1, self.conv_up2 = _conv(_WIDTH, _WIDTH), _conv(_WIDTH, _WIDTH)
        self.conv_hr, self.conv_last = _conv(_WIDTH, _WIDTH), _conv(_WIDTH, 3)

    def forward(self, images: Tensor) -> Tensor:
        first = self.conv_first(images)
        features = first + self.conv_body(self.body(first))
        for conv in (self.conv_up1, self.conv_up2):
            features = leaky_relu(conv(interpolate(features, scale_factor=2.0, mode="nearest")), 0.2)
        return self.conv_last(leaky_relu(self.conv_hr(features), 0.2))


class SRVGG(nn.Module):
    """The compact generator of Real-ESRGAN's video models: images (N, 3, H, W) of 0..1 to (N, 3, 4 H, 4 W)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, _WIDTH), nn.PReLU(_WIDTH)]
        for _ in range(16):
            layers += [_conv(_WIDTH, _WIDTH), nn.PReLU(_WIDTH)]
        self.body = nn.Sequential(*layers, _conv(_WIDTH, 3 * _FACTOR**2))

    def forward(self, images: Tensor) -> Tensor:
        enlarged = interpolate(images, scale_factor=float(_FACTOR), mode="nearest")
        return nn.functional.pixel_shuffle(self.body(images), _FACTOR) + enlarged


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "x4plus-anime": partial(RRDBNet, 6),
    "animevideo": SRVGG,
    "x4plus": partial(RRDBNet, 23),
}
"""Makers of the networks by the name of their weights, `<name>.safetensors`."""
OPTIONAL = "x4plus"
"""The one whose weights, 33 MB, do not come with the project."""


@dataclass(frozen=True)
class Enlargement:
    """A way of making fakes from photographs.

    Attributes:
        name: Of its folders.
        weights: Key of `NETWORKS`; empty: bicubic interpolation, a control without any network.
        shrink: The photograph is shrunk so many times (box filter) before.
        after: How the enlarged image comes to the size of the photograph, if it has another: `bicubic`, as the package
            that the weights come from does it, or `box`, the mean of the pixels of a square.
    """

    name: str
    weights: str
    shrink: int
    after: str = "bicubic"


ENLARGEMENTS = (
    Enlargement("x4plus-anime", "x4plus-anime", 4),
    Enlargement("animevideo-x2", "animevideo", 2),
    Enlargement("animevideo-re4", "animevideo", 1, "box"),
    Enlargement("x4plus", "x4plus", 4),
    Enlargement("bicubic-x2", "", 2),
    Enlargement("bicubic-x4", "", 4),
)
"""The first one trains detectors; `-re4` is enlarged first and then reduced: sharp, and hard to tell from reals."""


def load_network(name: str, path: Path) -> nn.Module:
    """A network of `NETWORKS` in evaluation mode, float32 on the CPU.

    Raises:
        UserError: The file is missing, damaged, or of another network.
    """
    return load_weights(NETWORKS[name](), name, path).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def enlarge(way: Enlargement, network: nn.Module | None, image: np.ndarray) -> np.ndarray:
    """The fake of a photograph, uint8 (H, W, 3) of any size to the same, rounded as a saved image is.

    Args:
        way: How.
        network: That of `way.weights`; None if it has none.
        image: The photograph.
    """
    height, width = image.shape[:2]
    border = _BORDER * way.shrink
    wide = np.pad(image, ((border, border + -height % 4), (border, border + -width % 4), (0, 0)), mode="symmetric")
    size = wide.shape[1], wide.shape[0]
    small = Image.fromarray(wide).reduce(way.shrink)
    if network is None:
        enlarged = np.asarray(small.resize(size, Image.Resampling.BICUBIC))
    else:
        planes = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255.0
        large = network(planes.contiguous(memory_format=torch.channels_last))
        if way.after == "box" and way.shrink < _FACTOR:
            large = nn.functional.avg_pool2d(large, _FACTOR // way.shrink)
        elif way.shrink < _FACTOR:
            large = interpolate(large, scale_factor=way.shrink / _FACTOR, mode="bicubic")
        enlarged = (large[0].clamp(0.0, 1.0) * 255.0).round().byte().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(enlarged[border : border + height, border : border + width])


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
