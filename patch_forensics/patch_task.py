"""What patch classifiers are trained for: every patch says what its image is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cr_ud.task import Task
from images.sets import FAKE, ImageItem
from patch_forensics.averages import averaged


@dataclass(frozen=True)
class PatchTask(Task):
    """Cross-entropy of every patch with the class of its image; of whole images the same with one patch.

    Attributes:
        fake_class: Which of the two outputs is fake.
    """

    fake_class: int = 0
    metrics: ClassVar = ("acc_raw", "acc_voted", "acc_avg")
    panels: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "accuracy": {"acc_voted": "vote", "acc_avg": "average", "acc_raw": "patches"},
    }
    loss: ClassVar = "cross-entropy of patches"

    def target(self, item: ImageItem) -> np.int64:
        """The class of an image."""
        return np.int64(self.fake_class if item.label == FAKE else 1 - self.fake_class)

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        places = _places(output).float()
        return cross_entropy(places, targets[:, None].expand(-1, places.shape[2]), reduction="none").mean(1)

    def evidence(self, output: Tensor) -> Tensor:
        """(N, 4): the mean log-probability of both classes, the share of patches for class 1, its mean probability."""
        places = _places(output).double()
        votes, _, probability = averaged(places[:, 1] - places[:, 0]).unbind(1)
        return torch.stack([*places.log_softmax(1).mean(2).unbind(1), votes, probability], dim=1)

    def summary(self, evidence: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Loss; the share of patches that are right; and of images by the most votes and by the mean probability."""
        first = targets == 1
        votes, probability = evidence[:, 2].astype(float), evidence[:, 3].astype(float)
        return {
            "loss": float(-np.where(first, evidence[:, 1], evidence[:, 0]).mean()),
            "acc_raw": float(np.where(first, votes, 1 - votes).mean()),
            "acc_voted": float(((votes > 0.5) == first).mean()),
            "acc_avg": float(((probability > 0.5) == first).mean()),
        }

    def score(self, summary: Mapping[str, float]) -> float:
        return summary["acc_raw"]


def _places(output: Tensor) -> Tensor:
    """(N, 2, places)."""
    return output.flatten(2) if output.ndim > 2 else output[:, :, None]
