"""Guided Grad-CAM: where (Grad-CAM) times which pixels (guided backpropagation).

Grad-CAM: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017, equations 1 and 2, and section 3.2 for the product. Guided backpropagation:
Springenberg et al., "Striving for Simplicity: The All Convolutional Net", 2015. Both through captum.

Guided backpropagation alters the gradient of ReLU modules, and of no other activation. EfficientNet has none
(its activation is swish), so there it is the plain gradient.
"""

import warnings
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from attribution.attribution import Attribution, Explanation
from attribution.options import GradCamOptions
from attribution.targets import Target
from detectors.detector import Detector
from detectors.heads import Classes
from passes.analysis import Subject
from utils.errors import UserError

# Of the published min-max scaling.
_EPS = 1e-7


class GuidedGradCamMaps(Attribution[GradCamOptions]):
    """Guided Grad-CAM of single images."""

    name = "gradcam"
    default_target = "fake"

    def __init__(self, subject: Subject, options: GradCamOptions) -> None:
        super().__init__(subject, options)
        captum_attr()
        gradcam_layer(subject.detector, options.layer)

    @property
    def layer(self) -> str:
        """Name of the layer that is weighted."""
        return self.options.layer or self.subject.detector.architecture.gradcam_layer

    @property
    def details(self) -> Sequence[str]:
        """The target."""
        return [self.target.name]

    @property
    def title(self) -> str:
        """Network and layer, and what positive relevance speaks for."""
        return (
            f"Guided Grad-CAM of {self.subject.detector.arch}, {self.layer}: evidence for {self.target.description()}"
        )

    def facts(self) -> dict[str, object]:
        """Target and layer."""
        return {**super().facts(), "layer": self.layer}

    def explain(self, images: Tensor, labels: Tensor) -> Explanation:
        """Grad-CAM times guided backpropagation for the class of each image."""
        detector = self.subject.detector
        with torch.autocast(detector.device.type, torch.bfloat16, enabled=detector.precision == "bf16"):
            return guided_gradcam(detector, images, self.target, labels, self.layer)


def captum_attr() -> ModuleType:
    """The attributions of captum, which nothing else needs.

    Raises:
        UserError: It is not installed.
    """
    try:
        from captum import attr
    except ImportError as error:
        raise UserError("Guided Grad-CAM needs captum, which is not installed: pip install captum") from error
    module: ModuleType = attr
    return module


class _Score(nn.Module):
    """A network that returns the explained score (N,) instead of its logits."""

    def __init__(self, model: nn.Module, target: Target, classes: Tensor) -> None:
        super().__init__()
        self.model, self.target, self.classes = model, target, classes

    def forward(self, x: Tensor) -> Tensor:
        return self.target.head.score(self.model(x), self.classes)


def guided_gradcam(
    detector: Detector, images: Tensor, target: Target, labels: Tensor, layer: str | None = None
) -> Explanation:
    """Guided Grad-CAM of the target's score; hooks are gone and the network is as before when it returns.

    `arrays` holds `cam` (N, H, W), Grad-CAM scaled to 0..1 for each image and resized to the input; `guided_backprop`
    (N, 3, H, W), the gradient of the score with respect to the input; and the logits. Relevance is their product,
    summed over the channels.

    Args:
        detector: Network and what goes into it.
        images: (N, 3, H, W) uint8.
        target: The score to explain.
        labels: (N,): 1 fake, 0 real, -1 unknown.
        layer: Name of the layer that Grad-CAM weights; by default that of the architecture.

    Raises:
        UserError: The network has no layer of that name, or that layer has no feature maps.
    """
    module = gradcam_layer(detector, layer)
    x = detector.inputs(images)
    with torch.no_grad():
        logits = detector.model(x).float()
    classes = target.classes(logits, labels)
    score = _Score(detector.model, target, classes)
    with torch.enable_grad():
        x.requires_grad_(True)
        cam = captum_attr().LayerGradCam(score, module).attribute(x, relu_attributions=True).detach().float()
        if cam.ndim != 4:
            raise _without_maps(detector, f"--layer {layer}: this layer of {detector.arch}")
        cam = interpolate(_scaled(cam), size=x.shape[2:], mode="bilinear", align_corners=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU")
            gradient = captum_attr().GuidedBackprop(score).attribute(x).detach()
    cam, gradient = (detector.on_images(part, images) for part in (_scaled(cam)[:, 0], gradient.contiguous()))
    arrays = {"cam": cam, "guided_backprop": gradient, "logits": logits}
    return Explanation((cam[:, None] * gradient).sum(1), logits, classes, arrays)


def gradcam_layer(detector: Detector, name: str | None = None) -> nn.Module:
    """The layer of that name, or the architecture's own for Grad-CAM.

    Raises:
        UserError: The network has no layer of that name, or none that Grad-CAM can weight.
    """
    name = name or detector.architecture.gradcam_layer
    if not name:
        raise _without_maps(detector, detector.arch)
    modules = dict(detector.model.named_modules())
    if name not in modules:
        top = ", ".join(child for child, _ in detector.model.named_children())
        raise UserError(f"--layer {name}: {detector.arch} has no such layer; its first level is {top}")
    return modules[name]


def _without_maps(detector: Detector, what: str) -> UserError:
    script = "imagenet_lrp" if isinstance(detector.head, Classes) else "ud_lrp"
    return UserError(
        f"{what} has no feature maps over the image, which Grad-CAM weights: explain the network by relevance "
        f"propagation, src/{script}.py --arch {detector.arch}"
    )


def _scaled(cam: Tensor) -> Tensor:
    """(N, 1, h, w) to 0..1 for each image; a map without any positive value stays 0."""
    cam = cam - cam.amin(dim=(2, 3), keepdim=True)
    return cam / (cam.amax(dim=(2, 3), keepdim=True) + _EPS)
