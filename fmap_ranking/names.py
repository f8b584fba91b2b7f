"""Names of feature maps: one channel of one convolution or MLP, `layer1.0.conv1.#63(T=64)` in ranking files."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Names come from files of other people and end up in folder names: dotted identifiers only, and short enough.
_LAYER = re.compile(r"(?=.{1,200}\Z)[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*", re.ASCII)
_KEY = re.compile(r"(?P<layer>[^#]*)\.#(?P<index>0|[1-9][0-9]{0,8})\(T=(?P<channels>[1-9][0-9]{0,8})\)", re.ASCII)


@dataclass(frozen=True, order=True, slots=True)
class FeatureMap:
    """One output channel of one convolution, or one hidden unit of an MLP.

    Args:
        layer: dotted module name of the convolution or dense layer in the detector.
        index: channel of that layer, 0 <= index < channels.
        channels: number of output channels of the layer.

    Raises:
        ValueError: the layer name is not made of letters, digits, `_` and single dots, or the index is out
            of range.
    """

    layer: str
    index: int
    channels: int

    def __post_init__(self) -> None:
        if not _LAYER.fullmatch(self.layer):
            raise ValueError(f"layer name {self.layer[:80]!r} is not a dotted name of letters, digits and '_'")
        if not 0 <= self.index < self.channels:
            raise ValueError(f"layer {self.layer} has {self.channels} channels, so there is no channel {self.index}")

    @property
    def key(self) -> str:
        """Name used in ranking files.

        >>> FeatureMap("layer1.0.conv1", 63, 64).key
        'layer1.0.conv1.#63(T=64)'
        """
        return f"{self.layer}.#{self.index}(T={self.channels})"

    @property
    def folder_name(self) -> str:
        """Name for a folder of this map's files.

        >>> FeatureMap("layer1.0.conv1", 63, 64).folder_name
        'layer1.0.conv1.#63'
        """
        return f"{self.layer}.#{self.index}"


def maps_of(layers: Iterable[tuple[str, int]]) -> list[FeatureMap]:
    """All maps of layers, each given by name and number of channels, in order.

    >>> [entry.key for entry in maps_of([("conv1", 1), ("conv2", 2)])]
    ['conv1.#0(T=1)', 'conv2.#0(T=2)', 'conv2.#1(T=2)']
    """
    return [FeatureMap(name, index, channels) for name, channels in layers for index in range(channels)]


def parse_key(text: str) -> FeatureMap:
    """Read a feature map from its key, the inverse of `FeatureMap.key`.

    Raises:
        ValueError: the text is no key, or names a channel its layer does not have.

    >>> parse_key("_conv_stem.#6(T=32)")
    FeatureMap(layer='_conv_stem', index=6, channels=32)
    """
    match = _KEY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:80]!r} is not a feature-map key such as 'layer1.0.conv1.#63(T=64)'")
    return FeatureMap(match["layer"], int(match["index"]), int(match["channels"]))
