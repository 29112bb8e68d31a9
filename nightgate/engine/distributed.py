"""Several processes at one training, as `torchrun` starts them: one process a GPU, on one machine or more.

The recipe does not change with their number: a step takes the same rows as in a single process, each process computes
the gradients of its share, and the sums are the same for all. So every process holds the same weights, and only the
first one (rank 0) reports and writes.

    torchrun --nproc-per-node 2 -m nightgate.training.worker JOB.json        # by hand; NIGHTGATE_PROCESSES=2 does it
    for a night
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from nightgate.errors import CrashedError

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others in one exchange: loading and saving come between two."""


class World:
    """A process on its own: the null object of the exchange between processes."""

    rank = 0
    size = 1

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""

    def close(self) -> None:
        """Leave the group."""


class Group(World):
    """One of several processes, connected."""

    def __init__(self, backend: str) -> None:
        distributed.init_process_group(backend, timeout=PATIENCE)
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def sum(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        try:
            distributed.all_reduce(flat)
        except RuntimeError as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CrashedError(
                f"one of the {self.size} training processes was lost: {said}",
                next_step="see the log of the process that ended, then run the same command again: "
                "it goes on from the last checkpoint",
            ) from error
        for tensor, summed in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def close(self) -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def connect() -> World:
    """The world that `torchrun` set in the environment; a process on its own without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return World()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        return Group("nccl")
    return Group("gloo")


def share(rows: NDArray[np.int64], world: World) -> NDArray[np.int64]:
    """This process's rows of a batch; given in order of length, every process gets about the same number of tokens."""
    return rows[world.rank :: world.size]
