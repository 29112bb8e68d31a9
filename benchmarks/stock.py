"""The stock `Trainer`: one long `train()`, paced from outside by a callback.

A step is timed from the end of the step before to its own end, so that loading its batch is part of it. Rows come in a
fixed order (`train_sampling_strategy='sequential'`), which was drawn before: the same batches as the engine's, or those
that the Trainer's own sampler makes when it groups by length.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments, default_data_collator

from benchmarks import workload as work
from benchmarks.variants import Variant
from benchmarks.worker import Channel, Spec, folder_bytes, peak_memory
from benchmarks.workload import BATCH, EPOCHS, MAX_LENGTH, STEPS_PER_EPOCH, Rows, Workload
from nightgate import cpu_threads
from nightgate.engine import base_models


def serve(channel: Channel, spec: Spec, variant: Variant) -> None:
    """Build the Trainer, answer commands until 'stop'."""
    base_models.quiet_transformers()
    workload = Workload.load(Path(spec.workload))
    if variant.at_its_best:
        torch.set_num_threads(cpu_threads.pick_threads()[0])
    trained, evaluated = spec.rows(workload, variant)
    loaded = work.load(Path(spec.folder))
    rows = dataset(workload, np.arange(len(workload.labels)), to_max_length=variant.to_max_length)
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
            **(best_settings(spec.device) if variant.at_its_best else {}),
        ),
        # Behind the last round comes a batch that is loaded in advance and never trained.
        train_dataset=rows.select(np.concatenate([order, order[:BATCH]])),
        processing_class=loaded.tokenizer,
        data_collator=default_data_collator if variant.to_max_length else DataCollatorWithPadding(loaded.tokenizer),
        callbacks=[pace],
    )
    pace.trainer = trainer
    trainer.train()


def arguments(folder: Path, *, device: str, max_steps: int, **more: Any) -> TrainingArguments:
    """The published recipe; logging and saving off, rows in their given order, all else as it comes."""
    return TrainingArguments(
        output_dir=str(folder),
        **{
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
            **more,
        },
    )


def dataset(workload: Workload, rows: Rows, *, to_max_length: bool = False) -> Any:
    """The rows as a `datasets.Dataset`."""
    from datasets import Dataset

    columns = workload.columns(rows)
    if to_max_length:
        for name, filler in (("input_ids", workload.shape.pad_id), ("attention_mask", 0), ("token_type_ids", 0)):
            if name in columns:
                columns[name] = [row + [filler] * (MAX_LENGTH - len(row)) for row in columns[name]]
    return Dataset.from_dict(columns)


def best_settings(device: str) -> dict[str, Any]:
    if device == "cpu":
        # Making a batch takes 3 ms of a step of seconds: another process would only take a core away.
        return {}
    return {
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        "dataloader_num_workers": 4,
        "dataloader_persistent_workers": True,
        "dataloader_pin_memory": True,
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
        self.channel.send(threads=torch.get_num_threads())
        self._wait(control)

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        self.left -= 1
        if self.left == self.in_round - 1:
            # The round's first step is not timed.
            self._synchronise()
            self.began = time.perf_counter()
        elif not self.left:
            self._synchronise()
            self.channel.send(seconds=(time.perf_counter() - self.began) / (self.in_round - 1))
            self._wait(control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds = time.perf_counter() - self.began
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.channel.send(seconds=seconds, checkpoint=folder_bytes(folder))
        control.should_save = False
        self._wait(control)

    def _wait(self, control: Any) -> None:
        """Returns when the Trainer is to go on."""
        while True:
            command = self.channel.receive()
            self._synchronise()
            self.began = time.perf_counter()
            if command == "steps":
                self.in_round = self.left = next(self.steps)
                return
            if command == "evaluate":
                rows = next(self.evaluated)
                self.trainer.predict(rows)
                self._synchronise()
                self.channel.send(seconds=(time.perf_counter() - self.began) * 1000 / len(rows))
            elif command == "memory":
                self.channel.send(bytes=peak_memory(self.device))
            elif command == "save":
                # The Trainer writes when this returns, and calls `on_save`.
                control.should_save = True
                return
            else:
                control.should_training_stop = True
                return

    def _synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
