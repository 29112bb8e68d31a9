"""One variant in a process of its own, and the pipe on which it is told what to time.

The process lives through the whole run, because OpenMP's settings are part of a variant and are read once. While others
are timed it is blocked on its pipe, and its OpenMP threads sleep. Every command is one JSON line, and so is every
answer:

    steps     the next round's steps; {"seconds": per step}
    evaluate  the next round's rows; {"seconds": per 1,000 rows}
    memory    {"bytes": most memory so far}
    save      what is written at the end of an epoch
    stop
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks.batches import rounds
from benchmarks.variants import BY_NAME, Variant
from benchmarks.workload import Rows, Workload

CEILING = "ceiling"
PARITY = "parity"
LEAD_SEED = 2000
EVALUATION_SEED = 1_000


class WorkerError(Exception):
    """A worker died or could not do what it was told."""


@dataclass(frozen=True)
class Part:
    """Rounds on the rows of one table, in the order in which they are asked for."""

    table: str
    rounds: int
    """The first one warms up and is dropped."""
    steps: int
    warm_up_steps: int
    """Of the first round."""
    evaluation_batches: int
    """0: nothing is evaluated."""


@dataclass(frozen=True)
class Spec:
    """What every worker of a run is told at its start."""

    workload: str
    folder: str
    """Of the base model."""
    scratch: str
    device: str
    parts: tuple[Part, ...]
    seed: int
    openmp: dict[str, str]
    """What Nightgate adds to the environment of a process that computes."""

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Spec:
        return cls(**{**record, "parts": tuple(Part(**part) for part in record["parts"])})

    def rows(self, workload: Workload, variant: Variant) -> tuple[list[list[Rows]], list[Rows]]:
        """Batches of each round, of which the first is not timed, and the rows that are evaluated in each round."""
        trained: list[list[Rows]] = []
        evaluated: list[Rows] = []
        for part in self.parts:
            order, seed = variant.order, self.seed
            timed = rounds(workload, part.table, order, 1, part.warm_up_steps, seed)
            timed += rounds(workload, part.table, order, part.rounds - 1, part.steps, seed)
            # The first step of a round is not timed: it wakes threads and fills caches that the other variants' turns
            # have emptied. A night has 12,500 steps without a pause.
            leads = rounds(workload, part.table, order, part.rounds, 1, seed + LEAD_SEED)
            trained += [[*lead, *batches] for lead, batches in zip(leads, timed, strict=True)]
            if part.evaluation_batches:
                batches = part.evaluation_batches
                chosen = rounds(workload, part.table, order, part.rounds, batches, seed + EVALUATION_SEED)
                evaluated += [np.concatenate(found) for found in chosen]
        return trained, evaluated


class Channel:
    """The child's end: commands from standard input, answers to what was standard output."""

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
    """The parent's end. `name` is that of a variant, 'ceiling' or 'parity'."""

    def __init__(self, name: str, spec: Spec, **more: Any) -> None:
        self.name = name
        self.log = Path(spec.scratch) / f"{name}.log"
        self._log: TextIO = self.log.open("w", encoding="utf-8")
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", name, json.dumps({"spec": asdict(spec), **more})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            env=_environment(name, spec),
        )
        self._began = began
        self.facts: dict[str, Any] = {}
        self.start_seconds = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Takes `start_seconds`, from the start of the process to the first command that it takes."""
        if self.start_seconds:
            return
        self.facts = self._answer()
        self.start_seconds = time.perf_counter() - self._began

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        # That its pipe is broken is told below.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(command) + "\n")
        return self._answer()

    def close(self) -> None:
        """Let it end; kill it when it does not."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:]
            raise WorkerError(f"{self.name} ended with code {code}:\n  " + "\n  ".join(said))
        answer: dict[str, Any] = json.loads(line)
        return answer


def peak_memory(device: str) -> int:
    """Most bytes that this process has held: of the GPU's memory, or of the machine's."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    try:
        # ru_maxrss would begin with the parent's size at the fork.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _environment(name: str, spec: Spec) -> dict[str, str]:
    variant = BY_NAME.get(name)
    tuned = spec.openmp if variant is None or variant.is_tuned else {}
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if spec.device == "cpu" else {}
    path = os.pathsep.join(part for part in (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, **tuned, **offline, **hidden, "PYTHONPATH": path}


def _serve_ceiling(channel: Channel, spec: Spec) -> None:
    """Matrix products of 2048 x 2048 in fp32, and in bf16 on a GPU: what the hardware gives when nothing else does."""
    import torch

    from nightgate import cpu_threads

    torch.set_num_threads(cpu_threads.pick_threads()[0])
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16} if spec.device == "cuda" else {"fp32": torch.float32}
    size = 8192 if spec.device == "cuda" else 2048
    channel.send(threads=torch.get_num_threads())
    while channel.receive() != "stop":
        found = {}
        for kind, dtype in kinds.items():
            left, right = (torch.randn(size, size, device=spec.device, dtype=dtype) for _ in range(2))
            best = float("inf")
            for _ in range(3):
                began = time.perf_counter()
                torch.mm(left, right)
                if spec.device == "cuda":
                    torch.cuda.synchronize()
                best = min(best, time.perf_counter() - began)
            found[kind] = 2 * size**3 / best
        channel.send(**found)


def main() -> None:
    name, given = sys.argv[1], json.loads(sys.argv[2])
    spec = Spec.from_json(given.pop("spec"))
    channel = Channel()
    if name == CEILING:
        _serve_ceiling(channel, spec)
    elif name == PARITY:
        from benchmarks import parity

        channel.send()
        while channel.receive() != "stop":
            channel.send(**parity.check(spec, **given))
    else:
        variant = BY_NAME[name]
        if variant.side == "stock":
            from benchmarks import stock

            stock.serve(channel, spec, variant)
        else:
            from benchmarks import ours

            ours.serve(channel, spec, variant)


if __name__ == "__main__":
    main()
