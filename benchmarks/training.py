"""The training engine against the stock `Trainer`, with its defaults and at its best: quality first, then speed.

    python -m benchmarks.training --shape multi|l6 --device cpu|cuda [--median 75] [--rounds N] [--parts]

Needs the extra `bench` (accelerate, which the stock Trainer requires); works offline.

First the quality gates: engine and Trainer train the same model on the same batches and must agree, else the command
names the difference and exits with 1. Then all variants are timed in one run, each in a process of its own, in turns
whose order rotates from round to round. Those in bf16 need hardware that computes it natively.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks import ours, parity, stock
from benchmarks.process import BEST, BEST_BF16, DEFAULTS, PARTS, VARIANTS, Spec, Variant, Worker, WorkerError
from benchmarks.results import exit_code, facts_list, log, machine_facts, missing, parser, ratio, results_table, table
from benchmarks.workload import BATCH, EPOCHS, SHAPES, STEPS_PER_EPOCH, VALIDATION_ROWS, drawn
from nightgate.cpu_threads import openmp_settings
from nightgate.engine import devices
from nightgate.errors import NightgateError

ROUNDS, SEED = 9, 1
STEPS = {"cpu": 2, "cuda": 50}
EVALUATION_BATCHES = {"cpu": 10, "cuda": 60}
"""Weights are cast once an evaluation, which has 313 batches in a night."""


Measured = dict[Variant, dict[str, list[float]]]
"""Answers of each variant to each command, in the order of the rounds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0, 1 if quality fails or a worker ends early, 2 if something is missing on the machine."""
    options = _options(arguments)
    if remedy := missing(options.device, accelerate="bench"):
        print(remedy, file=sys.stderr)
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
    began, openmp = time.monotonic(), openmp_settings()
    shape = SHAPES["tiny" if options.quick else options.shape]
    log("drawing rows")
    rows = 2_000 if options.quick else STEPS_PER_EPOCH * BATCH
    workload = drawn(shape, rows, seed=SEED, median=options.median)
    device, steps = options.device, 1 if options.quick else STEPS[options.device]
    sizes = options.rounds, steps, EVALUATION_BATCHES[device]
    spec = Spec(workload, scratch / "base", scratch, device, *sizes, SEED, openmp)
    log("quality gates: the same batches through the stock Trainer and the engine")
    worker = Worker("parity", spec, parity.serve, options.sabotage)
    with closing(worker):
        gates, folder, reason = worker.answer()
    print(f"Shape {shape.name}, {device}; {workload.facts}\n\n{results_table(gates)}\n\nEngine: {reason}")
    if exit_code(gates):
        print("engine and stock Trainer do not train the same: no speed was measured", file=sys.stderr)
        return 1
    facts = machine_facts("torch", "transformers", "accelerate")
    workers: dict[Variant, Worker] = {}
    with _closing(workers.values()):
        for variant in _variants(options):
            log(f"starting: {variant.title}")
            serve = ours.serve if variant.wins else stock.serve
            timed = replace(spec, folder=folder)
            workers[variant] = Worker(variant.name, timed, serve, variant, tuned=variant.is_tuned)
            workers[variant].answer()
        measured = _measure(workers, options.rounds)
    facts["OpenMP, except for the Trainer's defaults"] = " ".join(f"{name}={value}" for name, value in openmp.items())
    facts["the run took"] = f"{(time.monotonic() - began) / 60:.1f} minutes"
    print(f"\n{speed_table(measured)}\n\n{facts_list(facts)}")
    return 0


def _measure(workers: dict[Variant, Worker], rounds: int) -> Measured:
    measured: Measured = {variant: {"steps": [], "evaluate": [], "memory": []} for variant in workers}
    order = list(workers)
    for turn in range(rounds + 1):
        log(f"round {turn} of {rounds}" if turn else "warming up")
        order = [*order[1:], order[0]]
        for command in ("steps", "evaluate", "memory"):
            for variant in order:
                value = workers[variant].ask(command)
                measured[variant][command] += [value] if turn else []
    return measured


def _variants(options: argparse.Namespace) -> list[Variant]:
    has_bf16 = devices.pick("auto").precision == "bf16"
    variants = [variant for variant in VARIANTS if has_bf16 or variant.precision != "bf16"]
    return [*variants, *PARTS] if options.parts else variants


def speed_table(measured: Measured) -> str:
    """Medians; ratios are paired by round, with their interval."""
    references = {"defaults": DEFAULTS, "its best, fp32": BEST, "its best, bf16": BEST_BF16}
    beside = [f"x {name}" for name, variant in references.items() if variant in measured]
    head = ["variant", "ms a step", *beside, "s per 1,000 rows evaluated", *beside]
    head += ["peak memory, MB", "5 epochs of the published recipe, h"]

    def ratios(variant: Variant, command: str) -> list[str]:
        others = [other for other in references.values() if other in measured]
        values = measured[variant][command]
        return ["" if other is variant else str(ratio(measured[other][command], values)) for other in others]

    rows = []
    for variant, found in measured.items():
        step, evaluation = statistics.median(found["steps"]), statistics.median(found["evaluate"])
        seconds = EPOCHS * (STEPS_PER_EPOCH * step + VALIDATION_ROWS / 1000 * evaluation)
        cells = [variant.title, f"{1000 * step:,.0f}" if step >= 0.1 else f"{1000 * step:.2f}"]
        cells += [*ratios(variant, "steps"), f"{evaluation:.3g}", *ratios(variant, "evaluate")]
        rows.append((*cells, f"{found['memory'][-1] / 1e6:,.0f}", f"{seconds / 3600:.2f}"))
    return table(head, rows)


@contextmanager
def _closing(workers: Iterable[Worker]) -> Iterator[None]:
    """Close the workers that the collection holds at the end."""
    try:
        yield
    finally:
        for worker in workers:
            worker.close()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    cli = parser("training", __doc__)
    cli.add_argument("--shape", choices=("multi", "l6"), default="multi", help="which model")
    cli.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    cli.add_argument("--median", type=int, default=31, help="tokens of the median row")
    cli.add_argument("--rounds", type=int, default=ROUNDS, help="paired rounds")
    cli.add_argument("--parts", action="store_true", help="a row for each part of the engine too")
    cli.add_argument("--quick", action="store_true", help="a tiny shape, in seconds: a smoke test")
    cli.add_argument(
        "--sabotage", action="store_true", help="train the engine at a rate 0.1 %% too high: gates must fail"
    )
    options = cli.parse_args(arguments)
    options.rounds = 2 if options.quick else options.rounds
    if options.rounds < 1:
        cli.error("--rounds is at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
