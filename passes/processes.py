"""This process among others: those that `torchrun` started, which meet, or separate jobs, which never do."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


@dataclass(frozen=True)
class Ranks:
    """Place of this process among all.

    Attributes:
        rank: 0 for the one that writes results.
        world_size: Number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the results, and speaks."""
        return self.rank == 0

    @property
    def meet(self) -> bool:
        """Whether there are other processes to wait for."""
        return self.world_size > 1

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all processes in the order of their ranks, at rank 0; None elsewhere."""
        if not self.meet:
            return [value]
        gathered: list[Any] | None = [None] * self.world_size if self.is_first else None
        torch.distributed.gather_object(value, gathered, dst=0)
        return gathered

    def sum(self, values: list[float]) -> list[float]:
        """The sum of each value over all processes, everywhere."""
        if not self.meet:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def from_first(self, value: T | None) -> T:
        """The value that rank 0 has, everywhere."""
        values = [value]
        if self.meet:
            torch.distributed.broadcast_object_list(values, src=0)
        (first,) = values
        assert first is not None
        return first

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors by those of rank 0."""
        for tensor in tensors if self.meet else ():
            torch.distributed.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.meet:
            torch.distributed.barrier()


@dataclass(frozen=True)
class SeparateJob(Ranks):
    """One of several jobs, on any machines at any time: each leaves its state, which a later run merges."""

    @property
    def is_first(self) -> bool:
        """It speaks for itself."""
        return True

    @property
    def meet(self) -> bool:
        """Never."""
        return False


@contextmanager
def process_group(gradients_on: str = "cpu") -> Iterator[Ranks]:
    """Join the group that `torchrun` has described in the environment, if there is one, and leave it at the end.

    States are gathered through the CPU, also on machines with GPUs; training says on which type of device (`cpu`,
    `cuda`) gradients are to be reduced.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks()
        return
    # After an unequal resume, or beside a slow device, the others wait longer than the half hour of the default.
    torch.distributed.init_process_group(_BACKENDS[gradients_on], timeout=timedelta(days=7))
    try:
        yield Ranks(torch.distributed.get_rank(), world_size)
    finally:
        torch.distributed.destroy_process_group()
