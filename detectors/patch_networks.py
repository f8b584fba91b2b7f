"""Patch classifiers: an image classifier cut off after some blocks, with two logits at every place of what is left.

Chai, Bau, Lim, Isola: What makes fake images detectable? Understanding properties that generalize (ECCV 2020), Sec. 3.
The networks and the names of their tensors are those of the published checkpoints, class 0 is fake.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from detectors.heads import LogitMap, OneLogit
from detectors.networks import Architecture, register_architecture
from detectors.transforms import Normalise
from utils.errors import UserError

PREFIX = "patchforensics-"
"""Of the names in the registry; what follows is the published `which_model_netD`."""
HALF = Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
HEAD = "convout"
FAKE_CLASS = 0
Initialisation = Literal["normal", "xavier", "kaiming", "orthogonal"]

_GAIN = 0.02  # of xavier and orthogonal, and the standard deviation of normal and of batch norms
_CLASSES = 1000  # of the complete networks
_DEPTHS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "18": (BasicBlock, (2, 2, 2, 2)),
    "34": (BasicBlock, (3, 4, 6, 3)),
    "50": (Bottleneck, (3, 4, 6, 3)),
    "101": (Bottleneck, (3, 4, 23, 3)),
    "152": (Bottleneck, (3, 8, 36, 3)),
}
_TWINS = {1: ("101", "152"), 2: ("101",)}  # depths that are the same as 50 up to this stage
_STEM_CHANNELS = 64
_STEM = ("conv1", "bn1", "relu", "maxpool")
_WIDE_NETS = ((7, 1), (3, 2))  # kernel and dilation of those that have a name in the registry
# Input and output channels, repetitions and stride of Xception's blocks; only the first has no ReLU in front, and only
# the last changes its channels in the last repetition.
_BLOCKS = ((64, 128, 2, 2), (128, 256, 2, 2), (256, 728, 2, 2), *[(728, 728, 3, 1)] * 8, (728, 1024, 2, 2))
_XCEPTION_ENDS = [*(f"block{n + 1}" for n in range(len(_BLOCKS))), *(f"relu{n + 1}" for n in range(4))]
_FEATURES = 2048


class SeparableConv(nn.Sequential):
    """A convolution of each channel, then of each pixel, without anything between them."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        depthwise = nn.Conv2d(inputs, inputs, kernel, padding=kernel // 2, groups=inputs, bias=False)
        super().__init__(OrderedDict(conv1=depthwise, pointwise=nn.Conv2d(inputs, outputs, 1, bias=False)))


