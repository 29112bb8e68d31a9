"""Predictions of a version in a child process, which loads it once: torch stays out of this one.

with predictor(PredictJob(version=folder, out=scratch, batch_size=16)) as probabilities:
    probabilities(["fits well", "broke at once"])  # [texts, labels], "bf16"
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import numpy as np
from numpy.typing import NDArray

from nightgate.durable_files import write_whole
from nightgate.training.protocol import PROBABILITIES, TEXTS, PredictJob, Progress
from nightgate.training.supervisor import watched

Probabilities = Callable[[Sequence[str]], tuple[NDArray[np.float64], str]]
"""Of normalised texts the probabilities [texts, labels], and the precision in which they were computed."""


@contextmanager
def predictor(
    job: PredictJob,
    *,
    python: str = sys.executable,
    on_progress: Callable[[Progress], None] | None = None,
    stall_seconds: float = 60.0,
    start_seconds: float = 600.0,
) -> Iterator[Probabilities]:
    """Give `Probabilities`, to be called as often as wanted within the block.

    A child that hangs is stopped and started again, once; it takes up the texts that it had.

    Raises:
        TrainingError, ModelError, StorageError: as `nightgate.training.supervisor.score_models`.
    """
    number, child = 0, None
    with closing(watched(job, python, on_progress, None, stall_seconds, start_seconds)) as events:

        def probabilities(texts: Sequence[str]) -> tuple[NDArray[np.float64], str]:
            nonlocal number, child
            write_whole(job.out / TEXTS, json.dumps(texts).encode())
            number += 1
            if child is not None:
                child.send(f"recorded {number}")
            for child, event in events:
                if event.get("number") == number:
                    with np.load(job.out / PROBABILITIES, allow_pickle=False) as found:
                        return found["probabilities"], str(found["precision"])
                child.send(f"recorded {number}")  # it has just started
            raise AssertionError("the child ended with neither result nor error")

        yield probabilities
