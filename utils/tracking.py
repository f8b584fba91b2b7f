"""Logging to Weights & Biases and TensorBoard for those who ask for it; nothing of them is imported otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import sha256_text, write_text


class Tracker:
    """Where numbers and pictures of a run go besides the output folder: to all of some trackers, by default nowhere."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = trackers

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers by name, at a step of a training."""
        for tracker in self._trackers:
            tracker.log(values, step)

    def picture(self, name: str, path: Path) -> None:
        """Log a PNG file."""
        for tracker in self._trackers:
            tracker.picture(name, path)


class _Wandb(Tracker):
    def __init__(self, run: Any, module: Any) -> None:
        self._run, self._module = run, module

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        self._run.log(dict(values) if step is None else {**values, "step": step})

    def picture(self, name: str, path: Path) -> None:
        self._run.log({name: self._module.Image(str(path))})


class _TensorBoard(Tracker):
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path, formats=["PNG"]) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), dataformats="HWC")


@contextmanager
def trackers(
    *,
    wandb: bool,
    tensorboard: bool,
    job: str,
    config: Mapping[str, Any],
    folder: Path,
    name: str | None = None,
    resume: bool = False,
) -> Iterator[Tracker]:
    """What was asked for; files go below `folder`.

    The usual environment variables (WANDB_MODE=offline, WANDB_PROJECT, WANDB_NAME, ...) apply.

    Args:
        wandb, tensorboard: Which.
        job: Kind of run.
        config: Settings, numbers as numbers.
        folder: Of the run.
        name: Shown by Weights & Biases; by default the job with the generators.
        resume: Go on with the Weights & Biases run of the same folder and job.

    Raises:
        UserError: A package is not installed, or does not start (no API key, no connection).
    """
    with ExitStack() as stack:
        chosen: list[Tracker] = []
        if wandb:
            chosen.append(stack.enter_context(_wandb(job, config, folder, name, resume)))
        if tensorboard:
            chosen.append(stack.enter_context(_tensorboard(folder / "tensorboard" / job)))
        yield Tracker(chosen)


@contextmanager
def _wandb(job: str, config: Mapping[str, Any], folder: Path, name: str | None, resume: bool) -> Iterator[Tracker]:
    try:
        import wandb
    except ImportError as error:
        raise UserError("--wandb: wandb is not installed: pip install wandb, or leave the flag out") from error
    sets = config.get("gan_name") or ()
    # the identifier that Weights & Biases gave to the run, by what is computed where
    identity = folder / "wandb" / f"{sha256_text([job, *sorted(sets)])[:16]}.id"
    going_on = resume and identity.is_file()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
            project="tff",
            job_type=job,
            name=name or " ".join([job, str(config.get("arch", "")), *sets]).strip(),
            config=dict(config),
            dir=folder,
            id=identity.read_text(encoding="utf-8") if going_on else None,
            resume="allow" if going_on else None,
        )
        write_text(identity, run.id)
    except wandb.errors.Error as error:
        raise UserError(f"--wandb: {error} Or set WANDB_MODE=offline, or leave the flag out") from error
    run.define_metric("*", step_metric="step")
    with run:
        yield _Wandb(run, wandb)


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Tracker]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard: tensorboard is not installed: pip install tensorboard, or leave the flag out"
        ) from error
    with SummaryWriter(str(folder)) as writer:
        yield _TensorBoard(writer)
