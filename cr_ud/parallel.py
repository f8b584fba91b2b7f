"""Training in several processes: what they exchange, beyond what DistributedDataParallel does."""

from typing import TypeVar

import torch
from torch import nn
from torch.distributed import ReduceOp

from passes.processes import Ranks

BACKEND = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}

T = TypeVar("T")


def parallel_model(model: nn.Module, device: torch.device, ranks: Ranks) -> nn.Module:
    """The model as it is for one process; for several one that averages gradients over them.

    On GPUs batch norms use the statistics of all processes. PyTorch has no such batch norm for CPUs, where
    each process normalises by its own images and rank 0's running statistics are kept.
    """
    if ranks.world_size == 1:
        return model
    if device.type == "cuda":
        torch.cuda.set_device(device)
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return nn.parallel.DistributedDataParallel(model, device_ids=None if device.index is None else [device.index])


def bare_model(model: nn.Module) -> nn.Module:
    """The model inside what `parallel_model` returned."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def sum_over_ranks(values: list[float], ranks: Ranks) -> list[float]:
    """The sum of each value over all processes."""
    if ranks.world_size == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(tensor, ReduceOp.SUM)
    return tensor.tolist()


def share_buffers(model: nn.Module, ranks: Ranks) -> None:
    """Give every process the buffers (running statistics) of rank 0."""
    if ranks.world_size == 1:
        return
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, src=0)


def from_first(value: T | None, ranks: Ranks) -> T:
    """The value that rank 0 has, at every process."""
    values = [value]
    if ranks.world_size > 1:
        torch.distributed.broadcast_object_list(values, src=0)
    first = values[0]
    assert first is not None
    return first
