"""Fine-tuning: a plain PyTorch loop that can be killed after any instruction and goes on from its last epoch.

Runs in a process of its own, `python -m nightgate.worker JOB.json`, which `nightgate.supervisor` watches.

Every epoch is seeded from (seed, epoch): its order of rows and its dropout masks do not depend on what ran before, so
a resumed run needs no state of random generators and gives the numbers of an uninterrupted one, bit for bit on the
same CPU with the same number of threads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
import time
import warnings
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nightgate import base_models, checkpoints, devices
from nightgate.checkpoints import Checkpoint, RunState
from nightgate.config import Pipeline, Training
from nightgate.counts import confusion_counts, overall_scores
from nightgate.encoding import Encoded, encode
from nightgate.errors import DataError, ModelError, NonFiniteLossError
from nightgate.jobs import EpochReport, Phase, Progress, TrainJob, TrainResult
from nightgate.scoring import columns, logits_of, mean_cross_entropy, write_predictions

log = logging.getLogger(__name__)

LOSSES_PER_CHECK_ON_GPU = 10
"""Reading a loss waits for the GPU: losses are read, and checked, this many at a time."""

_BAD_FROM_THE_START = "check the base model: its very first loss is not finite, so its weights hold NaN or infinity"
_CALMER = "lower training.learning_rate, raise training.warmup_ratio, or set training.precision = 'fp32'"


class Listener(Protocol):
    def progress(self, progress: Progress) -> None: ...

    def epoch_done(self, report: EpochReport) -> None:
        """May wait until the report before was dealt with."""


def train(job: TrainJob, listener: Listener) -> TrainResult:
    """Train, or go on training, and report each epoch; epochs that were done before are reported again first.

    Raises:
        DataError: there are no training or no validation rows.
        ModelError: the base model cannot be found, loaded or used.
        NonFiniteLossError: NaN or infinity in a training or validation loss.
        StorageError: the disk is full or read-only; the last checkpoint is whole.
    """
    pipeline = Pipeline.model_validate(job.pipeline)
    picked = devices.pick(pipeline.training.precision)
    threads, why = devices.pick_threads()
    torch.set_num_threads(threads)
    log.info("%s; %s", picked.reason, why)
    listener.progress(Progress("load", epochs=pipeline.training.epochs, detail="looking for a checkpoint"))
    checkpoint = checkpoints.newest_checkpoint(job.run_dir, _recipe(job, pipeline))
    if checkpoint is not None:
        log.info("going on after epoch %d, from %s", checkpoint.state.epoch, checkpoint.path)
        if checkpoint.state.threads != threads:
            log.warning(
                "earlier epochs ran with %d threads, this attempt has %d: the last digits may differ",
                checkpoint.state.threads,
                threads,
            )
        for report in checkpoint.state.reports:
            listener.epoch_done(report)
    state = (
        checkpoint.state
        if checkpoint is not None and checkpoint.state.finished
        else _Run(job, pipeline, picked, threads, listener, checkpoint).to_the_end()
    )
    return TrainResult(
        best_epoch=state.best_epoch,
        best_model=job.run_dir / state.best_folder,
        epochs_run=state.epoch,
        stopped_early=state.reports[-1].stopped_early,
        resumed_from=checkpoint.state.epoch if checkpoint is not None else 0,
        device=devices.describe(picked.device),
        precision=picked.precision,
        precision_reason=picked.reason,
        threads=threads,
    )


def seed_epoch(seed: int, epoch: int) -> np.random.Generator:
    """Seed torch, numpy and random for an epoch (0: the new head) and return the generator of its row order."""
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    torch.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)
    return np.random.default_rng([seed, epoch])


def make_optimizer(model: nn.Module, recipe: Training) -> torch.optim.AdamW:
    """AdamW, fused; weight decay on all weights but biases and norms."""
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and "bias" not in name else plain).append(parameter)
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
        fused=True,
    )


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Training, total_steps: int, step: int = 0) -> Any:
    """The learning rate's schedule, as it stands after `step` steps."""
    from transformers import get_scheduler

    warmup = math.ceil(recipe.warmup_ratio * total_steps)
    shape = recipe.lr_scheduler_type
    name = "constant_with_warmup" if shape == "constant" and warmup else shape
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)
    if step:
        # Closed form: the rate depends on the step's number alone.
        scheduler.last_epoch = step - 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            scheduler.step()
    return scheduler


