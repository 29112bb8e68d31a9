"""The training engine: a classifier with its optimiser, and the optimiser step.

    engine = Engine(loaded, recipe, picked, total_steps, train_rows, validation_rows)
    loss = engine.step(rows, labels)              # forward, backward, clipping, AdamW, schedule
    logits = engine.logits(validation_rows, batch_size=16)
    engine.export(folder)                         # a stock Hugging Face folder

A step computes what the stock `Trainer` computes, faster: texts are packed instead of padded (`forward`), and the word
table is trimmed to the tokens of the given rows (`vocabulary`). A batch that does not fit into memory is computed in
parts whose gradients are summed.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nightgate.config.training import Training
from nightgate.engine import base_models, forward, vocabulary
from nightgate.engine.base_models import LoadedModel
from nightgate.engine.cuda_graphs import StepGraphs
from nightgate.engine.devices import Picked
from nightgate.engine.distributed import World, share
from nightgate.engine.encoding import Encoded
from nightgate.engine.forward import Rows
from nightgate.engine.optimizer import TableGradient, clip, learning_rates, make_optimizer
from nightgate.errors import is_out_of_memory

log = logging.getLogger(__name__)

MOST_TO_KEEP = 0.8
"""Largest share of the vocabulary in use at which trimming pays."""


@dataclass(frozen=True)
class Wins:
    """Optimisations of the engine, each of which leaves results as they are."""

    packed: bool = True
    cls_only: bool = True
    trimmed: bool = True
    graphs: bool = False
    """Batches of fixed shape, on a GPU as CUDA graphs. Off until they have been measured on a GPU."""


class Engine:
    """A model in training.

    Args:
        picked: device and precision; the engine's own `picked` is float32 where this model needs it.
        total_steps: length of the learning rate's schedule.
        train, others: all rows to train on and to score; the vocabulary keeps their tokens.
        class_weights: of the loss of each class, shape [labels]; None: all count alike.
        world: the processes that share the work; None for a single one.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        recipe: Training,
        picked: Picked,
        total_steps: int,
        train: Encoded,
        *others: Encoded,
        wins: Wins = Wins(),
        world: World | None = None,
        class_weights: NDArray[np.float64] | None = None,
    ) -> None:
        self.loaded, self.recipe, self.world = loaded, recipe, world or World()
        self.model: Any = loaded.model.to(picked.device)
        self.steps_done = 0
        self.micro_batches = 1
        self.rate = learning_rates(recipe, total_steps)
        self.forward = forward.choose(self.model, train, picked, pack=wins.packed, cls_only=wins.cls_only)
        self.picked = picked = self.forward.picked
        self.vocabulary, why = self._trim([train, *others]) if wins.trimmed else (None, "whole, as requested")
        self.reason = f"{self.forward.reason}; vocabulary: {why}"
        """Why texts are packed or padded, and how much of the vocabulary is kept."""
        self.train = self._own_ids(train)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        like = self.parameters[0]
        self.class_weights = None if class_weights is None else torch.from_numpy(class_weights).to(like)
        self.optimizer = make_optimizer(self.model, recipe)
        self.table = self._table_gradient()
        self.scaler = torch.amp.GradScaler(picked.device.type, enabled=picked.dtype == torch.float16)
        self.graphs: StepGraphs | None = None
        if wins.graphs and self.world.size == 1 and isinstance(self.forward, forward.Packed):
            classifier, size = self.forward.classifier, recipe.batch_size
            self.graphs = StepGraphs(classifier, self.train, picked, size, self._learn)

    @property
    def kind(self) -> str:
        """'packed' or 'padded'."""
        return self.forward.kind

    def seed(self, *entropy: int) -> None:
        """Seed dropout on the CPU, which does not use torch's generator."""
        if isinstance(self.forward, forward.Packed):
            self.forward.classifier.dropout.seed(*entropy)

    def step(self, rows: Rows, labels: NDArray[np.int64]) -> Tensor:
        """Take one optimiser step on a batch of training rows; returns its mean loss, a scalar on the device.

        Raises:
            RuntimeError: out of memory with a single row.
        """
        self.model.train()
        self._set_rate(self.rate(self.steps_done + 1))
        loss = self._recorded_step(rows, labels)
        if loss is None:
            loss = self._plain_step(rows, labels)
        self.steps_done += 1
        return loss

    def _recorded_step(self, rows: Rows, labels: NDArray[np.int64]) -> Tensor | None:
        if self.graphs is None:
            return None
        try:
            return self.graphs.step(rows, labels)
        except torch.OutOfMemoryError:
            log.warning("not enough memory for CUDA graphs: steps run without")
            self.graphs = None
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            return None

    def _plain_step(self, rows: Rows, labels: NDArray[np.int64]) -> Tensor:
        loss = self._gradients(rows, labels)
        if self.world.size > 1:
            for parameter in self.parameters:
                # A process without rows in this batch has no gradients.
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            self.world.sum([loss, *(parameter.grad for parameter in self.parameters)])
        self._clip_and_step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def logits(
        self, encoded: Encoded, *, batch_size: int, on_batch: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Logits [rows, labels] in float32, in the order of `encoded`."""
        return forward.run(self.forward, self._own_ids(encoded), batch_size, on_batch, self.world)

    def weights(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers by name, not copied; the word table is the trimmed one."""
        return {name: tensor.detach() for name, tensor in self.model.state_dict().items()}

    def moments(self) -> dict[str, Tensor]:
        """The optimiser's state, as `<parameter>:exp_avg`, `:exp_avg_sq` and `:step`; not copied."""
        return {
            f"{name}:{kind}": tensor.detach()
            for name, parameter in self.model.named_parameters()
            for kind, tensor in self.optimizer.state.get(parameter, {}).items()
        }

    def restore(self, weights: dict[str, Tensor], moments: dict[str, Tensor], step: int) -> None:
        """Load the weights and moments of a checkpoint after `step` steps."""
        self.load_weights(weights)
        self.steps_done = step
        record = self.optimizer.state_dict()
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        order = [names[id(parameter)] for group in self.optimizer.param_groups for parameter in group["params"]]
        record["state"] = {
            index: {kind: moments[f"{name}:{kind}"] for kind in ("step", "exp_avg", "exp_avg_sq")}
            for index, name in enumerate(order)
            if f"{name}:step" in moments
        }
        self.optimizer.load_state_dict(record)

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Load tensors returned by `weights`; of tied ones, one name is enough."""
        own = self.model.state_dict()
        assert weights.keys() <= own.keys()
        missing, _ = self.model.load_state_dict(weights, strict=False)
        pointers = {own[name].data_ptr() for name in weights}
        assert all(own[name].data_ptr() in pointers for name in missing)

    def export(self, folder: Path, step: int | None = None) -> None:
        """Write a stock folder with the full vocabulary; `step` is that of the weights, by default the last one."""
        with nullcontext() if self.vocabulary is None else self.vocabulary.restored(self._decay(step)):
            base_models.save_model(self.loaded, folder)

    @property
    def skipped_steps(self) -> int:
        """Number of steps skipped by fp16 loss scaling because gradients overflowed. Waits for the device."""
        counts = [float(state["step"]) for state in self.optimizer.state.values()]
        return self.steps_done - int(max(counts, default=self.steps_done))

    def digest(self) -> str:
        """Hash of what a checkpoint does not hold: the original word table and the ids of its kept rows."""
        if self.vocabulary is None:
            return ""
        return f"{self.vocabulary.digest}-{hashlib.sha256(self.vocabulary.kept.tobytes()).hexdigest()[:16]}"

    def _trim(self, encoded: list[Encoded]) -> tuple[vocabulary.TrimmedVocabulary | None, str]:
        used = np.unique(np.concatenate([*(rows.ids for rows in encoded), [encoded[0].pad_id]])).astype(np.int64)
        known = self.model.get_input_embeddings().num_embeddings
        if len(used) > MOST_TO_KEEP * known:
            return None, f"whole, {len(used)} of {known} words are in use"
        return vocabulary.trim(self.model, used)

    def _table_gradient(self) -> TableGradient | None:
        table = self.model.get_input_embeddings()
        is_plain = type(table) is nn.Embedding and table.weight.requires_grad and not table.scale_grad_by_freq
        # The exchange of several processes and CUDA graphs need dense gradients.
        return TableGradient(table) if is_plain and self.world.size == 1 and table.weight.is_cpu else None

    def _own_ids(self, encoded: Encoded) -> Encoded:
        if self.vocabulary is None:
            return encoded
        pad = self.vocabulary.remap(np.array([encoded.pad_id], np.int32))
        return replace(encoded, ids=self.vocabulary.remap(encoded.ids), pad_id=int(pad[0]))

    def _gradients(self, rows: Rows, labels: NDArray[np.int64]) -> Tensor:
        while True:
            try:
                return self._summed(rows, labels)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.micro_batches >= len(rows):
                    raise
                self.micro_batches = min(2 * self.micro_batches, len(rows))
                log.warning(
                    "not enough memory for the batch: from now on its %d examples are computed in %d parts whose "
                    "gradients are summed; the recipe stays the same",
                    len(rows),
                    self.micro_batches,
                )
                self.optimizer.zero_grad(set_to_none=True)
            if self.picked.device.type == "cuda":
                torch.cuda.empty_cache()

    def _summed(self, rows: Rows, labels: NDArray[np.int64]) -> Tensor:
        device = self.picked.device
        # Every part of every process gets texts of all lengths: about the same time and memory.
        mine = share(np.argsort(self.train.lengths[rows], kind="stable"), self.world)
        losses = [torch.zeros((), device=device)]
        whole = len(rows) if self.class_weights is None else self.class_weights[torch.from_numpy(labels)].sum()
        for number in range(min(self.micro_batches, len(mine))):
            part = mine[number :: self.micro_batches]
            target = torch.from_numpy(labels[part]).to(device, non_blocking=True)
            with self.picked.autocast():
                logits = self.forward.logits(self.train, rows[part])
            loss = self._cross_entropy(logits, target, "sum") / whole
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return sum(losses[1:], losses[0])

    def _learn(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Finish a step of fixed shape: mean loss of the texts of weight 1, backward pass, clipping, AdamW."""
        # None instead of zeros, before the step: the graph being recorded must own the gradients' memory.
        self.optimizer.zero_grad(set_to_none=True)
        whole = weight if self.class_weights is None else weight * self.class_weights[target]
        loss = (self._cross_entropy(logits, target, "none") * weight).sum() / whole.sum()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._clip_and_step()
        return loss.detach()

    def _cross_entropy(self, logits: Tensor, target: Tensor, reduction: str) -> Tensor:
        """The recipe's loss with the weights of the classes, in float32 at least."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        smoothing = self.recipe.label_smoothing
        return functional.cross_entropy(
            wide, target, self.class_weights, reduction=reduction, label_smoothing=smoothing
        )

    def _clip_and_step(self) -> None:
        if self.recipe.max_grad_norm > 0:
            self.scaler.unscale_(self.optimizer)
            clip(self.parameters, self.recipe.max_grad_norm)
        with nullcontext() if self.table is None else self.table.dense():
            # Under fp16 the scaler skips a step whose gradients overflowed and lowers its scale.
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # in the memory that a CUDA graph reads
            else:
                group["lr"] = rate

    def _decay(self, step: int | None) -> float:
        """Factor of weight decay on a weight without gradients after `step` steps; exactly 1 without decay."""
        last = self.steps_done if step is None else step
        return math.prod(1 - self.rate(k) * self.recipe.weight_decay for k in range(1, last + 1))
