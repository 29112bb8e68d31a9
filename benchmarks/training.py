"""The training engine against the stock `Trainer`, with its defaults and at its best: quality first, then speed.

    python -m benchmarks.training --shape multi|l6 --device cpu|cuda [--median 75] [--rounds N]

Needs the extra `bench` (accelerate, without which the stock Trainer does not start). Everything works offline.

First the quality gates: engine and Trainer train the same model on the same batches and must agree, or the command says
where they do not and exits with 1. Then all variants are timed in one run, each in a process of its own, in turns whose
order rotates from round to round.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.machine import Neighbours, description, say
from benchmarks.pairing import ratio
from benchmarks.parity import Gate
from benchmarks.process import Spec, Worker, WorkerError
from benchmarks.variants import BEST, BY_NAME, DEFAULTS, OURS, VARIANTS
from benchmarks.workload import BATCH, EPOCHS, SHAPES, STEPS_PER_EPOCH, VALIDATION_ROWS, drawn
from nightgate.cpu_threads import openmp_settings
from nightgate.errors import NightgateError

ROUNDS = 9
STEPS = {"cpu": 2, "cuda": 50}
EVALUATION_BATCHES = {"cpu": 3, "cuda": 60}
MB = 1e6


@dataclass
class Measured:
    """One variant; values in the order of the rounds."""

    steps: list[float] = field(default_factory=list)
    """Seconds."""
    evaluations: list[float] = field(default_factory=list)
    """Seconds per 1,000 rows."""
    memory: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0, 1 when quality fails or a worker ends early, 2 when the machine lacks what was asked for."""
    options = _options(arguments)
    if lack := _lack(options):
        print(lack, file=sys.stderr)
        return 2
    scratch = Path(tempfile.mkdtemp(prefix="nightgate-benchmark-"))
    try:
        return _run(options, scratch)
    except (WorkerError, NightgateError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(options: argparse.Namespace, scratch: Path) -> int:
    began = time.monotonic()
    shape = SHAPES["tiny" if options.quick else options.shape]
    say("drawing rows")
    rows = 2_000 if options.quick else STEPS_PER_EPOCH * BATCH
    workload = drawn(shape, rows, seed=options.seed, median=options.median)
    spec = Spec(
        workload=str(workload.save(scratch / "workload.npz")),
        folder=str(scratch / "base"),
        scratch=str(scratch),
        device=options.device,
        rounds=options.rounds,
        steps=options.steps,
        evaluation_batches=EVALUATION_BATCHES[options.device],
        seed=options.seed,
        openmp=openmp_settings(),
    )
    say("quality gates: the same batches through the stock Trainer and the engine")
    with _workers([Worker("parity", spec, sabotage=options.sabotage)]) as (parity,):
        answer = parity.ask("check")
    gates = [Gate(**gate) for gate in answer["gates"]]
    print(
        f"Shape {shape.name}, {options.device}; {workload.facts}\n\n{gates_table(gates)}\n\nEngine: {answer['engine']}"
    )
    failed = [gate for gate in gates if not gate.passed]
    for gate in failed:
        print(f"FAILED: {gate.what}: {gate.found:.3g}, allowed {gate.limit:g}", file=sys.stderr)
    if failed:
        print("the engine does not train what the stock Trainer trains: no speed was measured", file=sys.stderr)
        return 1
    chosen = [variant.name for variant in VARIANTS if not options.quick or variant.name in (DEFAULTS, OURS)]
    started: list[Worker] = []
    with _workers(started):
        for name in chosen:
            say(f"starting: {BY_NAME[name].title}")
            started.append(Worker(name, replace(spec, folder=answer["folder"])))
            started[-1].wait_until_ready()
        neighbours = Neighbours()
        measured = _measure(started, options.rounds)
        facts = {**description("torch", "transformers", "accelerate"), "other processes": str(neighbours)}
    facts["OpenMP, but for the Trainer's defaults"] = " ".join(f"{name}={spec.openmp[name]}" for name in spec.openmp)
    facts["the run took"] = f"{(time.monotonic() - began) / 60:.1f} minutes"
    print(f"\n{speed_table(measured)}\n")
    print("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    return 0


def _measure(workers: list[Worker], rounds: int) -> dict[str, Measured]:
    measured = {worker.name: Measured() for worker in workers}
    for turn in range(rounds + 1):
        say(f"round {turn} of {rounds}" if turn else "warming up")
        at = turn % len(workers)
        turned = workers[at:] + workers[:at]
        for command in ("steps", "evaluate"):
            for worker in turned:
                seconds = worker.ask(command)["seconds"]
                if turn:
                    found = measured[worker.name]
                    (found.steps if command == "steps" else found.evaluations).append(seconds)
    for worker in workers:
        measured[worker.name].memory = worker.ask("memory")["bytes"]
    return measured


def gates_table(gates: Sequence[Gate]) -> str:
    rows = [(gate.what, f"{gate.found:.2g}", f"{gate.limit:g}", "yes" if gate.passed else "**NO**") for gate in gates]
    return table(["gate", "found", "allowed", "passed"], rows)


def speed_table(measured: dict[str, Measured]) -> str:
    """Medians; ratios are paired by round, with the smallest and the largest."""
    head = ["variant", "ms a step", "x defaults", "x at its best", "s per 1,000 rows evaluated", "x defaults"]
    head += ["x at its best", "peak memory, MB", "5 epochs of the published recipe, h"]
    rows = []
    for name, found in measured.items():
        step, evaluation = statistics.median(found.steps), statistics.median(found.evaluations)
        seconds = EPOCHS * (STEPS_PER_EPOCH * step + VALIDATION_ROWS / 1000 * evaluation)
        cells = [BY_NAME[name].title, f"{1000 * step:,.0f}" if step >= 0.1 else f"{1000 * step:.2f}"]
        for what, shown in (("steps", ""), ("evaluations", f"{evaluation:.3g}")):
            cells += [shown] if shown else []
            for other in (DEFAULTS, BEST):
                known = other in measured and other != name
                cells.append(str(ratio(getattr(measured[other], what), getattr(found, what))) if known else "")
        rows.append((*cells, f"{found.memory / MB:,.0f}", f"{seconds / 3600:.2f}"))
    return table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


@contextmanager
def _workers(workers: list[Worker]) -> Iterator[list[Worker]]:
    """Closes what the list holds in the end."""
    try:
        for worker in workers:
            worker.wait_until_ready()
        yield workers
    finally:
        for worker in workers:
            worker.close()


def _lack(options: argparse.Namespace) -> str:
    """What the machine lacks; empty when nothing."""
    if importlib.util.find_spec("accelerate") is None:
        return "the stock Trainer needs accelerate: pip install -c constraints.txt '.[bench]'"
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return f"no GPU here that this PyTorch ({torch.__version__}) can use: nothing was run; try --device cpu"
    return ""


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("multi", "l6"), default="multi", help="which model")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--median", type=int, default=31, help="of the rows' tokens")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="paired rounds")
    parser.add_argument("--steps", type=int, help="of each variant in a round; by default 2 on a CPU, 50 on a GPU")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tiny shape, two variants, in seconds: a smoke test")
    parser.add_argument(
        "--sabotage",
        action="store_true",
        help="train our side at a learning rate 0.1 %% too high: shows that the quality gates refuse it",
    )
    options = parser.parse_args(arguments)
    options.steps = STEPS[options.device] if options.steps is None else options.steps
    if options.rounds < 1 or options.steps < 1:
        parser.error("--rounds and --steps are at least 1")
    if options.quick:
        options.rounds, options.steps = 2, 1
    return options


if __name__ == "__main__":
    sys.exit(main())
