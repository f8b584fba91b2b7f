"""What networks of attribution learn: tasks, the end of training, and networks side by side on shared layers."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from cr_ud.schedule import Decision, Schedule
from cr_ud.task import Task
from images.sets import FAKE, REAL, ImageItem, ImageSet


@dataclass
class EarlyStopping(Schedule):
    """A constant learning rate; the end after some epochs without a better score.

    Attributes:
        lr: Learning rate.
        patience: So many epochs.
        best: Highest score so far.
        waiting: Epochs since.
    """

    lr: float = 1e-3
    patience: int = 5
    best: float | None = None
    waiting: int = 0

    def update(self, score: float) -> Decision:
        """Take the score of an epoch's validation."""
        if self.best is None or score > self.best:
            self.best, self.waiting = score, 0
            return Decision(is_best=True)
        self.waiting += 1
        return Decision(stop=self.waiting >= self.patience)


@dataclass(frozen=True)
class Telling(Task):
    """Which of two classes, for each of several outputs (N, K), or which of K classes.

    Accuracies are of all answers, and the mean over what is right; the score is the negative loss.

    Attributes:
        sources: What is told; none: generated from real.
    """

    sources: Sequence[str]
    metrics: ClassVar = ("acc", "acc_balanced")
    panels: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "accuracy": {"acc_balanced": "mean of the classes", "acc": "all"}
    }

    @abstractmethod
    def answers(self, evidence: np.ndarray) -> np.ndarray:
        """In the form of `wanted`."""

    def wanted(self, targets: np.ndarray) -> np.ndarray:
        """The right answers."""
        return targets

    def evidence(self, output: Tensor) -> Tensor:
        return output

    def summary(self, evidence: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        loss = self.losses(torch.from_numpy(evidence), torch.from_numpy(targets)).double().mean()
        wanted = self.wanted(targets)
        right = self.answers(evidence) == wanted
        balanced = float(np.mean([right[wanted == number].mean() for number in np.unique(wanted)]))
        return {"loss": float(loss), "acc": float(right.mean()), "acc_balanced": balanced}

    def score(self, summary: Mapping[str, float]) -> float:
        return -summary["loss"]


@dataclass(frozen=True)
class OneVersusRest(Telling):
    """Binary cross-entropy of each output, added up; answers at 0.5.

    A target is the weight of the image in the loss of the output, and above 0 if the answer is to be yes.

    Attributes:
        weights: For each source those of images of a generator, "" for real ones; 1 by default.
    """

    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    loss: ClassVar = "binary cross-entropy"

    def target(self, item: ImageItem) -> np.ndarray:
        told = {source: item.generator == source for source in self.sources} or {"": item.label == FAKE}
        weights = [self.weights.get(source, {}).get(item.generator, 1.0) for source in told]
        return np.where(list(told.values()), weights, np.negative(weights)).astype(np.float32)

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        wanted = (targets > 0).float()
        return binary_cross_entropy_with_logits(output.float(), wanted, targets.abs(), reduction="none").sum(1)

    def wanted(self, targets: np.ndarray) -> np.ndarray:
        return targets > 0

    def answers(self, evidence: np.ndarray) -> np.ndarray:
        return evidence >= 0


def class_weights(sources: Sequence[str], images: ImageSet) -> dict[str, dict[str, float]]:
    """Of `OneVersusRest`: a source counts as much as all else, and real images as much as the other sources."""
    counts = Counter(item.generator for item in images.items)
    total, real = len(images), counts.pop("", 0)
    by_source = {}
    for source in sources:
        positives, others = counts[source], sum(number for name, number in counts.items() if name != source)
        # a half for all else, divided where there are both kinds of it
        share = total / (4 if others and real else 2)
        weights = dict.fromkeys(counts, share / max(1, others))
        by_source[source] = weights | {source: total / (2 * positives), "": share / max(1, real)}
    return by_source


class OneOfAll(Telling):
    """Cross-entropy of real and the sources; the most probable one is the answer."""

    loss: ClassVar = "cross-entropy"

    def target(self, item: ImageItem) -> np.int64:
        return np.int64(0 if item.label == REAL else 1 + self.sources.index(item.generator))

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(output.float(), targets, reduction="none")

    def answers(self, evidence: np.ndarray) -> np.ndarray:
        return evidence.argmax(1)


class Branches(nn.Module):
    """Networks that are trained, side by side on the same layers before them: (N, outputs of all).

    Args:
        shared: Of a primary, whose secondaries are trained: they stay in evaluation mode and get no gradient, since
            their running statistics, too, belong to all secondaries. None for a network that is trained whole.
        branches: What is trained.
        fixed_norms: Batch norms use their running statistics in training, too. Photographs differ in contrast, so that
            a small batch is seldom normalised as all images together are; an epoch so at the end mends the difference.
        zero_bias: The biases of the last layers are 0 and stay so. With a bias above 0 a network can say yes wherever
            nothing speaks against it, and no feature map then has relevance for the yes.
    """

    def __init__(
        self,
        shared: nn.Sequential | None,
        branches: Sequence[nn.Sequential],
        *,
        fixed_norms: bool = False,
        zero_bias: bool = False,
    ) -> None:
        super().__init__()
        self.shared = nn.Identity() if shared is None else shared.requires_grad_(False)
        self.branches = nn.ModuleList(branch.requires_grad_(True) for branch in branches)
        self.fixed_norms = fixed_norms
        for branch in branches if zero_bias else ():
            nn.init.zeros_(branch[-1].get_parameter("bias").requires_grad_(False))

    def train(self, mode: bool = True) -> Branches:
        """The mode of all that is not to stay as it is."""
        super().train(mode)
        self.shared.eval()
        for module in self.branches.modules() if self.fixed_norms else ():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        shared = self.shared(x)
        return torch.cat([branch(shared) for branch in self.branches], dim=1)
