"""Data-parallel training as ``torchrun`` starts it: who am I, average this, wait here."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed

from stalwart.core.random import shard


@dataclass(frozen=True)
class Ranks:
    """This process's place among all: ``rank`` of ``world``, and the device it computes on."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.world > 1:
            distributed.all_reduce(values)
        return values

    def agree(self, values: list[float]) -> list[float]:
        """Return the first process's numbers on every process, so that all take the same decisions."""
        if self.world == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.broadcast(shared, 0)
        return [float(value) for value in shared]


@contextlib.contextmanager
def ranks(device: str | None = None) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started (if any) and shard all random draws among them.

    Args:
        device: "cpu", "cuda", "cuda:1" ...; by default a GPU where there is one.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if world == 1:
        yield Ranks(device=chosen)
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        rank = distributed.get_rank()
        with shard(rank, world):
            yield Ranks(rank, world, chosen)
        # Nobody leaves while another still talks to it.
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
