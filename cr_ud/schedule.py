"""The learning rate over training, and when training ends."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

_FACTOR = 0.1
_LEAST_GAIN = 0.001
_LEAST_GAIN_AFTER_DROP = 0.002
_WARM_UP = 0.05  # share of the steps in which the cosine schedule rises


@dataclass(frozen=True)
class Decision:
    """What follows from a validation: keep the weights as the best, stop."""

    is_best: bool = False
    stop: bool = False


class Schedule(ABC):
    """The rate of every step, and what follows from validations.

    Subclasses are dataclasses of plain values, from which a checkpoint makes them again.
    """

    lr: float
    """Learning rate of the next step."""

    def advance(self, step: int) -> None:  # noqa: B027 - most schedules have nothing to do then
        """Set the rate of optimiser step `step`, counted from 0; by default it changes after validations only."""

    @abstractmethod
    def update(self, score: float) -> Decision:
        """Take the score of an epoch's validation (higher is better) and say what follows."""


@dataclass
class PlateauSchedule(Schedule):
    """Divide the learning rate by ten when validation accuracy stalls; stop when it would fall below `least_lr`.

    The early stopping of Wang et al. (CVPR 2020).

    An epoch counts as progress if it beats the reference accuracy by at least 0.001 (0.002 after a drop);
    the reference is the accuracy of the last epoch with progress. After `patience` epochs without, the rate drops.

    Attributes:
        lr: current learning rate.
        patience: epochs without progress until a drop.
        least_lr: training stops instead of going below it.
        compat: "published" starts anew after a drop, so that the first epoch then always becomes the best, even
            if it is worse than before, and calls only epochs with progress the best; by default the reference
            stays, and the best is the epoch of the highest accuracy.
        reference: accuracy that progress is measured from, None before the first epoch.
        best: highest accuracy so far.
        waiting: epochs without progress.
        drops: how often the rate has dropped.
    """

    lr: float = 1e-4
    patience: int = 5
    least_lr: float = 1e-6
    compat: Literal["none", "published"] = "none"
    reference: float | None = None
    best: float | None = None
    waiting: int = 0
    drops: int = 0

    def update(self, score: float) -> Decision:
        """Take the validation accuracy (0..1) of an epoch and say what follows."""
        highest = self.best is None or score > self.best
        if highest:
            self.best = score
        gain = _LEAST_GAIN_AFTER_DROP if self.drops else _LEAST_GAIN
        if self.reference is None or score >= self.reference + gain:
            self.reference, self.waiting = score, 0
            return Decision(is_best=highest or self.compat == "published")
        is_best = highest and self.compat != "published"
        self.waiting += 1
        if self.waiting < self.patience:
            return Decision(is_best)
        if self.lr * _FACTOR < self.least_lr:
            return Decision(is_best, stop=True)
        self.lr *= _FACTOR
        self.drops, self.waiting = self.drops + 1, 0
        if self.compat == "published":
            self.reference = None
        return Decision(is_best)


@dataclass
class CosineSchedule(Schedule):
    """Raise the learning rate linearly over the first 5 % of the steps, then lower it to 0 along a cosine.

    For training of a known length, as from random weights (Loshchilov and Hutter: SGDR, ICLR 2017, Eq. 5, one period).

    Attributes:
        lr: learning rate of the last step.
        highest_lr: learning rate after the rise.
        steps: number of steps of the whole training.
        best: highest validation accuracy so far.
    """

    highest_lr: float
    steps: int
    lr: float = 0.0
    best: float | None = None

    def advance(self, step: int) -> None:
        """Set the rate of optimiser step `step`, counted from 0."""
        rise = max(1, round(_WARM_UP * self.steps))
        if step < rise:
            self.lr = self.highest_lr * (step + 1) / rise
        else:
            done = (step - rise) / max(1, self.steps - rise)
            self.lr = self.highest_lr * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))

    def update(self, score: float) -> Decision:
        """Take the score of an epoch's validation; of equally good ones the last is the best."""
        is_best = self.best is None or score >= self.best
        if is_best:
            self.best = score
        return Decision(is_best)