class Block(nn.Module):
    """Separable convolutions with a connection past them (Chollet, CVPR 2017, Fig. 5)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        repetitions: int,
        stride: int = 1,
        kernel: int = 3,
        *,
        start_with_relu: bool = True,
        grow_first: bool = True,
    ) -> None:
        super().__init__()
        self.skip = self.skipbn = None
        if inputs != outputs or stride != 1:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.skipbn = nn.BatchNorm2d(outputs)
        grown = [outputs if grow_first else inputs] * (repetitions - 1)
        steps: list[nn.Module] = []
        for before, after in zip([inputs, *grown], [*grown, outputs], strict=True):
            steps += [nn.ReLU(), SeparableConv(before, after, kernel), nn.BatchNorm2d(after)]
        if stride != 1:
            steps.append(nn.MaxPool2d(3, stride, padding=1))
        self.rep = nn.Sequential(*steps[0 if start_with_relu else 1 :])

    def forward(self, x: Tensor) -> Tensor:
        past = x if self.skip is None or self.skipbn is None else self.skipbn(self.skip(x))
        return self.rep(x) + past


def _xception_layers() -> Iterator[tuple[str, nn.Module]]:
    for number, (inputs, outputs, stride) in enumerate(((3, 32, 2), (32, 64, 1)), start=1):
        yield f"conv{number}", nn.Conv2d(inputs, outputs, 3, stride=stride, bias=False)
        yield f"bn{number}", nn.BatchNorm2d(outputs)
        yield f"relu{number}", nn.ReLU()
    for number, sizes in enumerate(_BLOCKS, start=1):
        yield (
            f"block{number}",
            Block(*sizes, start_with_relu=number > 1, grow_first=number < len(_BLOCKS)),
        )
    for number, (inputs, outputs) in enumerate(((1024, 1536), (1536, _FEATURES)), start=3):
        yield f"conv{number}", SeparableConv(inputs, outputs, 3)
        yield f"bn{number}", nn.BatchNorm2d(outputs)
        yield f"relu{number}", nn.ReLU()


def _long_xception_layers() -> Iterator[tuple[str, nn.Module]]:
    for name, layer in _xception_layers():
        if name == "block3":
            break
        yield name, layer
    yield "pblock3", Block(256, 728, 2, kernel=1)
    yield "pblock4", Block(728, 728, 3, kernel=1)


def _resnet_layers(depth: str) -> Iterator[tuple[str, nn.Module]]:
    kind, numbers = _DEPTHS[depth]
    yield "conv1", nn.Conv2d(3, _STEM_CHANNELS, 7, stride=2, padding=3, bias=False)
    yield "bn1", nn.BatchNorm2d(_STEM_CHANNELS)
    yield "relu", nn.ReLU()
    yield "maxpool", nn.MaxPool2d(3, stride=2, padding=1)
    channels = _STEM_CHANNELS
    for stage, number in enumerate(numbers, start=1):
        width, stride = 64 * 2 ** (stage - 1), 1 if stage == 1 else 2
        past = None
        if stride != 1 or channels != width * kind.expansion:
            outputs = width * kind.expansion
            past = nn.Sequential(nn.Conv2d(channels, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        blocks = [kind(channels, width, stride, past)]
        channels = width * kind.expansion
        yield f"layer{stage}", nn.Sequential(*blocks, *(kind(channels, width) for _ in range(number - 1)))


def _layers(family: str) -> Iterator[tuple[str, nn.Module]]:
    """Layers of a complete network by name, made one after the other."""
    if family == "xception":
        return _xception_layers()
    return _long_xception_layers() if family == "longxception" else _resnet_layers(family.removeprefix("resnet"))


class WideNet(nn.Module):
    """One wide convolution, then 1x1 convolutions; with dilation, its padding stays that of none."""

    def __init__(self, kernel: int, dilation: int, outputs: int) -> None:
        super().__init__()
        first = nn.Conv2d(3, 256, kernel, stride=2, padding=kernel // 2, dilation=dilation, bias=False)
        self.model = nn.Sequential(
            first,
            nn.BatchNorm2d(256),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(256, 256, 1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 1),
            nn.ReLU(),
            nn.Conv2d(256, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def build_patch_network(name: str, outputs: int = 2) -> nn.Module:
    """A network by its published name, (N, 3, H, W) to (N, outputs, H', W'), with PyTorch's own random weights.

    Raises:
        UserError: There is no such network.
    """
    if wide := re.fullmatch(r"widenet_kw([1-9]\d*)_d([1-9]\d*)", name):
        return WideNet(int(wide[1]), int(wide[2]), outputs)
    family, last = _parts(name)
    return _cut(_layers(family), last, outputs)


def build_xception(outputs: int = 2) -> nn.Module:
    """The complete Xception, which classifies whole images: (N, 3, H, W) to (N, outputs)."""
    ends = ("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("last_linear", nn.Linear(_FEATURES, outputs))
    return nn.Sequential(OrderedDict([*_xception_layers(), *ends]))


def _parts(name: str) -> tuple[str, str]:
    """Complete network and last layer of a published name."""
    family, _, last = name.partition("_")
    if family == "longxception" and not last:
        return family, "pblock4"
    known = {"xception": _XCEPTION_ENDS}
    known |= {f"resnet{depth}": [*_STEM, *(f"layer{n + 1}" for n in range(4))] for depth in _DEPTHS}
    if last not in known.get(family, ()):
        raise UserError(
            f"no patch classifier is called {name!r}: use xception_block1 to xception_block12, xception_relu1 to "
            "xception_relu4, longxception, widenet_kw<K>_d<D>, or resnet18_layer1 and the like (18, 34, 50, 101, 152; "
            "layer1 to layer4, conv1, bn1, relu, maxpool)"
        )
    return family, last


def _cut(layers: Iterable[tuple[str, nn.Module]], last: str, outputs: int) -> nn.Sequential:
    """The layers up to the last one that is kept, and the 1x1 convolution that reads it."""
    kept: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in layers:
        kept[name] = layer
        if name == last:
            break
    kept[HEAD] = nn.Conv2d(_channels(kept.values()), outputs, 1)
    return nn.Sequential(kept)


def published_start(name: str, seed: int, kind: Initialisation = "xavier") -> nn.Module:
    """A patch classifier of two classes with the random weights that published training starts from.

    The published code makes the complete network before it cuts it, so the random numbers of the layers behind the cut
    are drawn, too. The state of PyTorch's generator is left as it was found.

    Raises:
        UserError: As `build_patch_network`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name.startswith("widenet"):
            model = build_patch_network(name)
        else:
            family, last = _parts(name)
            layers = OrderedDict(_layers(family))
            if family != "longxception":
                nn.Linear(_channels(layers.values()), _CLASSES)  # drawn, and not kept
            model = _cut(layers.items(), last, 2)
        initialise(model, kind)
    return model