@dataclass
class _Losses:
    """Losses of an epoch, read in groups and refused when one is not finite."""

    epoch: int
    precision: str
    group: int
    total: float = 0.0
    examples: int = 0
    _unread: list[tuple[int, float, int, Tensor]] = field(default_factory=list)

    def add(self, step: int, rate: float, examples: int, loss: Tensor) -> None:
        self._unread.append((step, rate, examples, loss.detach()))
        if len(self._unread) >= self.group:
            self.read()

    def read(self) -> None:
        if not self._unread:
            return
        values = torch.stack([loss for *_, loss in self._unread]).tolist()
        for (step, rate, examples, _), value in zip(self._unread, values, strict=True):
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"the training loss is {value} in epoch {self.epoch}, step {step} "
                    f"(learning rate {rate:g}, {self.precision})",
                    next_step=_BAD_FROM_THE_START if step == 1 else _CALMER,
                )
            self.total += value * examples
            self.examples += examples
        self._unread.clear()

    @property
    def mean(self) -> float:
        return self.total / max(self.examples, 1)


class _Run:
    """One attempt: everything that lives from epoch to epoch."""

    def __init__(
        self,
        job: TrainJob,
        pipeline: Pipeline,
        picked: devices.Picked,
        threads: int,
        listener: Listener,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.job, self.pipeline, self.recipe = job, pipeline, pipeline.training
        self.picked, self.threads, self.listener = picked, threads, listener
        self.attempt_dir = job.attempt_dir
        self.evaluation_seconds = 0.0
        self._load_data()
        self._load_model(checkpoint)
        self.steps_per_epoch = math.ceil(len(self.train_labels) / self.recipe.batch_size)
        self.total_steps = self.steps_per_epoch * self.recipe.epochs
        self.state = (
            replace(checkpoint.state, threads=threads)
            if checkpoint is not None
            else RunState(_recipe(job, pipeline), 0, 0, 0, -1.0, "", 0, threads, False, ())
        )
        self.model = self.loaded.model.to(picked.device)
        self.optimizer = make_optimizer(self.model, self.recipe)
        if checkpoint is not None:
            checkpoints.restore(checkpoint, self.model, self.optimizer)
        self.scheduler = make_scheduler(self.optimizer, self.recipe, self.total_steps, self.state.step)
        self.scaler = torch.amp.GradScaler(picked.device.type, enabled=picked.dtype == torch.float16)
        if self.state.scaler:
            self.scaler.load_state_dict(self.state.scaler)

    def to_the_end(self) -> RunState:
        for epoch in range(self.state.epoch + 1, self.recipe.epochs + 1):
            self._one_epoch(epoch)
            if self.state.finished:
                break
        return self.state

    def _load_data(self) -> None:
        from nightgate.refresh import training_rows
        from nightgate.snapshots import open_snapshot

        self._say("load", detail="reading the snapshot")
        snapshot = open_snapshot(self.job.snapshot)
        data_until = datetime.fromisoformat(self.job.data_until)
        self.train_texts, self.train_labels = columns(training_rows(snapshot, self.pipeline, data_until))
        self.validation_texts, self.validation_labels = columns(snapshot.rows("validation", ["text", "label"]))
        for split, labels in (("training", self.train_labels), ("validation", self.validation_labels)):
            if not len(labels):
                raise DataError(
                    f"the snapshot {self.job.snapshot} holds no {split} rows",
                    next_step="give the source more rows, or look at split and data.train_window",
                )

    def _load_model(self, checkpoint: Checkpoint | None) -> None:
        recipe, names = self.recipe, self.pipeline.data.label_names

        def report(what: str, done: int, total: int) -> None:
            self._say("load", detail=what, done=done, total=total)

        if checkpoint is not None:
            # The run's own best model carries tokenizer, configuration and head: the hub is not needed again.
            folder = checkpoint.best_model(self.job.run_dir)
            named, dropout = "the checkpoint's model", None
        elif self.job.start_from is not None:
            folder, named = self.job.start_from, "the champion to start from"
            dropout = None if recipe.dropout == "model" else recipe.dropout
            self._check_champion_labels(folder)
        else:
            self._say("load", detail=f"finding {recipe.base_model}")
            folder = base_models.resolve(recipe.base_model, recipe.base_model_revision, report)
            named, dropout = f"base_model {recipe.base_model!r}", None if recipe.dropout == "model" else recipe.dropout
        self._say("load", detail="loading the model")
        seed_epoch(recipe.seed, 0)
        self.loaded = base_models.load_classifier(
            folder, names, named=named, max_length=recipe.max_length, dropout=dropout
        )
        log.info("%s: %s, texts cut at %d tokens", named, type(self.loaded.model).__name__, self.loaded.max_length)
        self.train_rows = self._encode(self.train_texts)
        self.validation_rows = self._encode(self.validation_texts)

    def _check_champion_labels(self, folder: Path) -> None:
        own, wanted = base_models.labels_in(folder), list(self.pipeline.data.label_names)
        if own != wanted:
            raise ModelError(
                f"the champion in {folder} knows the labels {own}, the pipeline has {wanted}",
                next_step="set training.start_from = 'base' for the night in which labels change",
            )

    def _encode(self, texts: list[str]) -> Encoded:
        return encode(
            self.loaded.tokenizer,
            texts,
            self.loaded.max_length,
            lambda done, total: self._say("load", detail="tokenising", done=done, total=total),
        )

    def _one_epoch(self, epoch: int) -> None:
        losses, seconds, rate = self._train_epoch(epoch)
        step = self.state.step + self.steps_per_epoch
        logits = self._evaluate(epoch, step, losses.mean)
        validation_loss = mean_cross_entropy(logits, self.validation_labels)
        if not math.isfinite(validation_loss):
            raise NonFiniteLossError(
                f"the validation loss is {validation_loss} after epoch {epoch}, step {step} "
                f"(learning rate {rate:g}, {self.picked.precision})",
                next_step=_CALMER,
            )
        self._say("save", epoch=epoch, step=step, loss=losses.mean, detail="writing predictions")
        predictions = write_predictions(
            self.attempt_dir / "epochs" / f"epoch-{epoch:04d}.npz", logits, self.validation_labels
        )
        counts = confusion_counts(
            self.validation_labels, logits.argmax(axis=1).astype(np.int64), len(self.pipeline.data.label_names)
        )
        f1 = overall_scores(counts).f1(self.pipeline.gate.average)
        assert f1 is not None
        # Strictly better: of equal epochs the first one stays.
        is_best = f1 > self.state.best_f1
        without_better = 0 if is_best else self.state.epochs_without_better + 1
        patience = self.recipe.early_stopping_patience
        stopped_early = 0 < patience <= without_better and epoch < self.recipe.epochs
        if is_best:
            self._say("save", epoch=epoch, step=step, loss=losses.mean, detail="writing the best model")
            best = checkpoints.epoch_folder(self.attempt_dir / "best", epoch)
            checkpoints.write_folder(best, lambda folder: base_models.save_model(self.loaded, folder))
            best_folder = best.relative_to(self.job.run_dir).as_posix()
            self.state = replace(self.state, best_epoch=epoch, best_f1=f1, best_folder=best_folder)
        report = EpochReport(
            attempt=self.job.attempt,
            epoch=epoch,
            step=step,
            training_loss=losses.mean,
            validation_loss=validation_loss,
            learning_rate=rate,
            examples_per_second=losses.examples / max(seconds, 1e-9),
            predictions=predictions,
            precision=self.picked.precision,
            device=devices.describe(self.picked.device),
            is_best=is_best,
            stopped_early=stopped_early,
        )
        finished = stopped_early or epoch == self.recipe.epochs
        self.state = replace(
            self.state,
            epoch=epoch,
            step=step,
            epochs_without_better=without_better,
            finished=finished,
            reports=(*self.state.reports, report),
            scaler=self.scaler.state_dict(),
        )
        self._say("save", epoch=epoch, step=step, loss=losses.mean, detail="writing the checkpoint")
        model, optimizer = (None, None) if finished else (self.model, self.optimizer)
        checkpoints.save_checkpoint(self.job.run_dir, self.attempt_dir, self.state, model, optimizer)
        self.listener.epoch_done(report)

    def _train_epoch(self, epoch: int) -> tuple[_Losses, float, float]:
        """The epoch's losses, its seconds, and the learning rate of its last step."""
        on_cpu = self.picked.device.type == "cpu"
        losses = _Losses(epoch, self.picked.precision, 1 if on_cpu else LOSSES_PER_CHECK_ON_GPU)
        order = seed_epoch(self.recipe.seed, epoch).permutation(len(self.train_labels))
        size = self.recipe.batch_size
        began = time.monotonic()
        rate = self.recipe.learning_rate
        self.model.train()
        for number in range(self.steps_per_epoch):
            rows = order[number * size : (number + 1) * size]
            rate = float(self.scheduler.get_last_lr()[0])
            losses.add(self.state.step + number + 1, rate, len(rows), self._step(rows))
            step_seconds = (time.monotonic() - began) / (number + 1)
            self._say(
                "train",
                epoch=epoch,
                step=self.state.step + number + 1,
                loss=losses.mean if losses.examples else None,
                examples_per_second=(number * size + len(rows)) / max(time.monotonic() - began, 1e-9),
                step_seconds=step_seconds,
                eta_seconds=self._seconds_left(epoch, number + 1, step_seconds),
            )
        losses.read()
        return losses, time.monotonic() - began, rate

    def _step(self, rows: NDArray[np.int64]) -> Tensor:
        device = self.picked.device
        inputs = {name: values.to(device, non_blocking=True) for name, values in self.train_rows.batch(rows).items()}
        labels = torch.from_numpy(self.train_labels[rows]).to(device, non_blocking=True)
        with torch.autocast(device.type, self.picked.dtype, enabled=self.picked.dtype != torch.float32):
            logits = self.model(**inputs).logits
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.recipe.max_grad_norm > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        # Under fp16 the scaler skips a step whose gradients overflowed and lowers its scale: no error.
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with warnings.catch_warnings():
            # When the very first step is skipped, torch takes this for a wrong order of calls.
            warnings.simplefilter("ignore", UserWarning)
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _evaluate(self, epoch: int, step: int, loss: float) -> NDArray[np.float32]:
        began = time.monotonic()

        def on_batch(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - began, 1e-9)
            self._say(
                "evaluate",
                epoch=epoch,
                step=step,
                loss=loss,
                examples_per_second=rate,
                eta_seconds=(total - done) / rate,
                step_seconds=self.recipe.eval_batch_size / rate,
                done=done,
                total=total,
            )

        logits = logits_of(
            self.model,
            self.validation_rows,
            batch_size=self.recipe.eval_batch_size,
            device=self.picked.device,
            on_batch=on_batch,
        )
        self.evaluation_seconds = time.monotonic() - began
        return logits

    def _seconds_left(self, epoch: int, steps_done: int, step_seconds: float) -> float:
        # A forward pass is about a third of a step; before the first evaluation that is the best guess.
        guess = step_seconds / 3 * len(self.validation_labels) / self.recipe.batch_size
        epochs_left = self.recipe.epochs - epoch
        steps_left = self.steps_per_epoch - steps_done + epochs_left * self.steps_per_epoch
        return steps_left * step_seconds + (epochs_left + 1) * (self.evaluation_seconds or guess)

    def _say(self, phase: Phase, **facts: Any) -> None:
        total_steps = getattr(self, "total_steps", 0)
        self.listener.progress(Progress(phase, epochs=self.recipe.epochs, total_steps=total_steps, **facts))


def _recipe(job: TrainJob, pipeline: Pipeline) -> str:
    """What shapes the numbers of a run: checkpoints are only resumed under the same."""
    facts = [pipeline.config_hash, job.snapshot.name, job.data_until, job.start_from.name if job.start_from else ""]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
