"""Detectors and classifiers: a network with its weights, their checksum, and its preprocessing."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from detectors.architectures import (
    Architecture,
    architectures,
    build_model,
    canonical_architecture,
    get_architecture,
    register_architecture,
)
from detectors.checkpoints import load_state, read_state
from detectors.devices import resolve_device
from utils.errors import UserError
from utils.files import sha256_file

__all__ = [
    "PROJECT_ROOT",
    "Architecture",
    "Detector",
    "architectures",
    "build_model",
    "canonical_architecture",
    "default_weights_path",
    "get_architecture",
    "imagenet_weights_path",
    "load_detector",
    "load_imagenet_classifier",
    "register_architecture",
    "replace_squeeze_excite",
]

PROJECT_ROOT = Path(__file__).resolve().parents[1]

_SQUEEZE_EXCITE = re.compile(r"\._se_(reduce|expand)\.(weight|bias)$")


@dataclass
class Detector:
    """A network in evaluation mode with all that belongs to its weights.

    Attributes:
        architecture: its registry entry.
        model: (N, 3, H, W) float32 to (N, outputs) logits; of a detector, p(fake) = sigmoid of the logit.
        device: where the model is.
        weights: the checkpoint, or None for a network made in memory.
        sha256: checksum of the checkpoint file, empty without one.
        outputs: 1 for a detector, 1000 for an ImageNet classifier.
    """

    architecture: Architecture
    model: nn.Module
    device: torch.device
    weights: Path | None
    sha256: str
    outputs: int
    precision: str = "fp32"

    def facts(self) -> dict[str, object]:
        return {"arch": self.arch, "precision": self.precision, "device_type": self.device.type}

    def inputs(self, images: Tensor) -> Tensor:
        return self.preprocess(images)

    def feature_maps(self):  # type: ignore[no-untyped-def]
        from passes.feature_maps import FeatureMapNetwork

        if not hasattr(self, "_maps"):
            self._maps = FeatureMapNetwork(self, self.precision)
        return self._maps

    def output(self, inputs: Tensor) -> Tensor:
        return self.feature_maps().observe(inputs, {}).logits

    def probability(self, output: Tensor, *, single_precision: bool = False) -> Tensor:
        return torch.sigmoid(output[:, 0].to(torch.float32 if single_precision else torch.float64)).double()

    @property
    def arch(self) -> str:
        """Canonical name of the architecture."""
        return self.architecture.name

    @property
    def mean(self) -> tuple[float, float, float]:
        """Per-channel mean subtracted from images scaled to 0..1."""
        return self.architecture.mean

    @property
    def std(self) -> tuple[float, float, float]:
        """Per-channel standard deviation that images are divided by."""
        return self.architecture.std

    @property
    def default_gradcam_layer(self) -> str:
        """Name of the layer Grad-CAM looks at unless told otherwise."""
        return self.architecture.gradcam_layer

    def preprocess(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) uint8 to the input of the network: normalised float32, channels-last.

        The arithmetic is that of torchvision's ToTensor and Normalize, step by step.

        Raises:
            ValueError: for another dtype or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        x = images.to(self.device).to(torch.float32).div_(255)
        mean = torch.tensor(self.mean, device=self.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=self.device).view(3, 1, 1)
        return x.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def default_weights_path(arch: str, tag: str, root: Path = PROJECT_ROOT) -> Path:
    """Where the detector of the published training recipe `tag` (`0.1` or `0.5`) is looked for.

    Raises:
        UserError: if the architecture is unknown or the tag is not fit for a file name.
    """
    if not re.fullmatch(r"[\w.+-]+", str(tag)):
        raise UserError(f"--blur_jpg {tag!r} is not fit for a file name: use 0.1 or 0.5, or --weights FILE")
    return root / "weights" / canonical_architecture(arch) / f"blur_jpg_prob{tag}.pth"


def imagenet_weights_path(arch: str, root: Path = PROJECT_ROOT) -> Path:
    """Where the ImageNet classifier of an architecture is looked for.

    Raises:
        UserError: if the architecture is unknown.
    """
    return root / "weights" / "imagenet" / f"{canonical_architecture(arch)}.pth"


def load_detector(
    arch: str,
    weights: str | Path | None = None,
    device: str | torch.device = "auto",
    *,
    outputs: int = 1,
    blur_jpg: str | None = None,
) -> Detector:
    """A network with the weights of a checkpoint, in evaluation mode on `device`.

    Args:
        arch: architecture name or alias.
        weights: checkpoint in a form `detectors.checkpoints.read_state` takes; default: the path for `blur_jpg`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        outputs: logits the network must have.
        blur_jpg: tag of the published training recipe, used without `weights`.

    Raises:
        UserError: for an unknown architecture, a missing device, or a checkpoint that cannot be used.
    """
    architecture = get_architecture(arch)
    if weights is None:
        if blur_jpg is None:
            raise UserError("no weights given: name the checkpoint with --weights, or the recipe with --blur_jpg")
        path = default_weights_path(arch, blur_jpg)
        if not path.exists():
            raise UserError(
                f"weights of {architecture.name} not found: {path}: put the published checkpoint there "
                "(docs/data_and_weights.md says where to get it), or give --weights FILE"
            )
    else:
        path = Path(weights)
    target = resolve_device(device)
    model = load_state(path, read_state(path), architecture, outputs)
    model.eval().requires_grad_(False)
    model.to(device=target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Detector(architecture, model, target, path, sha256_file(path), outputs)


def load_imagenet_classifier(
    arch: str, weights: str | Path | None = None, device: str | torch.device = "auto"
) -> Detector:
    """The ImageNet classifier of an architecture (1000 logits), default `weights/imagenet/<arch>.pth`.

    Raises:
        UserError: as `load_detector`; without the file it says which one to put where.
    """
    path = imagenet_weights_path(arch) if weights is None else Path(weights)
    if not path.exists():
        files = " or ".join(get_architecture(arch).imagenet_files) or "a checkpoint with 1000 outputs"
        where = "" if weights is None else f" or at {imagenet_weights_path(arch)}"
        raise UserError(
            f"ImageNet weights not found: put {files} at {path}{where} (docs/data_and_weights.md says where to get it)"
        )
    return load_detector(arch, path, device, outputs=1000)


def replace_squeeze_excite(model: nn.Module, imagenet_checkpoint: str | Path) -> int:
    """Put the squeeze-excite convolutions of an ImageNet EfficientNet into `model`; returns how many tensors.

    The published rankings of EfficientNet were most likely computed with such a hybrid, because the explained
    copy of the detector kept the squeeze-excite weights it was created with.

    Raises:
        UserError: if the model has no squeeze-excite convolutions, or the checkpoint lacks one or its shape.
    """
    path = Path(imagenet_checkpoint)
    own = {key: tensor for key, tensor in model.state_dict().items() if _SQUEEZE_EXCITE.search(key)}
    if not own:
        raise UserError("--compat_se is for EfficientNet only: this network has no squeeze-excite convolutions")
    state: Mapping[str, Tensor] = read_state(path)
    for key, tensor in own.items():
        if key not in state or state[key].shape != tensor.shape:
            raise UserError(
                f"--compat_se {path}: {key} is missing or of another shape: "
                "give the ImageNet checkpoint of the same EfficientNet"
            )
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(state[key])
    return len(own)
