"""The engine, with the parts of one variant, behind the commands of `benchmarks.process`."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import workload as work
from benchmarks.process import Channel, Spec, peak_memory
from benchmarks.variants import Variant
from benchmarks.workload import BATCH, EPOCHS, MAX_LENGTH, STEPS_PER_EPOCH, Workload
from nightgate import cpu_threads
from nightgate.config import Training
from nightgate.engine import devices
from nightgate.engine.step import Engine, Wins


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
        wins=variant.wins or Wins(),
    )
    engine.seed(spec.seed)
    steps, evaluations = iter(trained), iter([workload.encoded(rows) for rows in evaluated])

    def now() -> float:
        if picked.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    channel.send(reason=engine.reason)
    while (command := channel.receive()) != "stop":
        if command == "steps":
            lead, *batches = next(steps)
            engine.step(lead, workload.labels[lead])
            began = now()
            for rows in batches:
                loss = engine.step(rows, workload.labels[rows])
                if picked.device.type == "cpu":
                    # As the training does: a loss that is not finite ends it at once.
                    assert np.isfinite(loss.item())
            channel.send(seconds=(now() - began) / len(batches))
        elif command == "evaluate":
            rows_of_round = next(evaluations)
            began = now()
            engine.logits(rows_of_round, batch_size=BATCH)
            channel.send(seconds=1000 * (now() - began) / len(rows_of_round))
        elif command == "memory":
            channel.send(bytes=peak_memory(picked.device.type))
