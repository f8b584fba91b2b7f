"""The training loop: steps, validation, learning rate, checkpoints, interruption."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from cr_ud.augmentation import Augmentation
from cr_ud.checkpointing import Progress, load_run, save_detector, save_run
from cr_ud.parallel import bare_model, parallel_model, sum_over_ranks
from cr_ud.schedule import Schedule
from cr_ud.training_data import EpochOrder, Loaded, load_training, sample_evenly
from cr_ud.training_log import EPOCH, TRAIN, VALIDATION, LogRow, TrainingLog
from cr_ud.validation import Validation, validate
from detectors.detector import Detector
from images.sets import ImageSet
from passes.processes import Ranks
from utils.cli import GracefulInterrupt, progress
from utils.errors import Interrupted, UserError
from utils.files import write_text
from utils.tracking import Tracker

_STEP = 4  # stream of random numbers of the network itself (dropout), apart from those of the data


@dataclass(frozen=True)
class TrainingSettings:
    """How long to train, and what to do on the way.

    Attributes:
        epochs: passes over the training set at most; None: until the learning rate has run out.
        max_steps: optimiser steps at most; None: no limit.
        beta1: first coefficient of Adam, the second is 0.999.
        val_every: validate also every so many steps within an epoch; 0: at the end of epochs only.
        val_num: number of images, half of them real, for the validations within epochs; 0: all.
        checkpoint_every: steps between checkpoints.
        log_every: steps between rows of the log.
        clip_norm: gradients are scaled down to this norm, all parameters together, if theirs is larger; None: never.
        precision: `fp32`, `bf16` or `fp16` (GPU only) for convolutions and linear layers.
        num_workers: decoding processes.
        skip_bad_images: leave out images that cannot be used.
    """

    epochs: int | None = None
    max_steps: int | None = None
    beta1: float = 0.9
    val_every: int = 0
    val_num: int = 0
    checkpoint_every: int = 1000
    log_every: int = 20
    clip_norm: float | None = None
    precision: str = "fp32"
    num_workers: int = 0
    skip_bad_images: bool = False


class RunFiles:
    """Where the files of a run are: `checkpoint.pth`, `best.pth`, `final.pth`, `log.csv`, `curves.{png,pdf}`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint.pth"
        self.best = folder / "best.pth"
        self.final = folder / "final.pth"
        self.log = folder / "log.csv"
        self.curves = folder / "curves"
        self.bad_batch = folder / "bad_batch.txt"
        self.skipped = folder / "skipped.txt"


