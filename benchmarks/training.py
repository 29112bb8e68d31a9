"""The training engine against the stock `Trainer`: quality first, then speed, memory and bytes.

    python -m benchmarks.training --shape multi|l6 --device cpu|cuda [--data FILE] [--rounds N]
    python -m benchmarks.training --shape l6 --quality        (half an hour and more: three seeds a side, with dropout)

Needs the extra `bench` (accelerate, without which the stock Trainer does not start). Everything works offline.

First the quality gates: the engine and the Trainer train the same model on the same batches and must agree, or the
command says where they do not and exits with 1. Then all variants are timed in one run, each in a process of its own,
in turns whose order rotates from round to round. Tables and measurements go to `--out`, with one picture.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import psutil

from benchmarks import report
from benchmarks.report import Measured, Results
from benchmarks.variants import BEST, OURS, REFERENCE, VARIANTS
from benchmarks.worker import CEILING, PARITY, Part, Spec, Worker, WorkerError
from benchmarks.workload import BATCH, SHAPES, STEPS_PER_EPOCH, Workload, drawn
from nightgate.cpu_threads import openmp_settings
from nightgate.errors import NightgateError

ROUNDS = 9
STEPS = {"cpu": 2, "cuda": 50}
WARM_UP_STEPS = {"cpu": 1, "cuda": 300}
"""On a GPU every size of batch has to come up twice before its step is replayed."""
EVALUATION_BATCHES = {"cpu": 3, "cuda": 60}
LATER_TABLES = (REFERENCE, BEST, OURS)
"""Variants of the tables after the first."""
LATER_ROUNDS = 6
"""Rounds of these: the fewest that give an interval of 95 %."""
BUSY = 0.05
"""A share of the cores in other processes' hands that is worth a warning."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0, 1 when quality fails or a worker dies, 2 when the machine lacks what was asked for."""
    options = _options(arguments)
    if lack := _lack(options):
        print(lack, file=sys.stderr)
        return 2
    scratch = Path(tempfile.mkdtemp(prefix="nightgate-benchmark-"))
    try:
        if options.quality:
            from benchmarks import quality

            text = quality.compare(options, scratch)
            _write(options, "quality", text, {})
            print(text)
            return 0
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
    workload = _workload(options)
    parts = _parts(options, workload)
    spec = Spec(
        workload=str(workload.save(scratch / "workload.npz")),
        folder=str(scratch / "base"),
        scratch=str(scratch),
        device=options.device,
        parts=parts,
        seed=options.seed,
        openmp=openmp_settings(),
    )
    say("quality gates: the same batches through the stock Trainer and the engine")
    with _workers([Worker(PARITY, spec, sabotage=options.sabotage)]) as (parity,):
        answer = parity.ask("check")
    findings = answer["findings"]
    failed = [finding for finding in findings if not report.passed(finding)]
    if failed:
        print(report.parity_table(findings))
        for finding in failed:
            print(f"FAILED: {finding['what']}: {finding['found']:.3g}, allowed {finding['limit']:g}", file=sys.stderr)
        print("the engine does not train what the stock Trainer trains: no speed was measured", file=sys.stderr)
        return 1
    results = Results(
        shape.name,
        options.device,
        _machine(spec),
        workload.facts,
        {name: _flops(workload, name) for name in workload.tables},
        findings,
        answer["engine"],
    )
    _measure(options, replace(spec, folder=answer["folder"]), results)
    results.seconds = time.monotonic() - began
    results.machine["the run took"] = f"{results.seconds / 60:.1f} minutes"
    text = report.markdown(results)
    folder = _write(options, f"{shape.name}-{options.device}", text, asdict(results), report.picture(results))
    print(text)
    say(f"written to {folder}")
    return 0


def _measure(options: argparse.Namespace, spec: Spec, results: Results) -> None:
    chosen = [variant for variant in VARIANTS if not options.quick or variant.name in (REFERENCE, OURS)]
    started: list[Worker] = [Worker(CEILING, spec)]
    with _workers(started):
        for variant in chosen:
            say(f"starting: {variant.title}")
            started.append(Worker(variant.name, spec))
            if not options.quick:
                # One at a time: how long that takes is part of the whole job.
                started[-1].wait_until_ready()
        ceiling, workers = started[0], started[1:]
        for worker in workers:
            worker.wait_until_ready()
            results.variants[worker.name] = Measured(worker.start_seconds, worker.facts)
        evaluated = {variant.name for variant in chosen if variant.evaluated}
        neighbours = _Neighbours([worker.pid for worker in started])
        done = 0
        for number, part in enumerate(spec.parts):
            for turn in range(part.rounds):
                say(f"{part.table}: round {turn} of {part.rounds - 1}" + (" (warm-up)" if turn == 0 else ""))
                for kind, rate in ceiling.ask("measure").items():
                    results.ceiling.setdefault(kind, []).append(rate)
                turned = workers[done % len(workers) :] + workers[: done % len(workers)]
                for worker in turned:
                    if number and worker.name not in LATER_TABLES:
                        continue
                    seconds = worker.ask("steps")["seconds"]
                    if turn:
                        results.variants[worker.name].steps.setdefault(part.table, []).append(seconds)
                for worker in turned:
                    if number == 0 and worker.name in evaluated:
                        seconds = worker.ask("evaluate")["seconds"]
                        if turn:
                            results.variants[worker.name].evaluations.append(seconds)
                done += 1
        results.machine["other processes"] = neighbours.in_words()
        for worker in workers:
            results.variants[worker.name].memory = worker.ask("memory")["bytes"]
        for worker in workers:
            if worker.name in (REFERENCE, OURS):
                say(f"saving: {worker.name}")
                results.variants[worker.name].save = worker.ask("save")


