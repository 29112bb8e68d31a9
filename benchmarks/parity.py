"""Quality gates of the training benchmark: engine and stock `Trainer` train the same model on the same batches.

Dropout is off, because the two draw their masks differently. Rows have at most `LONGEST` tokens, so that a step in fp64
in the shape `multi` takes seconds.
"""

from __future__ import annotations

import gc
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer

from benchmarks import stock
from benchmarks import workload as work
from benchmarks.process import Spec
from benchmarks.results import Result, at_most
from benchmarks.workload import BATCH, MAX_LENGTH
from nightgate import cpu_threads
from nightgate.config.training import Training
from nightgate.engine import base_models, devices
from nightgate.engine.base_models import LoadedModel
from nightgate.engine.devices import Picked
from nightgate.engine.step import Engine

LONGEST = 40
FP64_STEPS, FP32_STEPS = 10, 40
RATE = 5e-5
SCORED = 4 * BATCH
WORD_TABLE = "word_embeddings.weight"


def serve(pipe: Connection, spec: Spec, sabotage: bool) -> None:
    """Send the gates, the base model's folder, and the engine's reason.

    Args:
        sabotage: train the engine at a rate that is 0.1 % too high, which the gates must notice.
    """
    base_models.quiet_transformers()
    torch.set_num_threads(cpu_threads.pick_threads()[0])
    folder = work.base_model(spec.workload.shape, spec.folder)
    compared = _Comparison(spec, folder, RATE * (1.001 if sabotage else 1.0))
    pipe.send(([*compared.in_fp64(), *compared.in_fp32()], folder, compared.reason))


class _Trained(NamedTuple):
    losses: list[float]
    weights: dict[str, Tensor]
    logits: NDArray[np.float32]
    """Logits of the scored rows, by the engine."""
    plain: NDArray[np.float32]
    """Logits of the scored rows, by plain transformers on the export."""


class _Comparison:
    def __init__(self, spec: Spec, folder: Path, rate: float) -> None:
        self.spec, self.workload, self.folder, self.rate = spec, spec.workload, folder, rate
        workload = spec.workload
        short = np.flatnonzero(workload.lengths <= LONGEST)
        self.chosen = np.random.default_rng(spec.seed).permutation(short)[: FP32_STEPS * BATCH]
        self.encoded = workload.encoded(self.chosen)
        self.labels, self.rows = workload.labels[self.chosen], stock.dataset(workload, self.chosen)
        self.reason = ""

    def in_fp64(self) -> list[Result]:
        stock_losses, stock_weights = self._stock(FP64_STEPS, double=True)
        ours = self._ours(FP64_STEPS, double=True)
        apart = [float((ours.weights[name] - tensor).abs().max()) for name, tensor in stock_weights.items()]
        return [
            at_most(f"loss, fp64, {FP64_STEPS} steps: largest difference", _largest(ours.losses, stock_losses), 1e-12),
            # numpy's maximum keeps NaN, Python's loses it.
            at_most(f"weights, fp64, after {FP64_STEPS} steps: largest difference", float(np.max(apart)), 1e-10),
        ]

    def in_fp32(self) -> list[Result]:
        stock_losses, _ = self._stock(FP32_STEPS, double=False)
        ours = self._ours(FP32_STEPS, double=False)
        flipped = int((ours.logits.argmax(axis=1) != ours.plain.argmax(axis=1)).sum())
        results = [
            at_most(f"loss, fp32, {FP32_STEPS} steps: largest difference", _largest(ours.losses, stock_losses), 1e-5),
            at_most("untouched rows of the word table whose bits changed", self._changed(ours.weights), 0),
            at_most("logits of the export in plain transformers: largest difference", _largest(*ours[2:]), 1e-5),
            at_most(f"argmax flipped by the export, of {len(ours.plain)} rows", flipped, 0),
        ]
        if devices.pick("auto").precision == "bf16":
            losses = self._ours(FP32_STEPS, double=False, picked=devices.pick("bf16")).losses
            what = f"loss, bf16, {FP32_STEPS} steps: largest difference from the Trainer's in fp32"
            results.append(at_most(what, _largest(losses, stock_losses), 1e-2))
        return results

    def _stock(self, steps: int, *, double: bool) -> tuple[list[float], dict[str, Tensor]]:
        """Losses of the steps, and the weights after them."""
        loaded = self._model(double)
        model, tokenizer = loaded.model, loaded.tokenizer
        losses: list[float] = []
        model.register_forward_hook(lambda _module, _inputs, output: losses.append(output.loss.item()))
        Trainer(
            model=model,
            args=stock.arguments(
                self.spec.scratch / "parity", device=self._device(double), max_steps=steps, learning_rate=RATE
            ),
            train_dataset=self.rows,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
        ).train()
        return losses, {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}

    def _ours(self, steps: int, *, double: bool, picked: Picked | None = None) -> _Trained:
        engine = Engine(
            self._model(double),
            Training(max_length=MAX_LENGTH, batch_size=BATCH, learning_rate=self.rate),
            picked or Picked(torch.device(self._device(double)), torch.float32, "compared in full precision"),
            steps,
            self.encoded,
            self.workload.encoded(),  # the word table is as large as in the timed runs
        )
        self.reason = engine.reason
        batches = np.arange(steps * BATCH).reshape(steps, BATCH)
        losses = [engine.step(rows, self.labels[rows]).item() for rows in batches]
        scored = self.workload.encoded(self.chosen[:SCORED])
        logits = engine.logits(scored, batch_size=BATCH)
        with tempfile.TemporaryDirectory(dir=self.spec.scratch) as export:
            engine.export(Path(export))
            del engine
            gc.collect()
            plain = AutoModelForSequenceClassification.from_pretrained(export, dtype=torch.float32).eval()
            with torch.inference_mode():
                expected = plain(**scored.batch(np.arange(SCORED))).logits.numpy()
            return _Trained(losses, load_file(Path(export) / "model.safetensors"), logits, expected)

    def _model(self, double: bool) -> LoadedModel:
        loaded = work.load(self.folder, dropout=0.0)
        loaded.model.to(torch.float64 if double else torch.float32)
        return loaded

    def _device(self, double: bool) -> str:
        """The device of a comparison: in fp64 the CPU, because no GPU kernel of packed attention takes it."""
        return "cpu" if double else self.spec.device

    def _changed(self, ours: dict[str, Tensor]) -> int:
        """Number of rows of the word table that are in no batch and yet have changed."""
        name = next(name for name in ours if name.endswith(WORD_TABLE))
        before = work.load(self.folder).model.state_dict()[name]
        untouched = np.setdiff1d(np.arange(len(before)), self.encoded.ids)
        return int((ours[name][untouched].view(torch.int32) != before[untouched].view(torch.int32)).any(dim=1).sum())


def _largest(ours: Any, theirs: Any) -> float:
    return float(np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)).max())
