"""The registry of networks: how to build each of them, and how its input and output are to be read."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath
from typing import Protocol

import torchvision
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import url_map as efficientnet_urls
from torch import Tensor, nn

import detectors.efficientnet_layers  # noqa: F401 (makes them known)
from detectors.heads import Head, OneLogit
from detectors.transforms import Bounds, InputTransform, Normalise
from images.decoding import Crop
from lrp import RuleTable, ZBox, rule_table
from utils.errors import UserError

# Lowest and highest value of an ImageNet-normalised image over the three channels, as the published code rounds them.
_PUBLISHED_BOX = (-2.1179039, 2.64)

PLUGINS = "tff.detectors"
"""Group of entry points; each names a module that registers networks when it is imported."""

TIMM = "timm:"
"""Before the name of a network of timm, which is registered when it is asked for."""

BUILT_IN: tuple[str, ...] = (
    "detectors.convolutional",
    "detectors.vision_transformers",
    "detectors.patch_networks",
    "detectors.attribution_networks",
)
"""Modules of the project that do the same, imported when one of their networks is asked for."""


class Rules(Protocol):
    """What a network asks for: from the name of a rule to the rules of all steps."""

    def __call__(self, name: str, bounds: Bounds | None, *, published: bool = False) -> RuleTable:
        """The rules.

        Args:
            name: Rule of the convolutions (`beta0`, ...).
            bounds: Of the input, if it has any.
            published: As the published code has them.

        Raises:
            ValueError: There is no such rule.
        """
        ...


def plain_rules(name: str, bounds: Bounds | None, *, published: bool = False) -> RuleTable:
    """The rules of that name, the same at all convolutions (published for EfficientNet)."""
    return rule_table(name, guard=0.0) if published else rule_table(name)


def boxed_rules(name: str, bounds: Bounds | None, *, published: bool = False) -> RuleTable:
    """The rules of that name; where the input is bounded, the z-box at the first convolution (published for ResNet).

    The published bounds are two numbers for all channels: the lowest and the highest value of any.
    """
    table = plain_rules(name, bounds, published=published)
    if bounds is None:
        return table
    box = ZBox(*_PUBLISHED_BOX) if published and bounds == Normalise().bounds() else ZBox(*bounds)
    return replace(table, first_convolution=box)


@dataclass(frozen=True)
class Architecture:
    """All that the project has to know of one kind of network.

    Attributes:
        name: canonical name, part of every output path.
        build: `build(outputs)` returns a randomly initialised network, float (N, 3, H, W) to (N, outputs) or, of a
            map of logits, (N, outputs, H', W').
        last_layer: name of the last linear layer, dense or a 1x1 convolution; its weight has one row per output.
        gradcam_layer: name of the layer whose output Grad-CAM weights.
        aliases: other spellings of the name.
        transform: from uint8 images to the network's input.
        crop: how its authors scale and crop images before that when they test; by default not at all.
        side: pixels of both sides of the only images that it takes; 0 where it takes any.
        head: what the output of a detector means.
        rules: of its explanation; the place for the rule of an operation of one's own.
        fake_class: the class that is fake in checkpoints with two outputs, where all of them agree on it.
        reads: what it was trained to read, if that is no photograph: the user provides these images.
        telltale: name of a tensor that all its checkpoints hold and those of other networks do not; where there is one,
            the network is not built to recognise that a file is of another.
        adapt: from the names of published files to the network's own.
        backbone: what it stands on, where published files may hold the head alone: then another file is needed.
        finish: changes the network once its weights are there, before it is used.
        imagenet_files: names under which the public ImageNet checkpoints are known.
        source: where network and weights come from, and under which licence.
    """

    name: str
    build: Callable[[int], nn.Module]
    last_layer: str
    gradcam_layer: str
    aliases: tuple[str, ...] = ()
    transform: InputTransform = Normalise()
    crop: Crop = Crop()
    side: int = 0
    head: Head = OneLogit()
    rules: Rules = boxed_rules
    fake_class: int | None = None
    reads: str = ""
    telltale: str = ""
    adapt: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    backbone: str = ""
    finish: Callable[[nn.Module], None] | None = None
    imagenet_files: tuple[str, ...] = ()
    source: str = ""


_registry: dict[str, Architecture] = {}
"""By every spelling in lower case."""


def register_architecture(architecture: Architecture) -> Architecture:
    """Add a network under its name (any case) and its aliases; returns the entry, its name in lower case.

    Raises:
        ValueError: if the name is not fit for a folder name, or it or an alias is taken.
    """
    canonical = architecture.name.lower()
    if not canonical or PurePosixPath(canonical).name != canonical or canonical in {".", ".."}:
        raise ValueError(f"architecture name {architecture.name!r} is not fit for a folder name")
    spellings = {canonical, *(alias.lower() for alias in architecture.aliases)}
    taken = sorted(spellings & _registry.keys())
    if taken:
        raise ValueError(f"architecture name {', '.join(taken)} is already registered")
    _registry.update(dict.fromkeys(spellings, replace(architecture, name=canonical)))
    return _registry[canonical]


def unregister_architecture(name: str) -> None:
    """Take a network and its aliases out of the registry again.

    Raises:
        UserError: if there is no such network.
    """
    entry = get_architecture(name)
    for spelling in [spelling for spelling, other in _registry.items() if other is entry]:
        del _registry[spelling]


def architectures() -> list[str]:
    """Canonical names of all registered networks, in the order of registration."""
    load_installed_plugins()
    return list(dict.fromkeys(entry.name for entry in _registry.values()))


def get_architecture(name: str) -> Architecture:
    """The registry entry for a name or alias in any case: that of `efb0` for `EfficientNet-B0`.

    Raises:
        UserError: if nothing is registered under the name.
    """
    key = name.strip().lower()
    if key not in _registry:
        load_installed_plugins()
    if key not in _registry and key.startswith(TIMM):
        # it registers networks itself, with what is defined here
        from detectors.timm_networks import register_timm

        return register_timm(key)
    if key not in _registry:
        raise UserError(
            f"unknown architecture {name!r}: choose one of {', '.join(architectures())}, "
            f"{TIMM}NAME for a network of timm, or register it with --plugin FILE.py"
        )
    return _registry[key]


def canonical_architecture(name: str, plugins: Sequence[str] = ()) -> str:
    """The canonical name for a name or alias, once the plugins have registered their networks.

    Raises:
        UserError: if nothing is registered under the name, or a plugin cannot be loaded.
    """
    for plugin in plugins:
        load_plugin(plugin)
    return get_architecture(name).name


def build_model(arch: str, outputs: int = 1) -> nn.Module:
    """A randomly initialised network.

    Raises:
        UserError: if the architecture is unknown.
    """
    return get_architecture(arch).build(outputs)


def load_plugin(name: str) -> None:
    """Import a module that registers networks, once: a `.py` file, or the dotted name of an installed module.

    Raises:
        UserError: there is no such module, or it fails.
    """
    path = Path(name)
    is_file = path.suffix == ".py"
    key = f"tff_plugin:{path.resolve()}" if is_file else name
    if key in sys.modules:
        return
    if is_file and not path.is_file():
        raise UserError(f"--plugin {name}: there is no such file")
    try:
        if not is_file:
            importlib.import_module(name)
            return
        spec = importlib.util.spec_from_file_location(key, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    # a plugin is foreign code: whatever is wrong in it, its author can mend it
    except Exception as error:
        sys.modules.pop(key, None)
        raise UserError(f"--plugin {name} cannot be loaded: {type(error).__name__}: {error}") from error


@cache
def load_installed_plugins() -> None:
    """Import the modules of `BUILT_IN` and what installed packages offer under the entry points `tff.detectors`, once.

    Raises:
        UserError: one of them fails.
    """
    for name in [*BUILT_IN, *(entry.module for entry in entry_points(group=PLUGINS))]:
        load_plugin(name)


def _register_resnet(depth: int) -> None:
    name = f"resnet{depth}"

    def build(outputs: int) -> nn.Module:
        return torchvision.models.get_model(name, weights=None, num_classes=outputs)

    files = tuple(PurePosixPath(weights.url).name for weights in torchvision.models.get_model_weights(name))
    register_architecture(
        Architecture(
            name,
            build,
            last_layer="fc",
            gradcam_layer="layer4",
            aliases=("cnndetect", "cnnspot") if depth == 50 else (),
            imagenet_files=files,
            source="torchvision (BSD-3-Clause); detectors of Wang et al. 2020",
        )
    )


def _register_efficientnet(scale: int) -> None:
    name = f"efficientnet-b{scale}"

    def build(outputs: int) -> nn.Module:
        # image_size=None: padding from the size of each input, as the detectors were trained
        model = EfficientNet.from_name(name, num_classes=outputs, image_size=None)
        # the memory-efficient swish is an autograd function that differentiates only once
        model.set_swish(memory_efficient=False)
        return model

    register_architecture(
        Architecture(
            f"efb{scale}",
            build,
            last_layer="_fc",
            gradcam_layer="_conv_head",
            aliases=(name,),
            rules=plain_rules,
            imagenet_files=(PurePosixPath(efficientnet_urls[name]).name,),
            source="efficientnet_pytorch (Apache-2.0); detectors of Chandrasegaran et al. 2022",
        )
    )


for _depth in (18, 34, 50, 101, 152):
    _register_resnet(_depth)
for _scale in range(8):
    _register_efficientnet(_scale)
