"""The detector: a network with its weights, what goes into it, and what comes out of it."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import pad

from detectors.checkpoints import load_state, read_state, with_squeeze_excite_of
from detectors.choice import (
    LITE0_ARCH,
    DetectorChoice,
    Precision,
    default_backbone_path,
    imagenet_weights_path,
    lite0_path,
)
from detectors.devices import DTYPES, device_name, use_device
from detectors.feature_maps import FeatureMapNetwork
from detectors.heads import Classes, Head, OneLogit
from detectors.networks import Architecture, get_architecture
from detectors.transforms import Normalise, Residual
from lrp import Explainer
from utils.errors import UserError
from utils.files import sha256_file


@dataclass(frozen=True)
class Detector:
    """A network in evaluation mode with all that belongs to it; also a classifier, whose head says so.

    Attributes:
        architecture: How its input and output are to be read, and the rules of its explanation.
        model: From the transform's output to what the head reads.
        device: Where the model is.
        weights: The checkpoint, or None for a network made in memory.
        sha256: Checksum of the checkpoint file, empty without one.
        precision: Of the convolutions.
        fake_class: Which class of the file is fake, where that had to be said.
        backbone: Checksum of the file of the backbone, empty without one.
    """

    architecture: Architecture
    model: nn.Module
    device: torch.device = torch.device("cpu")
    weights: Path | None = None
    sha256: str = ""
    precision: Precision = "fp32"
    fake_class: int | None = None
    backbone: str = ""
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def arch(self) -> str:
        """Canonical name of the architecture."""
        return self.architecture.name

    @property
    def head(self) -> Head:
        """What the output means: `head.probability(output)` is p(fake)."""
        return self.architecture.head

    def facts(self) -> dict[str, str]:
        """What a result has to say of the detector: network, weights, device and precision."""
        facts = {
            "arch": self.arch,
            "weights": self.sha256,
            "device": device_name(self.device),
            "precision": self.precision,
        }
        if self.fake_class is not None:
            facts["fake_class"] = str(self.fake_class)
        return {**facts, "backbone": self.backbone} if self.backbone else facts

    def inputs(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) uint8 to the input of the network, which is what is explained; on the device.

        Raises:
            ValueError: Another type or shape.
            UserError: The network takes images of one size only.
        """
        side = self.architecture.side
        if side and images.shape[-2:] != (side, side):
            height, width = images.shape[-2:]
            raise UserError(
                f"{self.arch} takes images of {side}x{side} pixels, not {height}x{width}: leave out --preprocessing "
                "as_is, or give images of that size"
            )
        transform, images = self.architecture.transform, images.to(self.device)
        if self._is_double and isinstance(transform, Normalise | Residual):
            return transform(images, torch.float64)
        return transform(images)

    @property
    def _is_double(self) -> bool:
        """Whether the model was put into double precision, for checks."""
        return any(parameter.dtype == torch.float64 for parameter in self.model.parameters())

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """The network's output in float32, or float64 of a model in double precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output: Tensor = self.model(inputs)
        return output if self._is_double else output.float()

    def probability(self, images: Tensor) -> Tensor:
        """p(fake) of images (N, 3, H, W) uint8: (N,) float64 in 0..1."""
        return self.head.probability(self.logits(self.inputs(images)))

    def on_images(self, values: Tensor, images: Tensor) -> Tensor:
        """Values (..., h, w) of the input's pixels in the size of the images, with 0 at the edge that it leaves out."""
        (height, width), (rows, columns) = images.shape[-2:], values.shape[-2:]
        return pad(values, (0, width - columns, 0, height - rows))

    def feature_maps(self) -> FeatureMapNetwork:
        """The network with feature maps that can be observed and dropped; made once.

        Raises:
            UnsupportedLayerError: The network has a layer that `lrp` does not know.
        """
        if "feature_maps" not in self._made:
            self._made["feature_maps"] = FeatureMapNetwork(self.model, self.arch, DTYPES[self.precision])
        network: FeatureMapNetwork = self._made["feature_maps"]
        return network

    def explainer(
        self, rule: str = "beta0", *, published: bool = False, squeeze_excite: Path | None = None
    ) -> Explainer:
        """Relevance propagation through the network; made once for each choice.

        Args:
            rule: Of the convolutions.
            published: Compute as the published code.
            squeeze_excite: Explain a copy with these weights (`with_squeeze_excite_of`); the detector stays as it is.

        Raises:
            UserError: The network cannot be explained, there is no such rule, or `squeeze_excite` does not fit.
        """
        key = (rule, published, squeeze_excite)
        if key not in self._made:
            model = self.model if squeeze_excite is None else with_squeeze_excite_of(self.model, squeeze_excite)
            try:
                table = self.architecture.rules(rule, self.architecture.transform.bounds(), published=published)
                self._made[key] = Explainer(model, table, published=published, dtype=DTYPES[self.precision])
            except ValueError as error:
                raise UserError(str(error)) from error
        explainer: Explainer = self._made[key]
        return explainer


