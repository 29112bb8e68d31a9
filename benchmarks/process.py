"""A process for each variant of the training benchmark, which answers commands through a pipe.

OpenMP reads its settings once, so that each variant needs a process of its own. It waits while others are timed.

    steps     run the next round's steps; seconds a step
    evaluate  score the next round's rows; seconds per 1,000 rows
    memory    peak memory so far, in bytes
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.workload import Rows, Workload, rounds
from nightgate.engine.step import Wins

LEAD_SEED, EVALUATION_SEED = 2_000, 1_000


class WorkerError(Exception):
    """A worker ended before it answered."""


@dataclass(frozen=True)
class Variant:
    """A row of the benchmark: the stock Trainer, or the engine with some of its optimisations."""

    name: str
    title: str
    precision: str = "fp32"
    wins: Wins | None = None
    """Optimisations of the engine; None for the stock Trainer."""
    is_tuned: bool = True
    """Whether the Trainer is at its best: grouped by length, threads and OpenMP set as Nightgate sets them. The engine
    takes the batches of the Trainer's defaults."""

    @property
    def is_grouped(self) -> bool:
        return self.wins is None and self.is_tuned


DEFAULTS = Variant("defaults", "Trainer, defaults (fp32)", is_tuned=False)
"""Dynamic padding, random order, fused AdamW, threads and OpenMP left to torch."""
BEST = Variant("best", "Trainer at its best, fp32")
BEST_BF16 = Variant("best-bf16", "Trainer at its best, bf16", "bf16")
OURS = Variant("ours", "ours, fp32", wins=Wins())
OURS_BF16 = Variant("ours-bf16", "ours, bf16", "bf16", Wins())
VARIANTS = (DEFAULTS, BEST, BEST_BF16, OURS, OURS_BF16)
PARTS = (
    Variant("packed", "packed texts alone, fp32", wins=Wins(cls_only=False, trimmed=False)),
    Variant("first", "+ last layer for first tokens, fp32", wins=Wins(trimmed=False)),
)
"""Rows between the Trainer and ours: one for each part of the engine, on top of the row before."""


@dataclass(frozen=True)
class Spec:
    """Parameters of a run, for all of its workers."""

    workload: Workload
    folder: Path
    """The base model's."""
    scratch: Path
    device: str
    rounds: int
    """Timed ones; one more is run before them."""
    steps: int
    evaluation_batches: int
    seed: int
    openmp: dict[str, str]
    """OpenMP settings that Nightgate gives to its training process."""

    def rows(self, variant: Variant) -> tuple[list[list[Rows]], list[Rows]]:
        """Batches of each round, of which the first is not timed, and the rows that each round evaluates."""
        grouped, count = variant.is_grouped, self.rounds + 1
        timed = rounds(self.workload, grouped, count, self.steps, self.seed)
        # The first step of a round wakes threads and fills caches that other variants have emptied. A night has
        # 12,500 steps without a pause.
        leads = rounds(self.workload, grouped, count, 1, self.seed + LEAD_SEED)
        evaluated = rounds(self.workload, grouped, count, self.evaluation_batches, self.seed + EVALUATION_SEED)
        trained = [[*lead, *batches] for lead, batches in zip(leads, timed, strict=True)]
        return trained, [np.concatenate(batches) for batches in evaluated]


class Worker:
    """A process that runs `serve(pipe, spec, *more)`, whose output goes to a log."""

    def __init__(self, name: str, spec: Spec, serve: Callable[..., None], *more: Any, tuned: bool = True) -> None:
        self.name, self._log = name, spec.scratch / f"{name}.log"
        self._pipe, child_end = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(target=_run, args=(self._log, serve, child_end, spec, *more))
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if spec.device == "cpu" else {}
        with _environment({**offline, **hidden, **(spec.openmp if tuned else {})}):
            self._process.start()
        child_end.close()

    def ask(self, command: str) -> Any:
        with suppress(BrokenPipeError):  # shows in the answer
            self._pipe.send(command)
        return self.answer()

    def answer(self) -> Any:
        """The next message.

        Raises:
            WorkerError: the process has ended.
        """
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            tail = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:]
            code = self._process.exitcode
            raise WorkerError(f"{self.name} ended with code {code}:\n  " + "\n  ".join(tail)) from None

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(20)
        self._process.kill()


def now(device: str) -> float:
    """Seconds of a clock, after all work of the device has ended."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(device: str) -> int:
    """Peak memory of this process in bytes: the GPU's as allocated by torch, or the machine's."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _run(log: Path, serve: Callable[..., None], pipe: Connection, *arguments: Any) -> None:
    with log.open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    with suppress(EOFError):  # the parent has closed the pipe
        serve(pipe, *arguments)


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
