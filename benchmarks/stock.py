"""Worker of the training benchmark that runs the stock `Trainer`.

One long `train()` is held between rounds by a callback that answers commands. A step is timed from the end of the
previous one, so that loading its batch counts. The order of rows is fixed (`train_sampling_strategy='sequential'`): the
batches of the engine, or those of the Trainer's own sampler when it groups by length.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

from benchmarks import workload as work
from benchmarks.process import Spec, Variant, now, peak_memory
from benchmarks.workload import BATCH, EPOCHS, STEPS_PER_EPOCH, Rows, Workload
from nightgate import cpu_threads
from nightgate.engine import base_models


def serve(pipe: Connection, spec: Spec, variant: Variant) -> None:
    """Build the Trainer and answer commands until the pipe is closed."""
    base_models.quiet_transformers()
    if variant.is_tuned:
        torch.set_num_threads(cpu_threads.pick_threads()[0])
    trained, evaluated = spec.rows(variant)
    loaded = work.load(spec.folder)
    rows = dataset(spec.workload, np.arange(len(spec.workload.labels)))
    order = np.concatenate([batch for batches in trained for batch in batches])
    pace = _Pace(
        pipe, [len(batches) for batches in trained], [rows.select(chosen) for chosen in evaluated], spec.device
    )
    trainer = Trainer(
        model=loaded.model,
        args=arguments(
            spec.scratch / variant.name,
            device=spec.device,
            max_steps=EPOCHS * STEPS_PER_EPOCH,
            **(best_settings(spec.device) if variant.is_tuned else {}),
            bf16=variant.precision == "bf16",
        ),
        # After the last round one more batch is loaded in advance.
        train_dataset=rows.select(np.concatenate([order, order[:BATCH]])),
        processing_class=loaded.tokenizer,
        data_collator=DataCollatorWithPadding(loaded.tokenizer),
        callbacks=[pace],
    )
    pace.trainer = trainer
    trainer.train()


def arguments(folder: Path, *, device: str, max_steps: int, **more: Any) -> TrainingArguments:
    """The published recipe, without logging and saving, rows in the given order, all else by default."""
    settings = {
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "max_steps": max_steps,
        "learning_rate": 5e-5,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
    }
    return TrainingArguments(output_dir=str(folder), **(settings | more))


def dataset(workload: Workload, rows: Rows) -> Any:
    """The rows as a `datasets.Dataset`."""
    from datasets import Dataset

    return Dataset.from_dict(workload.columns(rows))


def best_settings(device: str) -> dict[str, Any]:
    """The fastest settings on this device, besides grouping by length and bf16."""
    if device == "cpu":
        # Making a batch takes 3 ms of a step of hundreds: another process would take a core away.
        return {}
    return {"dataloader_num_workers": 4, "dataloader_persistent_workers": True}


class _Pace(TrainerCallback):  # type: ignore[misc]
    """Answers commands between two rounds of the training."""

    trainer: Trainer

    def __init__(self, pipe: Connection, steps: list[int], evaluated: list[Any], device: str) -> None:
        self.pipe, self.device = pipe, device
        self.steps, self.evaluated = iter(steps), iter(evaluated)
        self.in_round = self.left = 0
        self.began = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.pipe.send("ready")
        self._wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left == self.in_round - 1:
            # The round's first step is not timed.
            self.began = now(self.device)
        elif not self.left:
            self.pipe.send((now(self.device) - self.began) / (self.in_round - 1))
            self._wait()

    def _wait(self) -> None:
        """Answer commands until the next round."""
        while (command := self.pipe.recv()) != "steps":
            if command == "evaluate":
                rows, began = next(self.evaluated), now(self.device)
                self.trainer.predict(rows)
                self.pipe.send(1000 * (now(self.device) - began) / len(rows))
            else:
                self.pipe.send(peak_memory(self.device))
        self.in_round = self.left = next(self.steps)