def _channels(layers: Iterable[nn.Module]) -> int:
    """What the last of the layers puts out; before the first batch norm that of the stem."""
    norms = [module for layer in layers for module in layer.modules() if isinstance(module, nn.BatchNorm2d)]
    return norms[-1].num_features if norms else _STEM_CHANNELS


@torch.no_grad()
def initialise(model: nn.Module, kind: Initialisation) -> None:
    """Draw weights anew, layer by layer: of convolutions and linear layers as asked for, of norms near 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, _GAIN)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            match kind:
                case "normal":
                    nn.init.normal_(module.weight, 0.0, _GAIN)
                case "xavier":
                    nn.init.xavier_normal_(module.weight, _GAIN)
                case "kaiming":
                    nn.init.kaiming_normal_(module.weight)
                case "orthogonal":
                    nn.init.orthogonal_(module.weight, _GAIN)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _register(name: str, gradcam_layer: str, *aliases: str) -> None:
    register_architecture(
        Architecture(
            f"{PREFIX}{name}",
            partial(build_patch_network, name),
            last_layer="model.8" if name.startswith("widenet") else HEAD,
            gradcam_layer=gradcam_layer,
            aliases=tuple(f"{PREFIX}{alias}" for alias in aliases),
            transform=HALF,
            head=LogitMap(mean_of="probabilities"),
            fake_class=FAKE_CLASS,
            source="made anew after Chai et al. (ECCV 2020)",
        )
    )


def _register_all() -> None:
    for last in _XCEPTION_ENDS:
        _register(f"xception_{last}", last)
    _register("longxception", "pblock4")
    # The same layers make up the beginnings of several depths.
    for last in _STEM:
        _register(f"resnet18_{last}", last, *(f"resnet{depth}_{last}" for depth in _DEPTHS if depth != "18"))
    for depth in _DEPTHS:
        for stage in range(1, 5):
            if depth not in _TWINS.get(stage, ()):
                twins = _TWINS.get(stage, ()) if depth == "50" else ()
                _register(f"resnet{depth}_layer{stage}", f"layer{stage}", *(f"resnet{d}_layer{stage}" for d in twins))
    for kernel, dilation in _WIDE_NETS:
        _register(f"widenet_kw{kernel}_d{dilation}", "model.7")
    register_architecture(
        Architecture(
            f"{PREFIX}xception",
            build_xception,
            last_layer="last_linear",
            gradcam_layer="relu4",
            transform=HALF,
            head=OneLogit(),
            fake_class=FAKE_CLASS,
            source="made anew after Chollet (CVPR 2017) and Chai et al. (ECCV 2020)",
        )
    )


_register_all()
