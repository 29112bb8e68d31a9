"""Worker of the training benchmark that runs Nightgate's engine."""

from __future__ import annotations

from multiprocessing.connection import Connection

import numpy as np
import torch

from benchmarks import workload as work
from benchmarks.process import Spec, Variant, now, peak_memory
from benchmarks.workload import BATCH, EPOCHS, MAX_LENGTH, STEPS_PER_EPOCH
from nightgate import cpu_threads
from nightgate.config.training import Training
from nightgate.engine import devices
from nightgate.engine.step import Engine, Wins


def serve(pipe: Connection, spec: Spec, variant: Variant) -> None:
    """Build the engine and answer commands until the pipe is closed."""
    torch.set_num_threads(cpu_threads.pick_threads()[0])
    workload = spec.workload
    trained, evaluated = spec.rows(variant)
    picked = devices.pick(variant.precision)
    engine = Engine(
        work.load(spec.folder),
        Training(max_length=MAX_LENGTH, batch_size=BATCH, eval_batch_size=BATCH),
        picked,
        EPOCHS * STEPS_PER_EPOCH,
        workload.encoded(),
        wins=variant.wins or Wins(),
    )
    engine.seed(spec.seed)
    steps, evaluations = iter(trained), iter([workload.encoded(rows) for rows in evaluated])

    pipe.send("ready")
    while True:
        command = pipe.recv()
        if command == "steps":
            lead, *batches = next(steps)
            engine.step(lead, workload.labels[lead])
            began = now(picked.device.type)
            for rows in batches:
                loss = engine.step(rows, workload.labels[rows])
                if picked.device.type == "cpu":
                    assert np.isfinite(loss.item())  # training reads each loss too
            pipe.send((now(picked.device.type) - began) / len(batches))
        elif command == "evaluate":
            rows_of_round = next(evaluations)
            began = now(picked.device.type)
            engine.logits(rows_of_round, batch_size=BATCH)
            pipe.send(1000 * (now(picked.device.type) - began) / len(rows_of_round))
        else:
            pipe.send(peak_memory(picked.device.type))
