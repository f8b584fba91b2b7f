"""What patch classifiers are trained for, every patch says what its image is; the published learning rate and end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cr_ud.schedule import Decision, Schedule
from cr_ud.task import Task
from images.sets import FAKE, ImageItem
from patch_forensics.averages import averaged

_FACTOR = 0.1
_LEAST_GAIN = 1e-4  # of the best so far, as a share of it
_LEAST_DROP = 1e-6
_EPOCHS_OF_PATIENCE = 5


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


@dataclass
class PatienceSchedule(Schedule):
    """Ends after 5 times the patience without a better epoch, or when none can be; the rate is constant or drops.

    The tests for the end are made in epochs without a better validation only, so that training with `max_epochs` goes
    on for as long as every epoch is better.

    Attributes:
        lr: Current learning rate.
        patience: In epochs.
        policy: `plateau` divides the rate by ten after more than `patience` epochs that are not better by 0.01 %.
        max_epochs: None for any number.
        epoch: Epochs finished.
        best: Highest score so far, None before the first epoch.
        best_epoch: When that was.
        reference: Score that progress of `plateau` is measured from.
        waiting: Epochs without such progress.
    """

    lr: float
    patience: int
    policy: str = "constant"
    max_epochs: int | None = None
    epoch: int = 0
    best: float | None = None
    best_epoch: int = 0
    reference: float | None = None
    waiting: int = 0

    def update(self, score: float) -> Decision:
        """Take the score of an epoch's validation, 0..1."""
        is_best = self.best is None or score > self.best
        if is_best:
            self.best, self.best_epoch = score, self.epoch
        late = self.epoch > self.best_epoch + _EPOCHS_OF_PATIENCE * self.patience
        over = self.max_epochs is not None and self.epoch > self.max_epochs
        stop = not is_best and (late or self.best == 1 or over)
        self.epoch += 1
        if self.policy == "plateau" and not stop:
            self._look_for_plateau(score)
        return Decision(is_best, stop)

    def _look_for_plateau(self, score: float) -> None:
        if self.reference is None or score > self.reference * (1 + _LEAST_GAIN):
            self.reference, self.waiting = score, 0
            return
        self.waiting += 1
        if self.waiting > self.patience:
            self.waiting = 0
            if self.lr * (1 - _FACTOR) > _LEAST_DROP:
                self.lr *= _FACTOR
