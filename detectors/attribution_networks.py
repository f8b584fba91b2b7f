"""Networks of decentralised source attribution: a primary module, and secondary modules that share its first layers.

Khoo, Lim, Phan: Transferable Class-Modelling for Decentralized Source Attribution of GAN-Generated Images (2022),
section 3. A primary tells generated from real images. A secondary tells the images of one generator from all others; it
reads the maps of `dRelu_04` of a primary, which stay as they are. Layers have their published names, from which
state dictionaries get theirs.

They are compared with networks that share no layers: `gdaconv`, the small convolutional network of Frank et al.
(Leveraging Frequency Analysis for Deep Fake Image Recognition, ICML 2020), and `postpool`, the post-pooling network of
Yu et al. (Attributing Fake Images to GANs, ICCV 2019), a quarter as wide.
"""

from collections import OrderedDict
from collections.abc import Sequence

from efficientnet_pytorch.utils import Conv2dDynamicSamePadding
from torch import nn

from detectors.networks import Architecture, register_architecture
from detectors.transforms import Normalise

PRIMARY, SECONDARY = "attribution", "attribution-secondary"
"""Names of the two networks in the registry."""
SYMMETRIC = Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Pixels to -1..1."""

# Filters, kernel and stride of each convolution; all but the first of a primary have a batch norm.
_PRIMARY = ((3, 3, 1), (8, 4, 2), (16, 3, 1), (16, 4, 2), (32, 3, 1), (32, 4, 2))
_SHARED = 4
_BRANCH = ((32, 3, 1), (32, 4, 2))
_LEAST_VARIANCE = 1e-3
_MOMENTUM = 0.01  # of PyTorch's kind; Keras calls it 0.99
_INIT_STD = 0.02
STRIDE = 8
"""Side of the input over that of the last maps."""
_SLOPE = 0.2
_LAST_SIDE = 4  # of the maps that the dense layers of `postpool` read


def primary_network(
    outputs: int = 1, *, channels: int = 3, side: int | None = None, decision: str = "d"
) -> nn.Sequential:
    """A primary module, or all of a network that is trained for attribution from the start.

    Args:
        outputs: Logits.
        channels: Of the input.
        side: Of the input, pixels, for a dense layer on all values of the last maps (published for spectra); without
            it the head averages over places, and images may have any size.
        decision: First letter of the head's names; `a` where the network attributes.
    """
    layers = _convolutions("d", channels, _PRIMARY)
    return _network(layers + _head(decision, _PRIMARY[-1][0], outputs, side))


def secondary_network(outputs: int = 1, *, channels: int = 3, side: int | None = None) -> nn.Sequential:
    """The shared layers of a primary and a secondary module on them; arguments as of `primary_network`."""
    layers = _convolutions("d", channels, _PRIMARY[:_SHARED])
    layers += _convolutions("a", _PRIMARY[_SHARED - 1][0], _BRANCH)
    return _network(layers + _head("a", _BRANCH[-1][0], outputs, side))


def shared_layers(network: nn.Sequential) -> nn.Sequential:
    """What a primary and its secondaries have in common: the layers up to `dRelu_04`, of either of them."""
    return _part(network, slice(None, _end_of_shared(network)))


def own_layers(network: nn.Sequential) -> nn.Sequential:
    """What comes after `shared_layers`."""
    return _part(network, slice(_end_of_shared(network), None))


def gdaconv(outputs: int = 1, *, channels: int = 3, side: int = 128) -> nn.Sequential:
    """Four convolutions, a dense layer on all values of the last maps."""
    layers: list[nn.Module] = []
    for number, filters in enumerate((3, 8, 16, 32)):
        layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU()]
        if number in (1, 2):
            layers.append(nn.AvgPool2d(2))
        channels = filters
    return _named([*layers, nn.Flatten(), nn.Linear(channels * (side // 4) ** 2, outputs)])


def postpool(outputs: int = 1, *, channels: int = 3, side: int = 128) -> nn.Sequential:
    """Seven convolutions, pooled to 4 x 4 before the last; two dense layers."""
    layers: list[nn.Module] = []
    for pair in ((4, 8), (8, 16), (16, 32)):
        for filters in pair:
            layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.LeakyReLU(_SLOPE)]
            channels = filters
        layers.append(nn.AvgPool2d(2))
        side //= 2
    while side > _LAST_SIDE:
        layers.append(nn.AvgPool2d(2))
        side //= 2
    layers += [nn.Conv2d(channels, 128, 3, padding=1), nn.LeakyReLU(_SLOPE), nn.Flatten()]
    return _named([*layers, nn.Linear(128 * side**2, 128), nn.LeakyReLU(_SLOPE), nn.Linear(128, outputs)])


BASELINES = {"gdaconv": gdaconv, "postpool": postpool}


def _part(network: nn.Sequential, places: slice) -> nn.Sequential:
    return nn.Sequential(OrderedDict(list(network.named_children())[places]))


def _end_of_shared(network: nn.Sequential) -> int:
    return list(dict(network.named_children())).index(f"dRelu_{_SHARED:02}") + 1


def _convolutions(letter: str, channels: int, rows: Sequence[tuple[int, int, int]]) -> list[tuple[str, nn.Module]]:
    layers: list[tuple[str, nn.Module]] = []
    for number, (filters, kernel, stride) in enumerate(rows, start=1):
        # pads as TensorFlow does, for any size
        layers.append((f"{letter}Conv_{number:02}", Conv2dDynamicSamePadding(channels, filters, kernel, stride)))
        if (letter, number) != ("d", 1):
            norm = nn.BatchNorm2d(filters, eps=_LEAST_VARIANCE, momentum=_MOMENTUM)
            layers.append((f"{letter}BNorm_{number:02}", norm))
        layers.append((f"{letter}Relu_{number:02}", nn.ReLU()))
        channels = filters
    return layers


def _head(letter: str, channels: int, outputs: int, side: int | None) -> list[tuple[str, nn.Module]]:
    places = 1 if side is None else (-(-side // STRIDE)) ** 2
    ends = (f"{letter}Flatten", nn.Flatten()), (f"{letter}Decision", nn.Linear(channels * places, outputs))
    return [(f"{letter}GAP", nn.AdaptiveAvgPool2d(1)), *ends] if side is None else [*ends]


def _network(layers: list[tuple[str, nn.Module]]) -> nn.Sequential:
    """Weights from N(0, 0.02) and biases 0, as published, from PyTorch's random numbers."""
    network = nn.Sequential(OrderedDict(layers))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, _INIT_STD)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network


def _named(layers: list[nn.Module]) -> nn.Sequential:
    """Numbered by kind, with the published first letters."""
    keras_names = {nn.Conv2d: "Conv", nn.Linear: "Dense"}
    count: dict[str, int] = {}
    named: list[tuple[str, nn.Module]] = []
    for layer in layers[:-1]:
        kind = keras_names.get(type(layer), type(layer).__name__)
        count[kind] = count.get(kind, 0) + 1
        named.append((f"bl{kind}_{count[kind]:02}", layer))
    return _network([*named, ("blDecision", layers[-1])])


_SOURCE = "Khoo, Lim, Phan 2022; trained weights of theirs come without a licence"
register_architecture(
    Architecture(
        PRIMARY,
        primary_network,
        last_layer="dDecision",
        gradcam_layer="dRelu_06",
        aliases=("attribution-primary",),
        transform=SYMMETRIC,
        source=_SOURCE,
    )
)
register_architecture(
    Architecture(
        SECONDARY,
        secondary_network,
        last_layer="aDecision",
        gradcam_layer="aRelu_02",
        transform=SYMMETRIC,
        source=_SOURCE,
    )
)
