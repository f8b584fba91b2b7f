"""Where to compute, and with how many bits."""

import os
import re

import torch

from utils.errors import UserError

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
"""Floating-point type of the convolutions by `--precision`."""


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The device for `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.

    A GPU without a number is that of this process, by its LOCAL_RANK under `torchrun`.

    Raises:
        UserError: for another name, or a GPU that is not there.
    """
    text = str(name).strip().lower()
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise UserError(f"unknown device {str(name)!r}: use auto, cpu, cuda or cuda:N")
    device = torch.device(text)
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index, wanted = device.index, f"device {name}"
    if index is None:
        index = int(os.environ.get("LOCAL_RANK", "0"))
        wanted = f"a GPU for process {index} of this machine"
    if index >= count:
        mend = f"start at most {count} processes (torchrun --nproc_per_node)" if count else "use --device cpu"
        raise UserError(f"{wanted} is not there ({count} CUDA devices found): {mend}, or choose another --device")
    return torch.device("cuda", index)


def use_device(name: str | torch.device = "auto", precision: str = "fp32") -> torch.device:
    """The device, made the current one, with float32 arithmetic as asked: `fp32` is IEEE float32 on every device.

    Convolutions take the same algorithm every time, so that the same images give the same numbers.

    Raises:
        UserError: as `resolve_device`.
    """
    device = resolve_device(name)
    arithmetic = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cudnn.conv.fp32_precision = arithmetic  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn.fp32_precision = arithmetic  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = arithmetic
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """What results say of a device: `cpu`, or `cuda` with the model of the GPU (its number does not matter)."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
