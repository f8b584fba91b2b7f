"""The registry of detector architectures: names, families, and how to build each of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

import torchvision
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import url_map as efficientnet_urls
from torch import nn

import detectors.efficientnet_layers  # noqa: F401 (registers them)
from utils.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Builder = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Architecture:
    """What the project has to know of one architecture.

    Attributes:
        name: canonical name, part of every output path.
        family: the family whose relevance rules and canonisation apply (`resnet`, `efficientnet`, ...).
        build: `build(outputs)` returns a randomly initialised network, (N, 3, H, W) float to (N, outputs).
        head: name of the last linear layer; its weight has one row per output.
        gradcam_layer: name of the layer whose output Grad-CAM weights.
        imagenet_files: names under which the public ImageNet checkpoints of this architecture are known.
        mean, std: per-channel normalisation of images scaled to 0..1.
    """

    name: str
    family: str
    build: Builder
    head: str
    gradcam_layer: str
    imagenet_files: tuple[str, ...] = ()
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


_registry: dict[str, Architecture] = {}
_aliases: dict[str, str] = {}


def register_architecture(
    name: str,
    build: Builder,
    *,
    family: str,
    head: str,
    gradcam_layer: str,
    aliases: Iterable[str] = (),
    imagenet_files: Iterable[str] = (),
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Architecture:
    """Add an architecture under `name` (any case) and its aliases.

    Raises:
        ValueError: if the name is not fit for a folder name, or it or an alias is taken.
    """
    canonical = name.lower()
    if not canonical or PurePosixPath(canonical).name != canonical or canonical in {".", ".."}:
        raise ValueError(f"architecture name {name!r} is not fit for a folder name")
    spellings = {canonical, *(alias.lower() for alias in aliases)}
    taken = sorted(spellings & set(_aliases))
    if taken:
        raise ValueError(f"architecture name {', '.join(taken)} is already registered")
    architecture = Architecture(canonical, family, build, head, gradcam_layer, tuple(imagenet_files), mean, std)
    _registry[canonical] = architecture
    _aliases.update(dict.fromkeys(spellings, canonical))
    return architecture


def unregister_architecture(name: str) -> None:
    """Take an architecture and its aliases out of the registry again.

    Raises:
        UserError: if there is no such architecture.
    """
    canonical = canonical_architecture(name)
    del _registry[canonical]
    for alias in [alias for alias, target in _aliases.items() if target == canonical]:
        del _aliases[alias]


def architectures() -> list[str]:
    """Canonical names of all registered architectures, in the order of registration."""
    return list(_registry)


def canonical_architecture(name: str) -> str:
    """The canonical name for a name or alias in any case: `EfficientNet-B0` becomes `efb0`.

    Raises:
        UserError: if nothing is registered under the name.
    """
    try:
        return _aliases[name.strip().lower()]
    except KeyError:
        raise UserError(f"unknown architecture {name!r}: choose one of {', '.join(_registry)}") from None


def get_architecture(name: str) -> Architecture:
    """The registry entry for a name or alias.

    Raises:
        UserError: if nothing is registered under the name.
    """
    return _registry[canonical_architecture(name)]


def build_model(arch: str, outputs: int = 1) -> nn.Module:
    """A randomly initialised network, (N, 3, H, W) float to (N, outputs).

    Raises:
        UserError: if the architecture is unknown.
    """
    return get_architecture(arch).build(outputs)


def _register_resnet(depth: int) -> None:
    name = f"resnet{depth}"

    def build(outputs: int) -> nn.Module:
        return torchvision.models.get_model(name, weights=None, num_classes=outputs)

    files = [PurePosixPath(weights.url).name for weights in torchvision.models.get_model_weights(name)]
    register_architecture(name, build, family="resnet", head="fc", gradcam_layer="layer4", imagenet_files=files)


def _register_efficientnet(scale: int) -> None:
    name = f"efficientnet-b{scale}"

    def build(outputs: int) -> nn.Module:
        # image_size=None: padding from the size of each input, as the detectors were trained
        model = EfficientNet.from_name(name, num_classes=outputs, image_size=None)
        # the memory-efficient swish is an autograd function that differentiates only once
        model.set_swish(memory_efficient=False)
        return model

    register_architecture(
        f"efb{scale}",
        build,
        family="efficientnet",
        head="_fc",
        gradcam_layer="_conv_head",
        aliases=[name],
        imagenet_files=[PurePosixPath(efficientnet_urls[name]).name],
    )


for _depth in (18, 34, 50, 101, 152):
    _register_resnet(_depth)
for _scale in range(8):
    _register_efficientnet(_scale)
