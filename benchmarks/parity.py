"""The quality gates: the engine and the stock `Trainer` train the same model on the same batches, and are compared.

Dropout is off, since the two draw their masks differently. The Trainer is the real one, in fp64 too. The rows are those
of the workload with at most `LONGEST` tokens, so that fp64 in the Multi shape takes seconds a step.
"""

from __future__ import annotations

import gc
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer

from benchmarks import stock
from benchmarks import workload as work
from benchmarks.ours import take
from benchmarks.worker import Spec
from benchmarks.workload import BATCH, MAX_LENGTH, Workload
from nightgate import cpu_threads
from nightgate.config import Training
from nightgate.engine import base_models, devices
from nightgate.engine.encoding import Encoded
from nightgate.engine.step import Engine

LONGEST = 40
FP64_STEPS, FP32_STEPS = 10, 40
RATE = 5e-5
WORD_TABLE = "word_embeddings.weight"


@dataclass(frozen=True)
class Finding:
    what: str
    found: float
    limit: float

    @property
    def passed(self) -> bool:
        """NaN does not."""
        return self.found <= self.limit


def check(spec: Spec, *, sabotage: bool) -> dict[str, Any]:
    """All gates, as plain values; writes the base model's folder when it is missing.

    Args:
        sabotage: train our side at a rate that is 0.1 % too high, which the gates must notice.
    """
    base_models.quiet_transformers()
    torch.set_num_threads(cpu_threads.pick_threads()[0])
    workload = Workload.load(Path(spec.workload))
    folder = work.base_model(workload.shape, Path(spec.folder))
    rate = RATE * (1.001 if sabotage else 1.0)
    compared = _Comparison(spec, workload, folder, rate)
    findings = [*compared.in_fp64(), *compared.in_fp32()]
    return {
        "findings": [asdict(finding) for finding in findings],
        "folder": str(folder),
        "engine": compared.described,
    }


class _Comparison:
    def __init__(self, spec: Spec, workload: Workload, folder: Path, rate: float) -> None:
        self.spec, self.workload, self.folder, self.rate = spec, workload, folder, rate
        short = np.flatnonzero(workload.lengths <= LONGEST)
        chosen = np.random.default_rng(spec.seed).permutation(short)[: FP32_STEPS * BATCH]
        self.encoded, self.labels = take(workload.encoded(), chosen), workload.labels[chosen]
        self.rows = stock.dataset(workload, chosen)
        self.described = ""

    def in_fp64(self) -> list[Finding]:
        stock_losses, stock_weights = self._stock(FP64_STEPS, double=True)
        our_losses, our_weights, _ = self._ours(FP64_STEPS, double=True)
        apart = [float((our_weights[name] - tensor).abs().max()) for name, tensor in stock_weights.items()]
        return [
            Finding(f"loss, fp64, {FP64_STEPS} steps: largest difference", _largest(our_losses, stock_losses), 1e-12),
            # numpy's maximum keeps NaN, Python's loses it.
            Finding(f"weights, fp64, after {FP64_STEPS} steps: largest difference", float(np.max(apart)), 1e-10),
        ]

    def in_fp32(self) -> list[Finding]:
        stock_losses, _ = self._stock(FP32_STEPS, double=False)
        scored = take(self.encoded, np.arange(4 * BATCH))
        our_losses, our_weights, (ours, plain) = self._ours(FP32_STEPS, double=False, scored=scored)
        flipped = int((ours.argmax(axis=1) != plain.argmax(axis=1)).sum())
        return [
            Finding(f"loss, fp32, {FP32_STEPS} steps: largest difference", _largest(our_losses, stock_losses), 1e-5),
            Finding("untouched rows of the word table whose bits changed", self._changed(our_weights), 0),
            Finding("logits of the export in plain transformers: largest difference", _largest(ours, plain), 1e-5),
            Finding(f"argmax flipped by the export, of {len(ours)} rows", flipped, 0),
        ]

    def _stock(self, steps: int, *, double: bool) -> tuple[list[float], dict[str, Tensor]]:
        """Losses of the steps, and the weights after them."""
        loaded = work.load(self.folder, dropout=0.0)
        model = loaded.model.double() if double else loaded.model
        losses: list[float] = []
        model.register_forward_hook(lambda _module, _inputs, output: losses.append(output.loss.item()))
        trainer = Trainer(
            model=model,
            args=stock.arguments(
                Path(self.spec.scratch) / "parity",
                device=self._device(double),
                max_steps=steps,
                learning_rate=RATE,
            ),
            train_dataset=self.rows,
            processing_class=loaded.tokenizer,
            data_collator=DataCollatorWithPadding(loaded.tokenizer),
        )
        trainer.train()
        weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        del trainer, model, loaded
        gc.collect()
        return losses, weights

    def _ours(
        self, steps: int, *, double: bool, scored: Encoded | None = None
    ) -> tuple[list[float], dict[str, Tensor], tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Losses, the weights of the exported folder, and logits of `scored`: ours, and plain transformers' on it."""
        loaded = work.load(self.folder, dropout=0.0)
        if double:
            loaded.model.double()
        engine = Engine(
            loaded,
            Training(max_length=MAX_LENGTH, batch_size=BATCH, learning_rate=self.rate),
            devices.Picked(torch.device(self._device(double)), torch.float32, "compared in full precision"),
            steps,
            self.encoded,
            # So that the word table is as large as in the timed runs, and its rows are deferred if they are there.
            self.workload.encoded(),
        )
        self.described = engine.reason + ("; deferred Adam" if engine.rows_later is not None else "; dense Adam")
        batches = np.arange(steps * BATCH).reshape(steps, BATCH)
        losses = [engine.step(rows, self.labels[rows]).item() for rows in batches]
        export = Path(self.spec.scratch) / "parity" / "export"
        ours = plain = np.zeros((0, len(work.LABELS)), np.float32)
        if scored is not None:
            ours = engine.logits(scored, batch_size=BATCH)
        engine.export(export)
        del engine, loaded
        gc.collect()
        if scored is not None:
            plain = _plain_logits(export, scored)
        weights = load_file(export / "model.safetensors")
        shutil.rmtree(export)
        return losses, weights, (ours, plain)

    def _device(self, double: bool) -> str:
        """fp64 is compared on the CPU: no GPU kernel of packed attention takes it."""
        return "cpu" if double else self.spec.device

    def _changed(self, ours: dict[str, Tensor]) -> int:
        """Rows of the word table that no batch held and that are not, bit for bit, what they were."""
        name = next(name for name in ours if name.endswith(WORD_TABLE))
        before = work.load(self.folder).model.state_dict()[name]
        untouched = np.setdiff1d(np.arange(len(before)), self.encoded.ids)
        return int((ours[name][untouched].view(torch.int32) != before[untouched].view(torch.int32)).any(dim=1).sum())


def _plain_logits(folder: Path, encoded: Encoded) -> NDArray[np.float32]:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        batches = np.arange(len(encoded)).reshape(-1, BATCH)
        return torch.cat([model(**encoded.batch(rows)).logits for rows in batches]).numpy()


def _largest(ours: Any, theirs: Any) -> float:
    return float(np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)).max())
