"""The engine, with the wins of one variant, behind the same commands as the stock Trainer."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import workload as work
from benchmarks.variants import Variant
from benchmarks.worker import Channel, Spec, folder_bytes, peak_memory
from benchmarks.workload import BATCH, EPOCHS, MAX_LENGTH, STEPS_PER_EPOCH, VALIDATION_ROWS, Rows, Workload
from nightgate import cpu_threads
from nightgate.config import Training
from nightgate.engine import devices
from nightgate.engine.encoding import Encoded
from nightgate.engine.step import Engine, Wins
from nightgate.training import checkpoints
from nightgate.training.checkpoints import RunState


def serve(channel: Channel, spec: Spec, variant: Variant) -> None:
    """Build the engine, answer commands until 'stop'."""
    torch.set_num_threads(cpu_threads.pick_threads()[0])
    workload = Workload.load(Path(spec.workload))
    trained, evaluated = spec.rows(workload, variant)
    picked = devices.pick("auto")
    encoded = workload.encoded()
    engine = Engine(
        work.load(Path(spec.folder)),
        Training(max_length=MAX_LENGTH, batch_size=BATCH, eval_batch_size=BATCH),
        picked,
        EPOCHS * STEPS_PER_EPOCH,
        encoded,
        wins=Wins(**variant.wins),
    )
    engine.seed(spec.seed)
    steps, evaluations = iter(trained), iter([take(encoded, rows) for rows in evaluated])

    def synchronise() -> None:
        if picked.device.type == "cuda":
            torch.cuda.synchronize()

    channel.send(
        threads=torch.get_num_threads(),
        precision=picked.precision,
        reason=engine.reason,
        trimmed=engine.vocabulary is not None,
        deferred=engine.rows_later is not None,
    )
    while (command := channel.receive()) != "stop":
        synchronise()
        began = time.perf_counter()
        if command == "steps":
            lead, *batches = next(steps)
            engine.step(lead, workload.labels[lead])
            synchronise()
            began = time.perf_counter()
            for rows in batches:
                loss = engine.step(rows, workload.labels[rows])
                if picked.device.type == "cpu":
                    # As the training does: a loss that is not finite ends it at once.
                    assert np.isfinite(loss.item())
            synchronise()
            channel.send(seconds=(time.perf_counter() - began) / len(batches))
        elif command == "evaluate":
            rows_of_round = next(evaluations)
            # Once in an evaluation of all validation rows, and not once in so few: it gets its share of their time.
            engine.settle()
            synchronise()
            settled = time.perf_counter()
            engine.logits(rows_of_round, batch_size=BATCH)
            synchronise()
            scored = (time.perf_counter() - settled) / len(rows_of_round)
            channel.send(seconds=1000 * (scored + (settled - began) / VALIDATION_ROWS))
        elif command == "memory":
            channel.send(bytes=peak_memory(picked.device.type))
        elif command == "save":
            channel.send(**_save(engine, Path(spec.scratch) / variant.name))


def take(encoded: Encoded, rows: Rows) -> Encoded:
    """These rows alone, in this order."""
    token = np.concatenate([np.arange(encoded.offsets[row], encoded.offsets[row + 1]) for row in rows])
    return replace(
        encoded,
        ids=encoded.ids[token],
        type_ids=None if encoded.type_ids is None else encoded.type_ids[token],
        offsets=np.concatenate([[0], np.cumsum(encoded.lengths[rows])]).astype(np.int64),
    )


def _save(engine: Engine, run_dir: Path) -> dict[str, Any]:
    """What an epoch and the end of a night write, by the code that a night runs."""
    attempt_dir = run_dir / "attempt-1"
    weights = checkpoints.weights_path(attempt_dir, 1).relative_to(run_dir).as_posix()
    state = RunState(
        recipe="benchmark",
        epoch=1,
        step=engine.steps_done,
        best_epoch=1,
        best_f1=0.0,
        best_weights=weights,
        weights=weights,
        epochs_without_better=0,
        threads=torch.get_num_threads(),
        finished=False,
        reports=(),
    )
    began = time.perf_counter()
    tensors = checkpoints.snapshot(engine.weights()), checkpoints.snapshot(engine.moments())
    blocked = time.perf_counter() - began
    checkpoints.save_epoch(run_dir, attempt_dir, state, *tensors)
    written = time.perf_counter() - began
    epoch_bytes = folder_bytes(run_dir)
    began = time.perf_counter()
    checkpoints.save_finished(run_dir, attempt_dir, state, lambda folder: engine.export(folder))
    return {
        "blocked_seconds": blocked,
        "seconds": written,
        "checkpoint": epoch_bytes,
        "finish_seconds": time.perf_counter() - began,
        "finished": folder_bytes(run_dir),
    }
