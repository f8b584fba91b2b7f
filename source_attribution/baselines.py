"""Networks that secondary modules are compared with: `gdaconv` and `postpool`, whose layers share nothing.

The small convolutional network of Frank et al. (Leveraging Frequency Analysis for Deep Fake Image Recognition, ICML
2020), and the post-pooling network of Yu et al. (Attributing Fake Images to GANs, ICCV 2019), a quarter as wide.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from detectors.attribution_networks import initialise

_SLOPE = 0.2
_LAST_SIDE = 4  # of the maps that the dense layers of `postpool` read


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


def _named(layers: list[nn.Module]) -> nn.Sequential:
    """Numbered by kind, with the published first letters."""
    kinds = {nn.Conv2d: "Conv", nn.Linear: "Dense"}
    count: dict[str, int] = {}
    named: list[tuple[str, nn.Module]] = []
    for layer in layers[:-1]:
        kind = kinds.get(type(layer), type(layer).__name__)
        count[kind] = count.get(kind, 0) + 1
        named.append((f"bl{kind}_{count[kind]:02}", layer))
    network = nn.Sequential(OrderedDict([*named, ("blDecision", layers[-1])]))
    initialise(network)
    return network
