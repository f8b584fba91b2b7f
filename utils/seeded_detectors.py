"""Detectors without downloads: seeded random convolutions under a fitted last layer.

They separate the images they were fitted on and nothing else is claimed of them. What they are good for: trying every
tool end to end, at the size and cost of the real networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from utils.detectors import Detector, build_model, get_architecture
from utils.files import atomic_path

# Inverse regularisation strength of the last layer, and the share of images that it is scaled to be sure about.
_STRENGTH = 0.3
_CONFIDENT_SHARE = 0.7
_CONFIDENT_LOGIT = 2.2  # p = 0.9


@torch.no_grad()
def make_seeded_detector(arch: str, batches: Sequence[Tensor], labels: np.ndarray, seed: int = 0) -> Detector:
    """A detector on the CPU whose last layer was fitted by logistic regression.

    Convolutions are drawn from `seed` (He initialisation), the statistics of the batch norms are those of the
    images, and the last layer is scaled so that about 70 % of the images are classified with p >= 0.9 or <= 0.1.

    Args:
        arch: Architecture.
        batches: Images uint8 (N, 3, H, W), batch by batch.
        labels: 0 real, 1 fake, for all images in order.
        seed: Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(arch)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    model = model.to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    detector = Detector(get_architecture(arch), model, torch.device("cpu"), None, "", 1)
    _calibrate_batch_norms(detector, batches)
    head = model.get_submodule(detector.architecture.head)
    features = _penultimate_features(detector, batches, head)
    scale = features.std(axis=0) + 1e-6
    fit = LogisticRegression(C=_STRENGTH, max_iter=1000).fit(features / scale, labels)
    weight = fit.coef_ / scale
    logits = features @ weight[0] + fit.intercept_[0]
    factor = _CONFIDENT_LOGIT / np.quantile(np.abs(logits), 1.0 - _CONFIDENT_SHARE)
    head.weight.copy_(torch.from_numpy(weight * factor))
    head.bias.copy_(torch.from_numpy(fit.intercept_ * factor))
    return detector


def save_detector(detector: Detector, path: Path) -> None:
    """Write the weights as safetensors, atomically."""
    state = {key: value.contiguous().cpu() for key, value in detector.model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary)


def _calibrate_batch_norms(detector: Detector, batches: Sequence[Tensor]) -> None:
    norms = [module for module in detector.model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    for images in batches:
        detector.model(detector.preprocess(images))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    detector.model.eval()


def _penultimate_features(detector: Detector, batches: Sequence[Tensor], head: nn.Module) -> np.ndarray:
    collected: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, inputs: collected.append(inputs[0].detach()))
    try:
        for images in batches:
            detector.model(detector.preprocess(images))
    finally:
        handle.remove()
    return torch.cat(collected).double().numpy()
