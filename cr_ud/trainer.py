"""The training loop: steps, validation, learning rate, checkpoints, interruption.

What is trained, and for what, is given. The images of a step, their augmentation and the random numbers of the network
follow from the seed and the counts of `Progress`, so that neither processes nor workers nor an interruption change what
is learnt.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cr_ud.checkpointing import Progress, RunFiles, load_run, save_network
from cr_ud.options import Monitoring, Optimisation
from cr_ud.schedule import Schedule
from cr_ud.task import Network, Task
from cr_ud.training_data import EpochOrder, Loaded, Loader
from cr_ud.training_log import EPOCH, TRAIN, VALIDATION, LogRow, TrainingLog
from cr_ud.training_sets import sample_evenly
from detectors.checkpoints import save_tensors
from images.sets import ImageSet
from passes.interrupts import GracefulInterrupt
from passes.processes import Ranks
from utils.cli import progress
from utils.errors import Interrupted, UserError
from utils.files import write_text
from utils.tracking import Tracker

_STEP = 4  # stream of random numbers of the network itself (dropout), apart from those of the data


@dataclass(frozen=True)
class Training:
    """What is trained, for what, on what and how.

    Attributes:
        network: A detector or anything like it, on its device.
        task: Loss, targets and metrics.
        order: The training images.
        validation_set: Without one there is no best epoch, and the rate of a `PlateauSchedule` stays constant.
        loader: Of training and validation images, with the target of the task.
        schedule: Of the learning rate; a new one.
        optimizer: Makes the optimiser for the parameters that need a gradient.
        optimisation: How long, with which precision.
        monitoring: How often to look.
        arguments: All that determines the result; a run is resumed under equal ones only.

    Raises:
        UserError: It would not end, or the device lacks the precision.
    """

    network: Network
    task: Task
    order: EpochOrder
    validation_set: ImageSet | None
    loader: Loader
    schedule: Schedule
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    optimisation: Optimisation
    monitoring: Monitoring
    arguments: Mapping[str, str]

    def __post_init__(self) -> None:
        if self.validation_set is None and self.optimisation.epochs is None and self.optimisation.max_steps is None:
            raise UserError("without a validation set training would not end: give --epochs or --max_steps")
        if self.optimisation.precision == "fp16" and self.network.device.type != "cuda":
            raise UserError("--precision fp16 is for GPUs: use bf16 or fp32 on a CPU")


class Trainer:
    """Trains; one object per process.

    Args:
        training: What and how.
        files: Where results go.
        ranks: This process among others.
        tracker: Gets every row of the log.
    """

    def __init__(
        self, training: Training, files: RunFiles, ranks: Ranks | None = None, tracker: Tracker | None = None
    ) -> None:
        self.training, self.files = training, files
        self.ranks, self.tracker = ranks or Ranks(), tracker or Tracker()
        self.network, self.order, self.task = training.network, training.order, training.task
        self.schedule = copy.copy(training.schedule)
        self.progress = Progress()
        self.model = _parallel(self.network.model, self.network.device, self.ranks)
        self.parameters = [value for value in self.network.model.parameters() if value.requires_grad]
        self.optimizer = training.optimizer(self.parameters)
        fp16 = training.optimisation.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.network.device.type, enabled=fp16)
        self.log: TrainingLog | None = None
        self._interrupt = GracefulInterrupt()
        self._skipped: dict[str, None] = {}
        self._learnt = False  # from any image
        self._bar: Any = None
        self._shown: dict[str, str] = {}
        self._since, self._images = time.monotonic(), 0  # for the speed, without validations

    def resume(self) -> None:
        """Restore the checkpoint of the run.

        Raises:
            UserError: It is damaged, or was saved under other arguments.
        """
        saved = load_run(self.files.checkpoint, self.training.arguments)
        self.network.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.schedule = type(self.schedule)(**saved["schedule"])
        self.progress = Progress(**saved["progress"])
        self._learnt = self.progress.step > 0

    def run(self) -> Progress:
        """Train to the end and write the weights.

        Raises:
            UserError: A loss is not finite, an image cannot be used, or a file cannot be written.
            Interrupted: After Ctrl-C or SIGTERM, with a checkpoint saved.
        """
        if self.ranks.is_first:
            self.log = TrainingLog(self.files.log, self.task.metrics, keep=self.progress.log_rows)
        with self._interrupt, progress(total=self._total_steps(), description="training", unit="step") as bar:
            self._bar = bar
            bar.update(self.progress.step)
            while not self._is_done():
                self._train_epoch()
                if not self._learnt:
                    raise UserError(f"no training image can be used: {self.files.skipped} says why")
                if self.progress.step_in_epoch == self.order.steps:
                    self._end_epoch()
        self.save()
        # What no end of an epoch has validated. Schedule and checkpoint know nothing of it: a run can go on from there.
        if self.training.validation_set is not None and self.progress.step_in_epoch:
            self._judge(self._validate(), copy.copy(self.schedule))
        self._keep_as(self.files.final)
        return self.progress

    def save(self) -> None:
        """Write the checkpoint (rank 0 only); its weights are under `model`, as in the published format."""
        if self.log is None:
            return
        self.progress.log_rows = len(self.log.rows)
        parts: dict[str, Any] = {"model": self.network.model, "optimizer": self.optimizer, "scaler": self.scaler}
        content = {name: part.state_dict() for name, part in parts.items()}
        content |= {"schedule": asdict(self.schedule), "progress": asdict(self.progress)}  # type: ignore[call-overload]
        save_tensors(self.files.checkpoint, {**content, "arguments": dict(self.training.arguments)})

    def _is_done(self) -> bool:
        now, limits = self.progress, self.training.optimisation
        return (
            now.finished
            or (limits.epochs is not None and now.epoch >= limits.epochs)
            or (limits.max_steps is not None and now.step >= limits.max_steps)
        )

    def _total_steps(self) -> int | None:
        limits = self.training.optimisation
        by_epochs = None if limits.epochs is None else limits.epochs * self.order.steps
        return min((limit for limit in (by_epochs, limits.max_steps) if limit is not None), default=None)

    def _train_epoch(self) -> None:
        """Steps up to the end of the epoch or of the run."""
        now, often = self.progress, self.training.monitoring
        self.model.train()
        for micro_batches in _steps(self.training.loader.training(self.order, now.epoch, now.step_in_epoch)):
            self._step(micro_batches)
            now.step += 1
            now.step_in_epoch += 1
            self._bar.update(1)
            ends_epoch = now.step_in_epoch == self.order.steps
            if now.step % often.log_every == 0 or ends_epoch:
                self._log_training()
            if often.val_every and now.step % often.val_every == 0 and not ends_epoch:
                self._add(VALIDATION, *self._validate(often.val_num))
            if now.step % often.checkpoint_every == 0:
                self.save()
            self._stop_if_asked()
            if self._is_done():
                return

    def _step(self, micro_batches: Sequence[Loaded]) -> None:
        """One step of the optimiser.

        The loss is divided by the images of the whole step, and DistributedDataParallel averages gradients, so
        that neither the number of processes nor that of micro-batches changes the gradient.
        """
        now, rank = self.progress, self.ranks.rank
        torch.manual_seed(int(np.random.SeedSequence([self.order.seed, _STEP, now.step, rank]).generate_state(1)[0]))
        self.schedule.advance(now.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.network.device)
        for loaded in micro_batches:
            self._note_skipped(loaded.failures)
            waits = loaded is not micro_batches[-1] and isinstance(self.model, DistributedDataParallel)
            with self.model.no_sync() if waits else nullcontext():  # type: ignore[operator]
                losses = self._losses(loaded)
                scale = self.ranks.world_size / loaded.micro_batch.step_size
                self.scaler.scale(losses.sum() * scale).backward()
            loss_sum += losses.detach().sum()
        images, mine = sum(len(loaded.positions) for loaded in micro_batches), float(loss_sum)
        total, count, stop = self.ranks.sum([mine, images, float(self._interrupt.requested)])
        if not np.isfinite(total):
            self._refuse_loss(mine, micro_batches)
        self._interrupt.requested = stop > 0
        if self.training.optimisation.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.training.optimisation.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._learnt |= count > 0
        now.loss_sum += total
        now.loss_images += int(count)
        self._images += int(count)

    def _losses(self, loaded: Loaded) -> Tensor:
        """The loss of each image, (N,); 0 for the image that stands in for none."""
        device = self.network.device
        images = torch.from_numpy(loaded.images)
        if device.type == "cuda":
            images = images.pin_memory().to(device, non_blocking=True)
        with self._autocast():
            output = self.model(self.network.inputs(images.permute(0, 3, 1, 2)))
        losses = self.task.losses(output, torch.from_numpy(loaded.targets).to(device))
        return losses if loaded.positions else losses * 0.0

    def _autocast(self) -> torch.autocast:
        precision = self.training.optimisation.precision
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        return torch.autocast(self.network.device.type, dtype, enabled=precision in ("bf16", "fp16"))

    def _refuse_loss(self, mine: float, micro_batches: Sequence[Loaded]) -> None:
        step = self.progress.step + 1
        if np.isfinite(mine):
            raise UserError(f"the loss of step {step} is not finite in another process: see its message")
        items = self.order.image_set.items
        names = [items[position].name for loaded in micro_batches for position in loaded.positions]
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
        now, time_now = self.progress, time.monotonic()
        if now.loss_images:
            loss, speed = now.loss_sum / now.loss_images, self._images / max(time_now - self._since, 1e-9)
            self._add(TRAIN, now.loss_images, {"loss": loss}, speed)
            self._show(loss=f"{loss:.3f}", speed=f"{speed:.1f} images/s")
        now.loss_sum, now.loss_images = 0.0, 0
        self._since, self._images = time_now, 0

    def _add(self, kind: str, images: int, numbers: Mapping[str, float], images_per_s: float | None = None) -> None:
        if self.log is None:
            return
        metrics = {name: value for name, value in numbers.items() if name != "loss"}
        now = self.progress
        row = LogRow(now.step, now.epoch, kind, images, numbers["loss"], self.schedule.lr, metrics, images_per_s)
        self.log.add(row)
        self.tracker.log(row.numbers(), step=now.step)

    def _show(self, **texts: str) -> None:
        self._shown.update(texts)
        self._bar.set_postfix_str(", ".join(f"{name} {text}" for name, text in self._shown.items()))

    def _validate(self, number: int = 0) -> tuple[int, dict[str, float]]:
        """Images used and their numbers, in evaluation mode, each process its share; all get the same.

        With a `number`, of about so many images, half of them real.
        """
        started, model, seed = time.monotonic(), self.network.model, self.order.seed
        assert self.training.validation_set is not None
        images = sample_evenly(self.training.validation_set, number, seed)
        self.ranks.broadcast(model.buffers())
        model.eval()
        mine: list[tuple[tuple[int, ...], np.ndarray, np.ndarray]] = []
        loader, size = self.training.loader, self.order.batch_size
        for loaded in loader.validation(images, size, epoch=self.progress.epoch, seed=seed, ranks=self.ranks):
            if loaded.positions:
                inputs = self.network.inputs(torch.from_numpy(loaded.images).permute(0, 3, 1, 2))
                with torch.no_grad(), self._autocast():
                    evidence = self.task.evidence(model(inputs))
                mine.append((loaded.positions, loaded.targets, evidence.float().cpu().numpy()))
        model.train()
        gathered = self.ranks.gather(mine)
        parts = [part for parts in gathered or () for part in parts]
        count, numbers = self.ranks.from_first(self._summary(parts) if self.ranks.is_first else None)
        self._since += time.monotonic() - started
        first = self.task.metrics[0]
        self._show(**{first: f"{numbers[first]:.3f}"})
        return count, numbers

    def _summary(self, parts: list[tuple[tuple[int, ...], np.ndarray, np.ndarray]]) -> tuple[int, dict[str, float]]:
        if not parts:
            raise UserError("no validation image can be used: give --val_dir others")
        positions, targets, evidence = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(positions)
        return len(order), self.task.summary(evidence[order], targets[order])

    def _end_epoch(self) -> None:
        result = None if self.training.validation_set is None else self._validate()
        self.progress.epoch += 1
        self.progress.step_in_epoch = 0
        if result is not None:
            self.progress.finished = self._judge(result, self.schedule)

    def _judge(self, result: tuple[int, dict[str, float]], schedule: Schedule) -> bool:
        """Log a validation and keep the weights if they are the best; whether the schedule ends the run."""
        images, numbers = result
        decision = schedule.update(self.task.score(numbers))
        self._add(EPOCH, images, numbers)
        if decision.is_best:
            self._keep_as(self.files.best)
        return decision.stop

    def _keep_as(self, path: Path) -> None:
        if self.ranks.is_first:
            save_network(path, self.network.model, key=self.files.key)

    def _stop_if_asked(self) -> None:
        if not self._interrupt.requested or self._is_done():
            return
        self.save()
        raise Interrupted(
            f"after {self.progress.step} steps; state saved in {self.files.checkpoint}, "
            "run the same command again with --resume"
        )


def _parallel(model: nn.Module, device: torch.device, ranks: Ranks) -> nn.Module:
    """The model as it is for one process; for several one that averages gradients over them.

    On GPUs batch norms use the statistics of all processes. PyTorch has no such batch norm for CPUs, where
    each process normalises by its own images and rank 0's running statistics are kept.
    """
    if ranks.world_size == 1:
        return model
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # within the model, which stays the same object
    return DistributedDataParallel(model, device_ids=None if device.index is None else [device.index])


def _steps(loader: Iterator[Loaded]) -> Iterator[list[Loaded]]:
    """Micro-batches put together to steps."""
    waiting: list[Loaded] = []
    for loaded in loader:
        waiting.append(loaded)
        if loaded.micro_batch.is_last:
            yield waiting
            waiting = []