def _parts(options: argparse.Namespace, workload: Workload) -> tuple[Part, ...]:
    """The first round of every part warms it up and is dropped."""
    rounds = [options.rounds, *[min(options.rounds, LATER_ROUNDS)] * (len(workload.tables) - 1)]
    batches = [EVALUATION_BATCHES[options.device], *[0] * (len(workload.tables) - 1)]
    return tuple(
        Part(table, count + 1, options.steps, WARM_UP_STEPS[options.device], evaluated)
        for table, count, evaluated in zip(workload.tables, rounds, batches, strict=True)
    )


def _workload(options: argparse.Namespace) -> Workload:
    shape = SHAPES["tiny" if options.quick else options.shape]
    if options.data is None:
        return drawn(shape, 2_000 if options.quick else STEPS_PER_EPOCH * BATCH, options.seed)
    from benchmarks.texts import read_texts
    from benchmarks.workload import from_texts

    texts, labels = read_texts(options.data, options.text, options.label)
    return from_texts(shape, texts, labels, options.data.name)


def _flops(workload: Workload, table: str) -> float:
    first, last = workload.tables[table]
    return workload.shape.flops(workload.lengths[first:last]) * BATCH / (last - first)


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


class _Neighbours:
    """How much of the cores went to processes that are not this run's."""

    def __init__(self, pids: list[int]) -> None:
        self.pids = [os.getpid(), *pids]
        self.began = time.monotonic()
        self.busy, self.own = self._counts()

    def in_words(self) -> str:
        busy, own = self._counts()
        cores = (time.monotonic() - self.began) * (psutil.cpu_count() or 1)
        share = max(0.0, (busy - self.busy) - (own - self.own)) / max(cores, 1e-9)
        warning = ": the figures are disturbed, run it again on a quiet machine" if share > BUSY else ""
        return f"took {share:.0%} of the cores meanwhile{warning}"

    def _counts(self) -> tuple[float, float]:
        times = psutil.cpu_times()
        processes = [psutil.Process(pid) for pid in self.pids]
        processes += [child for process in processes[1:] for child in process.children(recursive=True)]
        own = [process.cpu_times() for process in processes]
        return times.user + times.system + times.nice, sum(used.user + used.system for used in own)


def _machine(spec: Spec) -> dict[str, str]:
    from importlib.metadata import version

    openmp = [f"{name}={value}" for name, value in spec.openmp.items() if not name.startswith("NIGHTGATE")]

    found = {
        "processor": f"{_processor()}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate")),
        "OpenMP, but for the first two stock rows": " ".join(openmp) or "as it comes",
    }
    if spec.device == "cuda":
        import torch

        found["GPU"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _lack(options: argparse.Namespace) -> str:
    """What the machine or the command lacks, in words; empty when nothing."""
    import importlib.util

    if importlib.util.find_spec("accelerate") is None:
        return "the stock Trainer needs accelerate: pip install -c constraints.txt '.[bench]'"
    if options.quality and options.shape != "l6":
        return "--quality needs weights that have learnt a language: --shape l6"
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return f"no GPU here that this PyTorch ({torch.__version__}) can use: nothing was run; try --device cpu"
    return ""


def _write(options: argparse.Namespace, name: str, text: str, record: dict[str, object], picture: str = "") -> Path:
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    if record:
        (folder / f"{name}.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    if picture:
        (folder / f"{name}.svg").write_text(picture, encoding="utf-8")
    return folder


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("multi", "l6"), default="multi", help="which model")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data", type=Path, help="real texts instead of drawn ones: CSV, Parquet or JSON lines")
    parser.add_argument("--text", default="text", help="its column of texts")
    parser.add_argument("--label", default="label", help="its column of labels, at most 5 different ones")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="paired rounds; 6 or more for 95 %% intervals")
    parser.add_argument(
        "--steps", type=int, help="steps of each variant in a round; by default 2 on a CPU, 50 on a GPU"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quality", action="store_true", help="F1 of three seeds a side instead of speed")
    parser.add_argument("--epochs", type=int, default=2, help="of --quality")
    parser.add_argument("--rows", type=int, default=4_000, help="of --quality: training rows")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, two variants, in seconds: a smoke test")
    parser.add_argument(
        "--sabotage",
        action="store_true",
        help="train our side at a learning rate 0.1 %% too high: shows that the quality gates refuse it",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where results are written")
    options = parser.parse_args(arguments)
    options.steps = STEPS[options.device] if options.steps is None else options.steps
    if options.quick:
        options.rounds, options.steps = min(options.rounds, 2), 1
    if options.rounds < 1 or options.steps < 1:
        parser.error("--rounds and --steps are at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
