"""Data-parallel training of one model by several processes under `torchrun`.

The recipe does not depend on their number: a step takes the same rows as in a single process, each process computes
the gradients of its share, and gradients are summed. So all processes hold the same weights, and rank 0 alone reports
and writes. `NIGHTGATE_PROCESSES=2` starts two for a night; a manual start is

    torchrun --nproc-per-node 2 -m nightgate.training.worker JOB.json
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from nightgate.errors import CrashedError, first_line

TIMEOUT = timedelta(minutes=10)
"""Limit of one exchange; loading and saving happen between two."""


class World:
    """A single process, in which exchanges do nothing."""

    rank = 0
    size = 1

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""

    def close(self) -> None:
        """Leave the group."""


class Group(World):
    """One of several connected processes."""

    def __init__(self, backend: str) -> None:
        distributed.init_process_group(backend, timeout=TIMEOUT)
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def sum(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        try:
            distributed.all_reduce(flat)
        except RuntimeError as error:
            raise CrashedError(
                f"one of the {self.size} training processes was lost: {first_line(error)}",
                next_step="see the log of the process that ended, then run the same command again: "
                "it resumes from the last checkpoint",
            ) from error
        for tensor, summed in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def close(self) -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def connect() -> World:
    """Join the processes that `torchrun` started, by its environment variables; a single process without them."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return World()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        return Group("nccl")
    return Group("gloo")


def share(rows: NDArray[np.int64], world: World) -> NDArray[np.int64]:
    """This process's rows of a batch. In order of length, each process gets about the same number of tokens."""
    return rows[world.rank :: world.size]
