"""Which device to compute on."""

import re

import torch

from utils.errors import UserError


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The device for `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        UserError: for another name, or a GPU that is not there.
    """
    if isinstance(name, torch.device):
        return name
    text = name.strip().lower()
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise UserError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N")
    device = torch.device(text)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(f"device {name} is not there ({count} CUDA devices found): use --device cpu or auto")
    return device
