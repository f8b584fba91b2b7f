"""Networks of timm (PyTorch Image Models, Apache-2.0) by their names there: `--arch timm:resnet26d`."""

from functools import cache, partial
from typing import Any

import torch
from torch import nn

from detectors.networks import TIMM, Architecture, register_architecture
from detectors.transforms import Normalise
from images.decoding import Crop, Resize
from lrp import register_module
from lrp.operations import Convolution, Dense
from utils.errors import UserError

_SHOWN = 5


@cache
def load_timm() -> Any:
    """timm, whose layers relevance propagation then knows.

    Raises:
        UserError: It is not installed.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError("networks of timm need timm, which is not installed: pip install timm") from error
    register_module(timm.layers.Conv2dSame, _same_convolution)
    register_module(timm.layers.Linear, lambda module: Dense(module.weight, module.bias))
    return timm


def _same_convolution(module: nn.Conv2d) -> Convolution:
    stride, dilation = ((pair[0], pair[1]) for pair in (module.stride, module.dilation))
    return Convolution(
        module.weight, module.bias, stride=stride, dilation=dilation, groups=module.groups, same_padding=True
    )


def register_timm(name: str) -> Architecture:
    """Register the network `timm:<name>`, with the scaling, crop and normalisation of timm's own tests.

    Raises:
        UserError: timm has no such network, or does not say what its last layer is called.
    """
    timm, model = load_timm(), name.removeprefix(TIMM)
    family = model.partition(".")[0]
    settings = timm.get_pretrained_cfg(model) if timm.is_model(family) else None
    if settings is None:
        near = timm.list_models(f"*{family[:8]}*")[:_SHOWN]
        hint = f"perhaps {', '.join(near)}" if near else "timm.list_models() names them"
        raise UserError(f"--arch {name}: timm {timm.__version__} has no such network: {hint}")
    if not isinstance(settings.classifier, str):
        raise UserError(f"--arch {name}: timm names no single last layer of it: register it with --plugin")
    with torch.device("meta"):
        stages: Any = build(model, 1).feature_info
    side = settings.input_size[-1]
    (r, g, b), (s, t, u) = settings.mean, settings.std
    return register_architecture(
        Architecture(
            name,
            partial(build, model),
            last_layer=settings.classifier,
            # the layer has to have maps, not tokens
            gradcam_layer="" if settings.fixed_input_size else stages[-1]["module"],
            transform=Normalise((r, g, b), (s, t, u)),
            crop=Crop("center", side, Resize(int(side / settings.crop_pct), interpolation=settings.interpolation)),
            side=side if settings.fixed_input_size else 0,
            finish=one_step_each,
            source=f"timm {timm.__version__} (Apache-2.0)",
        )
    )


def build(name: str, outputs: int, **settings: Any) -> nn.Module:
    """A network of timm, randomly initialised."""
    model: nn.Module = load_timm().create_model(name, pretrained=False, num_classes=outputs, **settings)
    return model


def one_step_each(model: nn.Module) -> None:
    """Replace modules that are a batch norm and an activation in one by the two, one after the other."""
    norm_with_activation: Any = load_timm().layers.BatchNormAct2d
    for parent in list(model.modules()):
        children: list[tuple[str, Any]] = list(parent.named_children())
        for name, module in children:
            if type(module) is norm_with_activation:
                norm = nn.BatchNorm2d(module.num_features, module.eps, affine=module.affine)
                norm.load_state_dict(module.state_dict())
                setattr(parent, name, nn.Sequential(norm, module.drop, module.act))
