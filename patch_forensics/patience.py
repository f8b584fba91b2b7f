"""The published learning rate, and when training ends."""

from __future__ import annotations

from dataclasses import dataclass

from cr_ud.schedule import Decision, Schedule

_FACTOR = 0.1
_LEAST_GAIN = 1e-4  # of the best so far, as a share of it
_LEAST_DROP = 1e-6
_EPOCHS_OF_PATIENCE = 5


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