class Trainer:
    """Trains a detector; one object per process.

    Args:
        detector: the network to train, on its device.
        order: the training images.
        validation_set: without one there is no best epoch, and the rate of a `PlateauSchedule` stays constant.
        augmentation: of training and validation images.
        schedule: of the learning rate.
        settings: how long, how often.
        files: where results go.
        arguments: all that determines the result; a run is resumed under equal ones only.
        ranks: this process among others.
        trackers: get every row of the log.
    """

    def __init__(
        self,
        detector: Detector,
        order: EpochOrder,
        validation_set: ImageSet | None,
        augmentation: Augmentation,
        schedule: Schedule,
        settings: TrainingSettings,
        files: RunFiles,
        *,
        arguments: dict[str, str],
        ranks: Ranks | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        if validation_set is None and settings.epochs is None and settings.max_steps is None:
            raise UserError("without a validation set training would not end: give --epochs or --max_steps")
        self.order = order
        self.validation_set = validation_set
        self.augmentation = augmentation
        self.schedule = schedule
        self.settings = settings
        self.files = files
        self.arguments = arguments
        self.ranks = ranks or Ranks()
        self.trackers = trackers
        self.progress = Progress()
        device = detector.device
        self.model = parallel_model(detector.model, device, self.ranks)
        self.detector = replace(detector, model=bare_model(self.model))
        self.optimizer = torch.optim.Adam(
            self.detector.model.parameters(), lr=schedule.lr, betas=(settings.beta1, 0.999), fused=device.type == "cuda"
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.log: TrainingLog | None = None
        self._interrupt = GracefulInterrupt()
        self._skipped: dict[str, None] = {}
        self._bar: Any = None
        self._shown: dict[str, str] = {}
        self._clock = _Clock()

    def resume(self) -> None:
        """Restore the checkpoint of the run.

        Raises:
            UserError: it is damaged, or was saved under other arguments.
        """
        saved = load_run(self.files.checkpoint, self.arguments)
        self.detector.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.schedule = type(self.schedule)(**saved["schedule"])
        self.progress = Progress(**saved["progress"])

    def run(self) -> Progress:
        """Train to the end and write the detector.

        Raises:
            UserError: a loss is not finite, an image cannot be used, or a file cannot be written.
            Interrupted: after Ctrl-C or SIGTERM, with a checkpoint saved.
        """
        if self.ranks.is_first:
            self.log = TrainingLog(self.files.log, keep=self.progress.log_rows)
        total = self._total_steps()
        with self._interrupt, progress(total=total, description="training", unit="step") as bar:
            self._bar = bar
            bar.update(self.progress.step)
            while not self._is_done():
                self._train_epoch()
                if self.progress.step_in_epoch == self.order.steps:
                    self._end_epoch()
        self.save()
        self._finish()
        return self.progress

    def save(self) -> None:
        """Write the checkpoint (rank 0 only)."""
        if not self.ranks.is_first:
            return
        assert self.log is not None
        self.progress.log_rows = len(self.log.rows)
        save_run(
            self.files.checkpoint,
            model=self.detector.model,
            optimizer=self.optimizer,
            scaler=self.scaler,
            schedule=self.schedule.state(),
            progress=self.progress,
            arguments=self.arguments,
        )

    def _is_done(self) -> bool:
        made, settings = self.progress, self.settings
        return (
            made.finished
            or (settings.epochs is not None and made.epoch >= settings.epochs)
            or (settings.max_steps is not None and made.step >= settings.max_steps)
        )

    def _total_steps(self) -> int | None:
        by_epochs = None if self.settings.epochs is None else self.settings.epochs * self.order.steps
        limits = [limit for limit in (by_epochs, self.settings.max_steps) if limit is not None]
        return min(limits, default=None)

    def _train_epoch(self) -> None:
        """Steps up to the end of the epoch or of the run."""
        made, settings = self.progress, self.settings
        loader = load_training(
            self.order,
            self.augmentation,
            epoch=made.epoch,
            first_step=made.step_in_epoch,
            num_workers=settings.num_workers,
            skip_bad_images=settings.skip_bad_images,
        )
        self.model.train()
        for micro_batches in _steps(loader):
            self._step(micro_batches)
            made.step += 1
            made.step_in_epoch += 1
            self._bar.update(1)
            ends_epoch = made.step_in_epoch == self.order.steps
            if made.step % settings.log_every == 0 or ends_epoch:
                self._log_training()
            if settings.val_every and made.step % settings.val_every == 0 and not ends_epoch:
                self._report(VALIDATION, self._validate(VALIDATION))
            if made.step % settings.checkpoint_every == 0:
                self.save()
            self._stop_if_asked()
            if self._is_done():
                return

    def _step(self, micro_batches: Sequence[Loaded]) -> None:
        """One step of the optimiser.

        The loss is divided by the images of the whole step, and DistributedDataParallel averages gradients, so
        that neither the number of processes nor that of micro-batches changes the gradient.
        """
        made, rank = self.progress, self.ranks.rank
        torch.manual_seed(int(np.random.SeedSequence([self.order.seed, _STEP, made.step, rank]).generate_state(1)[0]))
        self.schedule.advance(made.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum = 0.0
        for loaded in micro_batches:
            self._note_skipped(loaded.failures)
            last = loaded is micro_batches[-1]
            waits = not last and isinstance(self.model, nn.parallel.DistributedDataParallel)
            with self.model.no_sync() if waits else nullcontext():  # type: ignore[operator]
                losses = self._losses(loaded)
                scale = self.ranks.world_size / loaded.micro_batch.step_size
                self.scaler.scale(losses.sum() * scale).backward()
            loss_sum += float(losses.detach().sum())
        images = sum(len(loaded.positions) for loaded in micro_batches)
        total, count, stop = sum_over_ranks([loss_sum, images, float(self._interrupt.requested)], self.ranks)
        if not np.isfinite(total):
            self._refuse_loss(loss_sum, micro_batches)
        self._interrupt.requested = stop > 0
        if self.settings.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.detector.model.parameters(), self.settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        made.loss_sum += total
        made.loss_images += int(count)
        self._clock.add(int(count))

    def _losses(self, loaded: Loaded) -> Tensor:
        """Binary cross-entropy of each image, (N,); 0 for the image that stands in for none."""
        device = self.detector.device
        images = torch.from_numpy(loaded.images)
        if device.type == "cuda":
            images = images.pin_memory().to(device, non_blocking=True)
        labels = torch.from_numpy(loaded.labels).to(device)
        with self._autocast():
            logits = self.model(self.detector.inputs(images.permute(0, 3, 1, 2))).squeeze(1)
        losses = binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
        return losses if loaded.positions else losses * 0.0

    def _autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.settings.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.detector.device.type, dtype, enabled=self.settings.precision != "fp32")

    def _refuse_loss(self, mine: float, micro_batches: Sequence[Loaded]) -> None:
        step = self.progress.step + 1
        if np.isfinite(mine):
            raise UserError(f"the loss of step {step} is not finite in another process: see its message")
        items = self.order.image_set.items
        names = [items[place].name for loaded in micro_batches for place in loaded.positions]
        write_text(self.files.bad_batch, "".join(f"{name}\n" for name in names))
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise UserError(
            f"the loss of step {step} is {mine}, on the batch of {some} (all in {self.files.bad_batch}): "
            "look at these images, lower --lr, or use --precision fp32; the last checkpoint is from before"
        )

    def _note_skipped(self, failures: Sequence[str]) -> None:
        new = [failure for failure in failures if failure not in self._skipped]
        self._skipped.update(dict.fromkeys(new))
        if new and self.ranks.is_first:
            write_text(self.files.skipped, "".join(f"{reason}\n" for reason in self._skipped))

    def _log_training(self) -> None:
        made = self.progress
        if made.loss_images:
            loss, speed = made.loss_sum / made.loss_images, self._clock.lap()
            self._add(TRAIN, made.loss_images, loss, images_per_s=speed)
            self._show(loss=f"{loss:.3f}", speed=f"{speed:.1f} images/s")
        made.loss_sum, made.loss_images = 0.0, 0

    def _add(self, kind: str, images: int, loss: float, **numbers: float) -> None:
        if self.log is None:
            return
        row = LogRow(self.progress.step, self.progress.epoch, kind, images, loss, self.schedule.lr, **numbers)
        self.log.add(row)
        for tracker in self.trackers:
            tracker.log(row.numbers())

    def _show(self, **texts: str) -> None:
        self._shown.update(texts)
        self._bar.set_postfix_str(", ".join(f"{name} {text}" for name, text in self._shown.items()))

    def _validate(self, kind: str) -> Validation:
        assert self.validation_set is not None
        settings = self.settings
        whole = self.validation_set
        images = whole if kind == EPOCH else sample_evenly(whole, settings.val_num, self.order.seed)
        with self._clock.paused():
            result = validate(
                self.detector,
                images,
                self.augmentation,
                batch_size=self.order.batch_size,
                epoch=self.progress.epoch,
                seed=self.order.seed,
                num_workers=settings.num_workers,
                autocast=self._autocast(),
                ranks=self.ranks,
                skip_bad_images=settings.skip_bad_images,
            )
        self._show(AP=f"{result.ap:.3f}")
        return result

    def _report(self, kind: str, result: Validation) -> None:
        numbers = {name: getattr(result, name) for name in ("ap", "acc", "acc_real", "acc_fake")}
        self._add(kind, result.images, result.loss, **numbers)

    def _end_epoch(self) -> None:
        result = None if self.validation_set is None else self._validate(EPOCH)
        self.progress.epoch += 1
        self.progress.step_in_epoch = 0
        if result is None:
            return
        decision = self.schedule.update(result.acc)
        self._report(EPOCH, result)
        self.progress.finished = decision.stop
        if decision.is_best:
            self._save_detector(self.files.best)

    def _finish(self) -> None:
        """Validate what no end of an epoch has validated, and write the detector.

        The schedule and the checkpoint know nothing of it, so that a run can go on with more steps.
        """
        if self.validation_set is not None and self.progress.step_in_epoch:
            result = self._validate(EPOCH)
            self._report(EPOCH, result)
            if replace(self.schedule).update(result.acc).is_best:
                self._save_detector(self.files.best)
        self._save_detector(self.files.final)

    def _save_detector(self, path: Path) -> None:
        if self.ranks.is_first:
            save_detector(path, self.detector.model)

    def _stop_if_asked(self) -> None:
        if not self._interrupt.requested or self._is_done():
            return
        self.save()
        raise Interrupted(
            f"after {self.progress.step} steps; state saved in {self.files.checkpoint}, "
            "run the same command again with --resume"
        )


def _steps(loader: Iterator[Loaded]) -> Iterator[list[Loaded]]:
    """Micro-batches put together to steps."""
    waiting: list[Loaded] = []
    for loaded in loader:
        waiting.append(loaded)
        if loaded.micro_batch.is_last:
            yield waiting
            waiting = []


class _Clock:
    """Images per second since the last lap, without the pauses."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._images = 0

    def add(self, images: int) -> None:
        self._images += images

    def lap(self) -> float:
        now = time.monotonic()
        speed = self._images / max(now - self._start, 1e-9)
        self._start, self._images = now, 0
        return speed

    @contextmanager
    def paused(self) -> Iterator[None]:
        before = time.monotonic()
        yield
        self._start += time.monotonic() - before