def load_detector(
    choice: DetectorChoice | str,
    weights: str | Path | None = None,
    device: str | torch.device = "auto",
    *,
    blur_jpg: str = "0.5",
    fake_class: int | None = None,
    precision: Precision = "fp32",
) -> Detector:
    """The detector of a choice, or of the name of a network and the arguments beside it, in evaluation mode.

    Raises:
        UserError: An unknown architecture, a missing device, or a checkpoint that cannot be used.
    """
    if isinstance(choice, str):
        path = None if weights is None else Path(weights)
        choice = DetectorChoice(choice, blur_jpg, path, fake_class, precision, str(device))
    architecture = get_architecture(choice.arch)
    path = choice.checkpoint
    if choice.weights is None and not path.exists():
        raise UserError(
            f"weights of {architecture.name} not found: {path}: put the published checkpoint there "
            "(docs/data_and_weights.md says where to get it), or give --weights FILE"
        )
    return load_checkpoint(architecture, path, choice.device, choice.precision, choice.fake_class, choice.backbone)


def load_imagenet_classifier(
    arch: str, weights: str | Path | None = None, device: str | torch.device = "auto", precision: Precision = "fp32"
) -> Detector:
    """The ImageNet classifier of an architecture (1000 logits), default `weights/imagenet/<arch>.pth`.

    For EfficientNet-B0 the weights that come with the project stand in where that file is missing, and a line says so.

    Raises:
        UserError: As `load_detector`; without the file it says which one to put where.
    """
    architecture = get_architecture(arch)
    expected = imagenet_weights_path(architecture.name)
    path = expected if weights is None else Path(weights)
    if weights is None and architecture.name == LITE0_ARCH and not path.exists() and lite0_path().exists():
        path = lite0_path()
        sys.stderr.write(
            f"warning: no {expected}: taking {path.name}, EfficientNet-B0 with the weights of EfficientNet-Lite0 "
            "(weights/README.md), not the published classifier\n"
        )
    if not path.exists():
        files = " or ".join(architecture.imagenet_files) or "a checkpoint with 1000 outputs"
        where = "" if weights is None else f" or at {expected}"
        raise UserError(
            f"ImageNet weights not found: put {files} at {path}{where} (docs/data_and_weights.md says where to get it)"
        )
    names = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    head = Classes(tuple(f"{number} {name}" for number, name in enumerate(names)))
    return load_checkpoint(replace(architecture, head=head), path, device, precision)


def load_checkpoint(
    architecture: Architecture,
    path: Path,
    device: str | torch.device = "auto",
    precision: Precision = "fp32",
    fake_class: int | None = None,
    backbone: Path | None = None,
) -> Detector:
    """A checkpoint as a network of this kind, registered or not.

    Raises:
        UserError: As `load_detector`.
    """
    target = use_device(device, precision)
    state, digest = architecture.adapt(read_state(path)), ""
    if architecture.backbone and architecture.telltale not in state:
        backbone = backbone or default_backbone_path(architecture.name)
        if not backbone.exists():
            raise UserError(
                f"weights {path} are the head alone, and {backbone} is not there: give the file of its backbone, "
                f"{architecture.backbone}, with --backbone FILE"
            )
        state, digest = {**architecture.adapt(read_state(backbone)), **state}, sha256_file(backbone)
    model = load_state(path, state, architecture, fake_class=fake_class)
    if architecture.finish is not None:
        architecture.finish(model.eval())
    if architecture.reads:
        what = f"{architecture.name} reads {architecture.reads}"
        sys.stderr.write(f"note: {what}; images given are taken for these, which are what is scored and explained\n")
    head = architecture.head
    # a prefix that the network has of its own was taken for that of a wrapper
    last = f".{architecture.last_layer}.weight"
    outputs = next(len(value) for name, value in state.items() if last.endswith(f".{name}"))
    if fake_class == 0 and isinstance(head, OneLogit) and outputs == 1:
        architecture = replace(architecture, head=replace(head, sign=-head.sign))
    model.eval().requires_grad_(False)
    model.to(device=target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Detector(architecture, model, target, path, sha256_file(path), precision, fake_class, digest)
