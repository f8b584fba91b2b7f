"""This process among those that `torchrun` started: rank, device, gathering. One process alone needs none of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch


@dataclass(frozen=True)
class Ranks:
    """Place of this process among all.

    Attributes:
        rank: 0 for the one that writes results.
        world_size: Number of processes.
        local_rank: Number of the process on its machine, and of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all processes in the order of their ranks, at rank 0; None elsewhere."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.world_size if self.is_first else None
        torch.distributed.gather_object(value, gathered, dst=0)
        return gathered

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world_size > 1:
            torch.distributed.barrier()


@contextmanager
def process_group(backend: str = "gloo") -> Iterator[Ranks]:
    """Join the group that `torchrun` has described in the environment, if there is one, and leave it at the end.

    States are gathered through the CPU (gloo), also on machines with GPUs; training, which reduces gradients on
    the GPUs, asks for `cpu:gloo,cuda:nccl`.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks()
        return
    # After an unequal resume, or beside a slow device, the others wait longer than the half hour of the default.
    torch.distributed.init_process_group(backend, timeout=timedelta(days=7))
    try:
        yield Ranks(torch.distributed.get_rank(), world_size, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        torch.distributed.destroy_process_group()
