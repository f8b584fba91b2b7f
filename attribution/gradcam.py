"""Guided Grad-CAM: where (Grad-CAM) times which pixels (guided backpropagation).

Grad-CAM: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017, equations 1 and 2, and section 3.2 for the product. Guided backpropagation:
Springenberg et al., "Striving for Simplicity: The All Convolutional Net", 2015. Both through captum.

Guided backpropagation alters the gradient of ReLU modules, and of no other activation. EfficientNet has none
(its activation is swish), so there it is the plain gradient.
"""

import warnings
from dataclasses import dataclass

import torch
from captum.attr import GuidedBackprop, LayerGradCam
from torch import Tensor, nn
from torch.nn.functional import interpolate

from attribution.targets import Target
from detectors.detector import Detector
from utils.errors import UserError

# of the published min-max scaling
_EPS = 1e-7


@dataclass(frozen=True)
class GuidedGradCam:
    """Result for N images of one size.

    Attributes:
        cam: (N, H, W) float32, Grad-CAM scaled to 0..1 for each image and resized to the input.
        guided_backprop: (N, 3, H, W) float32, gradient of the score with respect to the normalised input.
        logits: (N, outputs) float32.
    """

    cam: Tensor
    guided_backprop: Tensor
    logits: Tensor

    @property
    def relevance(self) -> Tensor:
        """(N, H, W): Grad-CAM times guided backpropagation, summed over RGB; signed."""
        return (self.cam[:, None] * self.guided_backprop).sum(dim=1)


class _Score(nn.Module):
    """A network that returns the explained score (N,) instead of its logits."""

    def __init__(self, model: nn.Module, target: Target) -> None:
        super().__init__()
        self.model = model
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        return self.target.score(self.model(x))


def guided_gradcam(detector: Detector, images: Tensor, target: Target, layer: str | None = None) -> GuidedGradCam:
    """Guided Grad-CAM of the target's score; hooks are gone and the network is as before when it returns.

    Args:
        detector: network and preprocessing.
        images: (N, 3, H, W) uint8.
        target: the score to explain.
        layer: name of the layer Grad-CAM weights; default: that of the architecture.

    Raises:
        UserError: if the network has no layer of that name.
    """
    module = gradcam_layer(detector, layer)
    x = detector.inputs(images)
    score = _Score(detector.model, target)
    with torch.no_grad():
        logits = detector.model(x)
    x.requires_grad_(True)
    cam = LayerGradCam(score, module).attribute(x, relu_attributions=True).detach().float()
    cam = interpolate(_scaled(cam), size=x.shape[2:], mode="bilinear", align_corners=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU")
        gradient = GuidedBackprop(score).attribute(x).detach()
    return GuidedGradCam(_scaled(cam)[:, 0], gradient.contiguous(), logits.float())


def gradcam_layer(detector: Detector, name: str | None = None) -> nn.Module:
    """The layer of that name, or the architecture's own for Grad-CAM.

    Raises:
        UserError: if the network has no layer of that name.
    """
    name = name or detector.architecture.gradcam_layer
    modules = dict(detector.model.named_modules())
    if name not in modules or not name:
        top = ", ".join(child for child, _ in detector.model.named_children())
        raise UserError(f"--layer {name}: {detector.arch} has no such layer; its first level is {top}")
    return modules[name]


def _scaled(cam: Tensor) -> Tensor:
    """(N, 1, h, w) to 0..1 for each image; a map without any positive value stays 0."""
    cam = cam - cam.amin(dim=(2, 3), keepdim=True)
    return cam / (cam.amax(dim=(2, 3), keepdim=True) + _EPS)
