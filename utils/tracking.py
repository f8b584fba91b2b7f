"""Logging to Weights & Biases for those who ask for it; nothing of it is imported otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import UserError


class Tracker:
    """Where numbers and pictures of a run go besides the output folder; by default nowhere."""

    def log(self, values: Mapping[str, Any]) -> None:
        """Log numbers by name."""

    def picture(self, name: str, path: Path) -> None:
        """Log a PNG file."""


class _WandbTracker(Tracker):
    def __init__(self, run: Any, module: Any) -> None:
        self._run, self._module = run, module

    def log(self, values: Mapping[str, Any]) -> None:
        self._run.log(dict(values))

    def picture(self, name: str, path: Path) -> None:
        self._run.log({name: self._module.Image(str(path))})


@contextmanager
def tracker(enabled: bool, *, job: str, config: Mapping[str, Any], folder: Path) -> Iterator[Tracker]:
    """A tracker for one run; with `enabled` a Weights & Biases run, whose files go below `folder`.

    The usual environment variables (WANDB_MODE=offline, WANDB_PROJECT, ...) apply.

    Raises:
        UserError: wandb is not installed, or does not start (no API key, no connection).
    """
    if not enabled:
        yield Tracker()
        return
    try:
        import wandb
    except ImportError as error:
        raise UserError("--wandb: wandb is not installed: pip install wandb, or leave the flag out") from error
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(project="tff", job_type=job, config={k: str(v) for k, v in config.items()}, dir=folder)
    except wandb.errors.Error as error:
        raise UserError(f"--wandb: {error} Or set WANDB_MODE=offline, or leave the flag out") from error
    with run:
        yield _WandbTracker(run, wandb)
