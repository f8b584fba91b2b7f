"""What training starts from: ImageNet weights, a detector's checkpoint, or nothing."""

from pathlib import Path

import torch
from torch import nn

from utils.architectures import Architecture, get_architecture
from utils.checkpoints import load_state, read_state
from utils.detectors import imagenet_weights_path
from utils.errors import UserError
from utils.files import sha256_file

# standard deviation of a ResNet's new head, `init_gain` of Wang et al.; EfficientNet keeps its own initialisation
_RESNET_HEAD_STD = 0.02


def initial_model(arch: str, init: str, seed: int) -> tuple[nn.Module, str]:
    """A network with one output, in training mode on the CPU, and the SHA-256 of the weights it starts from.

    Args:
        arch: architecture name or alias.
        init: `scratch`, `imagenet` (the file at `weights/imagenet/<arch>.pth`), or a checkpoint; the head of a
            checkpoint is kept if it has one output, otherwise it is made anew.
        seed: of all weights made anew.

    Raises:
        UserError: for an unknown architecture, or a checkpoint that is missing, unusable or of another one.
    """
    architecture = get_architecture(arch)
    if init == "scratch":
        return _new_model(architecture, seed).train(), ""
    path = imagenet_weights_path(arch) if init == "imagenet" else Path(init)
    if init == "imagenet" and not path.exists():
        files = " or ".join(architecture.imagenet_files) or "a checkpoint"
        raise UserError(
            f"ImageNet weights not found: put {files} at {path} (docs/data_and_weights.md says where to get it), "
            "or give --init FILE or --init scratch"
        )
    state = read_state(path)
    head = state.get(f"{architecture.head}.weight")
    outputs = 1 if head is None or head.ndim == 0 else head.shape[0]
    loaded = load_state(path, state, architecture, outputs)
    if outputs == 1:
        return loaded.train(), sha256_file(path)
    model = _new_model(architecture, seed)
    body = {key: value for key, value in loaded.state_dict().items() if not key.startswith(f"{architecture.head}.")}
    model.load_state_dict(body, strict=False)
    return model.train(), sha256_file(path)


def _new_model(architecture: Architecture, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture.build(1)
        if architecture.family == "resnet":
            nn.init.normal_(model.get_parameter(f"{architecture.head}.weight"), 0.0, _RESNET_HEAD_STD)
    return model
