"""What training starts from: ImageNet weights, a detector's checkpoint, or nothing."""

from pathlib import Path

import numpy as np
import torch
from efficientnet_pytorch import EfficientNet
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from detectors.checkpoints import load_state, read_state
from detectors.choice import LITE0_ARCH, imagenet_weights_path, lite0_path
from detectors.networks import Architecture, get_architecture
from utils.errors import UserError
from utils.files import sha256_file

# standard deviation of a ResNet's new head, `init_gain` of Wang et al.; EfficientNet keeps its own initialisation
_RESNET_HEAD_STD = 0.02
_NEW = ("scratch", "high_pass")
# efficientnet-pytorch averages over about 100 batches, which is too slow for a few hundred steps from nothing
_SHORT_MOMENTUM = 0.1
_CORE = 3  # side of what is left of larger kernels: traces of up-sampling are fine


def initial_model(arch: str, init: str, seed: int) -> tuple[nn.Module, str]:
    """A network with one output, in training mode on the CPU, and the SHA-256 of the weights it starts from.

    Args:
        arch: architecture name or alias.
        init: `scratch`; `high_pass`, the same for short training (`make_high_pass`); `imagenet` (the file at
            `weights/imagenet/<arch>.pth`); `lite0`, the ImageNet weights that come with the project (of EfficientNet-B0
            only, `detectors/lite0.py`); or a checkpoint, whose head is kept if it has one output and otherwise made
            anew.
        seed: of all weights made anew.

    Raises:
        UserError: for an unknown architecture, one that `make_high_pass` cannot prepare, or a checkpoint that is
            missing, unusable or of another one.
    """
    architecture = get_architecture(arch)
    if init in _NEW:
        model = _new_model(architecture, seed).train()
        if init == "high_pass":
            make_high_pass(model)
        return model, ""
    if init == "lite0" and architecture.name != LITE0_ARCH:
        raise UserError(
            f"--init lite0 fits {LITE0_ARCH} only, not {architecture.name}: give --init FILE, scratch or high_pass"
        )
    path = {"imagenet": imagenet_weights_path(arch), "lite0": lite0_path()}.get(init, Path(init))
    if init == "imagenet" and not path.exists():
        files = " or ".join(architecture.imagenet_files) or "a checkpoint"
        raise UserError(
            f"ImageNet weights not found: put {files} at {path} (docs/data_and_weights.md says where to get it), "
            "or give --init FILE, lite0 (of efb0), scratch or high_pass"
        )
    state = read_state(path)
    weight = state.get(f"{architecture.last_layer}.weight")
    outputs = 1 if weight is None or weight.ndim == 0 else weight.shape[0]
    model = load_state(path, state, architecture, outputs=outputs)
    if outputs != 1:
        head = _new_model(architecture, seed).get_submodule(architecture.last_layer)
        model.set_submodule(architecture.last_layer, head)
    return model.train(), sha256_file(path)


@torch.no_grad()
def make_high_pass(model: nn.Module, momentum: float = _SHORT_MOMENTUM) -> None:
    """Prepare a new network for short training from nothing.

    Traces of generators are weak and fine beside the picture, and from random weights most of the training is spent on
    finding them. Hence:

    - Kernels of the first convolution keep their central 3 x 3 only, and of it the part that answers to no constant and
      no linearly rising brightness (moments of order 0 and 1, for each colour). The first half of the kernels also
      loses the part that answers to all (normalised) colours alike, so that it sees differences between colours only.
      Norms stay as they were.
    - The residual branches of a ResNet start at zero (Goyal et al.: Accurate, Large Minibatch SGD, 2017, Sec. 5.1).
    - Batch norms average over about ten batches, unless `momentum` says otherwise. Dropout and drop-connect, meant for
      long training, are switched off.

    Raises:
        UserError: the first convolution does not see three colours, or its kernels are too small.
    """
    stem = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if stem is None or stem.weight.shape[1] != 3 or min(stem.kernel_size) < 2:
        raise UserError(
            "--init high_pass needs a first convolution of three colours and kernels of 2x2 pixels or more: "
            "use --init scratch"
        )
    kernels = _without_slopes(stem.weight)
    half = len(kernels) // 2
    kernels[:half] -= kernels[:half].mean(dim=1, keepdim=True)
    norms = [weights.flatten(1).norm(dim=1) for weights in (stem.weight, kernels)]
    stem.weight.copy_(kernels * (norms[0] / norms[1])[:, None, None, None])
    for module in model.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    if isinstance(model, EfficientNet):
        model._global_params = model._global_params._replace(drop_connect_rate=0.0)


def _without_slopes(kernels: Tensor) -> Tensor:
    """The part of the centres of kernels (out, in, H, W) that vanishes on constants and slopes, zero around it."""
    height, width = kernels.shape[-2:]
    top, left = (max(0, (side - _CORE) // 2) for side in (height, width))
    core = kernels[:, :, top : top + _CORE, left : left + _CORE]
    rows, columns = np.mgrid[: core.shape[2], : core.shape[3]]
    slopes = np.stack([np.ones(rows.size), rows.ravel(), columns.ravel()], axis=1)
    basis = torch.from_numpy(np.linalg.qr(slopes)[0]).to(kernels.dtype)
    flat = core.flatten(2)
    result = torch.zeros_like(kernels)
    result[:, :, top : top + _CORE, left : left + _CORE] = (flat - flat @ basis @ basis.T).view_as(core)
    return result


def _new_model(architecture: Architecture, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture.build(1)
        if isinstance(model, ResNet):
            nn.init.normal_(model.get_parameter(f"{architecture.last_layer}.weight"), 0.0, _RESNET_HEAD_STD)
    return model
