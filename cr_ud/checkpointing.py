"""The files of a training run: saving and restoring it, and the weights of the trained network."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detectors.checkpoints import save_half, save_tensors
from utils.errors import UserError
from utils.provenance import remove_with_record


@dataclass
class Progress:
    """Where a run is.

    The position in the data and all random numbers follow from the seed and these counts.

    Attributes:
        epoch: Epochs finished.
        step_in_epoch: Steps of the next epoch that are done.
        step: Optimiser steps done.
        log_rows: Rows of the log written.
        loss_sum: Sum of the losses of the images since the last row of the log.
        loss_images: Number of these images.
        finished: Whether the run has come to its own end (the learning rate, not the number of steps or epochs).
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    log_rows: int = 0
    loss_sum: float = 0.0
    loss_images: int = 0
    finished: bool = False


class RunFiles:
    """Where the files of a run are: `checkpoint.pth`, `best.pth`, `final.pth`, `log.csv`, `curves.{png,pdf}`."""

    key = "model"
    """What the weights are under in their files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint.pth"
        self.best = folder / "best.pth"
        self.final = folder / "final.pth"
        self.half = folder / "final.safetensors"
        self.log = folder / "log.csv"
        self.curves = folder / "curves"
        self.bad_batch = folder / "bad_batch.txt"
        self.skipped = folder / "skipped.txt"

    @property
    def weights(self) -> list[Path]:
        """The trained weights that are there."""
        return [path for path in (self.best, self.final, self.half) if path.exists()]

    def clear(self) -> None:
        """Remove what an earlier run has left."""
        for path in (*self.weights, self.checkpoint, self.log, self.bad_batch, self.skipped):
            remove_with_record(path)


def load_run(path: Path, arguments: Mapping[str, str]) -> dict[str, Any]:
    """The parts of a run, if it was saved under the same arguments.

    Raises:
        UserError: The file is unreadable or no saved run, or arguments differ, which are named.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # a broken file can raise nearly anything from inside the restricted unpickler
        raise UserError(f"{path} is damaged ({type(error).__name__}): remove it, or start anew elsewhere") from error
    parts = {"model", "optimizer", "scaler", "schedule", "progress", "arguments"}
    if not isinstance(saved, dict) or not parts <= saved.keys():
        raise UserError(f"{path} is not a saved training run: give another --name, or start anew with --overwrite")
    before = saved["arguments"]
    different = sorted(n for n in before.keys() | arguments.keys() if before.get(n) != arguments.get(n))
    if different:
        changes = (f"{n} (was {before.get(n, 'absent')}, is {arguments.get(n, 'absent')})" for n in different)
        raise UserError(
            f"{path} was saved under other arguments: {'; '.join(changes)}: give the same arguments, or another --name"
        )
    return saved


def save_network(path: Path, model: nn.Module, *, half: bool = False, key: str = RunFiles.key) -> None:
    """Write the weights in the published format ({key: state}); with `half` as float16 .safetensors.

    Raises:
        UserError: As `detectors.checkpoints.save_tensors`.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if half:
        save_half(path, state)
    else:
        save_tensors(path, {key: state})
