"""What a network is trained for: targets, loss, and the numbers of a validation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from cr_ud.training_data import label_of
from detectors.heads import Head, OneLogit
from evaluation.metrics import accuracies, average_precision
from images.sets import ImageItem


class Network(Protocol):
    """What of a detector is needed to train it."""

    @property
    def model(self) -> nn.Module:
        """From inputs to an output that the task understands; parameters that need no gradient stay as they are."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    def inputs(self, images: Tensor) -> Tensor:
        """From images (N, 3, H, W) uint8, on the device."""


class Task(ABC):
    """An output is what the model returns, of any structure; targets are (N, ...), one for each image."""

    metrics: ClassVar[tuple[str, ...]]
    """Names of the numbers of a validation besides the loss, columns of the log."""
    panels: ClassVar[Mapping[str, Mapping[str, str]]]
    """What is drawn of them: metrics and their labels by the title of a panel, the most important last."""
    loss: ClassVar[str]
    """Name of the loss, for the curves."""

    @abstractmethod
    def target(self, item: ImageItem) -> Any:
        """What is to be learnt of an image: a NumPy number or array."""

    @abstractmethod
    def losses(self, output: Any, targets: Tensor) -> Tensor:
        """The loss of each image, (N,) float32, differentiable."""

    @abstractmethod
    def evidence(self, output: Any) -> Tensor:
        """What a validation keeps of each image, (N, ...) floats."""

    @abstractmethod
    def summary(self, evidence: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """`loss` (mean) and metrics over all images of a validation."""

    @abstractmethod
    def score(self, summary: Mapping[str, float]) -> float:
        """What the learning rate and the best epoch go by; higher is better."""


@dataclass(frozen=True)
class RealOrFake(Task):
    """Binary cross-entropy of the logit of fake, as the head reads the output; accuracies are decided at 0.5."""

    head: Head = OneLogit()
    metrics: ClassVar = ("ap", "acc", "acc_real", "acc_fake")
    panels: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "average precision": {"ap": "all"},
        "accuracy at 0.5": {"acc_real": "real", "acc_fake": "fake", "acc": "all"},
    }
    loss: ClassVar = "binary cross-entropy"

    def target(self, item: ImageItem) -> np.float32:
        return label_of(item)

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(self.evidence(output), targets, reduction="none")

    def evidence(self, output: Tensor) -> Tensor:
        return self.head.logit(output).float()

    def summary(self, evidence: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        logits = torch.from_numpy(evidence).double()
        loss = binary_cross_entropy_with_logits(logits, torch.from_numpy(targets).double())
        scores = OneLogit().probability(logits[:, None]).numpy()
        real, fake, overall = accuracies(targets, scores, 0.5)
        ap = average_precision(targets, scores)
        return {"loss": float(loss), "ap": ap, "acc": overall, "acc_real": real, "acc_fake": fake}

    def score(self, summary: Mapping[str, float]) -> float:
        return summary["acc"]
