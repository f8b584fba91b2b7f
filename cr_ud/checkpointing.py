"""Saving and restoring a training run, and writing the trained detector."""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from utils.errors import UserError
from utils.files import atomic_path


@dataclass
class Progress:
    """Where a run is.

    The position in the data and all random numbers follow from the seed and these counts.

    Attributes:
        epoch: epochs finished.
        step_in_epoch: steps of the next epoch that are done.
        step: optimiser steps done.
        log_rows: rows of the log written.
        loss_sum: sum of the losses of the images since the last row of the log.
        loss_images: number of these images.
        finished: whether the run has come to its own end (the learning rate, not the number of steps or epochs).
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    log_rows: int = 0
    loss_sum: float = 0.0
    loss_images: int = 0
    finished: bool = False


def save_run(
    path: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    schedule: Mapping[str, Any],
    progress: Progress,
    arguments: Mapping[str, str],
) -> None:
    """Write all that is needed to go on, atomically, as tensors and plain values only.

    The weights are under `model`, so that the file is also a checkpoint in the published format.

    Raises:
        UserError: the disk is full or the place cannot be written to; an earlier file is left as it was.
    """
    _save(
        path,
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "schedule": dict(schedule),
            "progress": asdict(progress),
            "arguments": dict(arguments),
        },
    )


def load_run(path: Path, arguments: Mapping[str, str]) -> dict[str, Any]:
    """What `save_run` has written, if it was saved under the same arguments.

    Raises:
        UserError: the file is unreadable or no saved run, or arguments differ, which are named.
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
    different = [
        f"{name} (was {before.get(name, 'absent')}, is {arguments.get(name, 'absent')})"
        for name in sorted(before.keys() | arguments.keys())
        if before.get(name) != arguments.get(name)
    ]
    if different:
        raise UserError(
            f"{path} was saved under other arguments: {'; '.join(different)}: "
            "give the same arguments, or another --name"
        )
    return saved


def save_detector(path: Path, model: nn.Module, *, half: bool = False) -> None:
    """Write the weights in the published format ({"model": state}); with `half` as float16 .safetensors.

    Raises:
        UserError: the disk is full or the place cannot be written to.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if not half:
        _save(path, {"model": state})
        return
    with atomic_path(path) as temporary:
        save_file({key: _halved(value) for key, value in state.items()}, temporary)


def _halved(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value


def _save(path: Path, content: Mapping[str, Any]) -> None:
    # torch's own writer turns a full disk into a RuntimeError without a cause
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
