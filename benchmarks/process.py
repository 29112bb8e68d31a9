"""The two ends of a process that holds one variant through the whole run, and of the pipe between them.

OpenMP reads its settings once, so that a variant needs a process of its own. While others are timed it is blocked on
its pipe. Every command is one JSON line, and so is every answer:

    steps     the next round's steps; {"seconds": per step}
    evaluate  the next round's rows; {"seconds": per 1,000 rows}
    memory    {"bytes": most memory so far}
    stop
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.batches import rounds
from benchmarks.variants import BEST, BY_NAME, Variant
from benchmarks.workload import Rows, Workload

LEAD_SEED, EVALUATION_SEED = 2_000, 1_000


class WorkerError(Exception):
    """A worker ended before it answered."""


@dataclass(frozen=True)
class Spec:
    """What every worker of a run is given at its start."""

    workload: str
    folder: str
    """Of the base model."""
    scratch: str
    device: str
    rounds: int
    """Besides the first one, which is not timed."""
    steps: int
    """Of a round."""
    evaluation_batches: int
    """Of a round."""
    seed: int
    openmp: dict[str, str]
    """What Nightgate adds to the environment of a process that computes."""

    def rows(self, workload: Workload, variant: Variant) -> tuple[list[list[Rows]], list[Rows]]:
        """Batches of each round, of which the first is not timed, and the rows that each round evaluates."""
        grouped = variant.name == BEST
        count = self.rounds + 1
        timed = rounds(workload, grouped, count, self.steps, self.seed)
        # The first step of a round wakes threads and fills caches that the other variants' turns have emptied. A night
        # has 12,500 steps without a pause.
        leads = rounds(workload, grouped, count, 1, self.seed + LEAD_SEED)
        evaluated = rounds(workload, grouped, count, self.evaluation_batches, self.seed + EVALUATION_SEED)
        trained = [[*lead, *batches] for lead, batches in zip(leads, timed, strict=True)]
        return trained, [np.concatenate(batches) for batches in evaluated]


class Channel:
    """The worker's end: commands from standard input, answers to what was standard output."""

    def __init__(self) -> None:
        # What libraries print must not end up among the answers.
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def receive(self) -> str:
        """The next command; 'stop' when the parent is gone."""
        return str(json.loads(sys.stdin.readline() or '"stop"'))

    def send(self, **answer: Any) -> None:
        self._answers.write(json.dumps(answer) + "\n")


class Worker:
    """The parent's end. `name` is that of a variant, or 'parity'."""

    def __init__(self, name: str, spec: Spec, **more: Any) -> None:
        self.name = name
        self._log = (Path(spec.scratch) / f"{name}.log").open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", name, json.dumps({"spec": asdict(spec), **more})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            env=_environment(name, spec),
        )
        self.facts: dict[str, Any] = {}

    def wait_until_ready(self) -> None:
        """Returns when it takes commands, with its `facts`."""
        self.facts = self.facts or self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        # A broken pipe shows below.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(command) + "\n")
        return self._answer()

    def close(self) -> None:
        """Let it end; kill it when it does not."""
        with self._process as process, self._log:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            said = Path(self._log.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:]
            raise WorkerError(f"{self.name} ended with code {code}:\n  " + "\n  ".join(said))
        answer: dict[str, Any] = json.loads(line)
        return answer


def peak_memory(device: str) -> int:
    """Most bytes that this process has held: of the GPU's memory, or of the machine's."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _environment(name: str, spec: Spec) -> dict[str, str]:
    tuned = spec.openmp if name not in BY_NAME or BY_NAME[name].is_tuned else {}
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if spec.device == "cpu" else {}
    path = os.pathsep.join(part for part in (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, **tuned, **offline, **hidden, "PYTHONPATH": path}
