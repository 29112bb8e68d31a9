"""The stock `Trainer`: one long `train()`, held between rounds by a callback that takes the parent's commands.

A step is timed from the end of the step before to its own end, so that loading its batch is part of it. Rows come in a
fixed order (`train_sampling_strategy='sequential'`) that was drawn before: the same batches as the engine's, or those
that the Trainer's own sampler makes when it groups by length.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

from benchmarks import workload as work
from benchmarks.process import Channel, Spec, peak_memory
from benchmarks.variants import Variant
from benchmarks.workload import BATCH, EPOCHS, STEPS_PER_EPOCH, Rows, Workload
from nightgate import cpu_threads
from nightgate.engine import base_models


def serve(channel: Channel, spec: Spec, variant: Variant) -> None:
    """Build the Trainer, answer commands until 'stop'."""
    base_models.quiet_transformers()
    workload = Workload.load(Path(spec.workload))
    if variant.is_tuned:
        torch.set_num_threads(cpu_threads.pick_threads()[0])
    trained, evaluated = spec.rows(workload, variant)
    loaded = work.load(Path(spec.folder))
    rows = dataset(workload, np.arange(len(workload.labels)))
    order = np.concatenate([batch for batches in trained for batch in batches])
    pace = _Pace(
        channel,
        steps=[len(batches) for batches in trained],
        evaluated=[rows.select(chosen) for chosen in evaluated],
        device=spec.device,
    )
    trainer = Trainer(
        model=loaded.model,
        args=arguments(
            Path(spec.scratch) / variant.name,
            device=spec.device,
            max_steps=EPOCHS * STEPS_PER_EPOCH,
            **(best_settings(spec.device) if variant.is_tuned else {}),
        ),
        # Behind the last round comes a batch that is loaded in advance and never trained.
        train_dataset=rows.select(np.concatenate([order, order[:BATCH]])),
        processing_class=loaded.tokenizer,
        data_collator=DataCollatorWithPadding(loaded.tokenizer),
        callbacks=[pace],
    )
    pace.trainer = trainer
    trainer.train()


def arguments(folder: Path, *, device: str, max_steps: int, **more: Any) -> TrainingArguments:
    """The published recipe; logging and saving off, rows in their given order, all else as it comes."""
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
    """Beside grouping by length, what is fastest on this device."""
    if device == "cpu":
        # Making a batch takes 3 ms of a step of seconds: another process would only take a core away.
        return {}
    return {
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        "dataloader_num_workers": 4,
        "dataloader_persistent_workers": True,
    }


class _Pace(TrainerCallback):  # type: ignore[misc]
    """Holds the training between two rounds and does what the parent asks for meanwhile."""

    trainer: Trainer

    def __init__(self, channel: Channel, *, steps: list[int], evaluated: list[Any], device: str) -> None:
        self.channel, self.device = channel, device
        self.steps, self.evaluated = iter(steps), iter(evaluated)
        self.in_round = self.left = 0
        self.began = 0.0

    def on_train_begin(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        self.channel.send(reason="stock")
        self._wait(control)

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        self.left -= 1
        if self.left == self.in_round - 1:
            # The round's first step is not timed.
            self.began = self._now()
        elif not self.left:
            self.channel.send(seconds=(self._now() - self.began) / (self.in_round - 1))
            self._wait(control)

    def _wait(self, control: Any) -> None:
        """Returns when the Trainer is to go on."""
        while True:
            command = self.channel.receive()
            if command == "steps":
                self.in_round = self.left = next(self.steps)
                return
            if command == "evaluate":
                rows, began = next(self.evaluated), self._now()
                self.trainer.predict(rows)
                self.channel.send(seconds=1000 * (self._now() - began) / len(rows))
            elif command == "memory":
                self.channel.send(bytes=peak_memory(self.device))
            else:
                control.should_training_stop = True
                return

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
