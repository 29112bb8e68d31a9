"""Fine-tuning: a plain PyTorch loop that can be killed at any moment and resumes after its last saved epoch.

Every epoch is seeded from (seed, epoch): its order of rows and its dropout masks do not depend on what ran before. So
a resumed run needs no state of random generators and gives the numbers of an uninterrupted one, bit for bit on the
same CPU with the same number of threads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import statistics
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from nightgate.config.pipeline import Pipeline
from nightgate.cpu_threads import pick_threads
from nightgate.engine import cuda_graphs, devices
from nightgate.engine.distributed import World
from nightgate.engine.step import Engine, Wins
from nightgate.errors import NonFiniteLossError
from nightgate.training import checkpoints
from nightgate.training.checkpoints import Checkpoint, RunState
from nightgate.training.continued import continued_recipe, write_learnt
from nightgate.training.epoch_metrics import EpochMetrics
from nightgate.training.inputs import prepare, seed_epoch
from nightgate.training.losses import STABILISE, Losses
from nightgate.training.protocol import EpochReport, Phase, Progress, TrainJob, TrainResult
from nightgate.training.scoring import mean_cross_entropy, write_predictions

log = logging.getLogger(__name__)

LOSSES_PER_CHECK_ON_GPU = 10
"""Reading a loss waits for the GPU: losses are read, and checked, this many at a time."""

STEPS_IN_MEDIAN = 50


class Listener(Protocol):
    """Receiver of a training's progress and epochs."""

    def progress(self, progress: Progress) -> None: ...

    def epoch_done(self, report: EpochReport) -> None:
        """Called from the thread that saves; may wait until the previous report was recorded."""


def train(job: TrainJob, listener: Listener, world: World | None = None) -> TrainResult:
    """Train, or resume training, and report each epoch; epochs of earlier attempts are reported again first.

    Each process of `world` calls this; rank 0 reports and writes.

    Raises:
        DataError: there are no training or no validation rows.
        ModelError: the base model cannot be found, loaded or used.
        NonFiniteLossError: NaN or infinity in a training or validation loss.
        StorageError: the disk is full or read-only; the last checkpoint is whole.
    """
    pipeline = Pipeline.model_validate(job.pipeline)
    if job.start_from is not None:
        pipeline = pipeline.model_copy(update={"training": continued_recipe(pipeline.training)})
    threads, why = pick_threads()
    torch.set_num_threads(threads)
    listener.progress(Progress("load", epochs=pipeline.training.epochs, detail="looking for a checkpoint"))
    checkpoint = checkpoints.newest_checkpoint(job.run_dir, _recipe(job, pipeline))
    if checkpoint is not None and checkpoint.state.finished:
        log.info("all epochs are done, see %s", checkpoint.path)
        for report in checkpoint.state.reports:
            listener.epoch_done(report)
        return _result(job, checkpoint.state, resumed_from=checkpoint.state.epoch)
    run = _Run(job, pipeline, (threads, why), listener, checkpoint, world or World())
    return _result(job, run.train(), resumed_from=run.resumed_from)


def _result(job: TrainJob, state: RunState, *, resumed_from: int) -> TrainResult:
    return TrainResult(
        best_epoch=state.best_epoch,
        best_model=job.run_dir / state.best_folder,
        epochs_run=state.epoch,
        stopped_early=state.reports[-1].stopped_early,
        resumed_from=resumed_from,
        device=state.reports[-1].device,
        precision=state.reports[-1].precision,
        precision_reason=state.precision_reason,
        threads=state.threads,
        engine=state.engine,
        engine_reason=state.engine_reason,
        micro_batches=state.micro_batches,
        rows_trained=state.rows_trained,
    )


class _Run:
    """One attempt: the engine, the rows, and the state after the last epoch."""

    def __init__(
        self,
        job: TrainJob,
        pipeline: Pipeline,
        threads: tuple[int, str],
        listener: Listener,
        checkpoint: Checkpoint | None,
        world: World,
    ) -> None:
        self.job, self.pipeline, self.recipe = job, pipeline, pipeline.training
        self.listener, self.world = listener, world
        self.attempt_dir = job.attempt_dir
        own_metrics = () if world.rank else self.recipe.metrics
        self.metrics = EpochMetrics(len(pipeline.data.label_names), self.attempt_dir / checkpoints.METRICS, own_metrics)
        self.evaluation_seconds = 0.0
        self.step_seconds: deque[float] = deque(maxlen=STEPS_IN_MEDIAN)
        self.total_steps = 0
        self.rows = rows = prepare(job, pipeline, self._report)
        self.steps_per_epoch = math.ceil(len(rows.train_labels) / self.recipe.batch_size)
        self.total_steps = self.steps_per_epoch * self.recipe.epochs
        picked, weights = devices.pick(self.recipe.precision), rows.class_weights
        wins, encoded = Wins(graphs=cuda_graphs.are_wanted(picked.device)), (rows.train, rows.validation)
        self.engine = Engine(
            rows.loaded, self.recipe, picked, self.total_steps, *encoded, wins=wins, world=world, class_weights=weights
        )
        self.picked = self.engine.picked
        self.engine_reason = f"{self.engine.reason}; {threads[1]}"
        log.info("training in %s", self.picked.reason)
        log.debug("%s", self.engine_reason)
        self.state = RunState(
            recipe=_recipe(job, pipeline),
            epoch=0,
            step=0,
            best_epoch=0,
            best_f1=-1.0,
            best_weights="",
            epochs_without_better=0,
            threads=threads[0],
            finished=False,
            reports=(),
            engine=self.engine.kind,
            engine_reason=self.engine_reason,
            precision_reason=self.picked.reason,
            base_digest=self.engine.digest(),
            rows_trained=len(rows.train_labels),
        )
        self.resumed_from = 0
        if checkpoint is not None:
            self._resume(checkpoint)

    def train(self) -> RunState:
        with checkpoints.Saver() as saver:
            for epoch in range(self.state.epoch + 1, self.recipe.epochs + 1):
                self._run_epoch(epoch, saver)
                if self.state.finished:
                    break
        return self.state

    def _resume(self, checkpoint: Checkpoint) -> None:
        then, now = checkpoint.state, self.state
        if then.base_digest != now.base_digest:
            log.warning("starting anew: the base model or its vocabulary is not that of %s", checkpoint.path)
            return
        log.info("resuming after epoch %d, from %s", then.epoch, checkpoint.path)
        for what, before, after in (
            ("threads", then.threads, now.threads),
            ("engine", then.engine, now.engine),
            ("precision", then.reports[-1].precision, self.picked.precision),
        ):
            if before != after:
                log.warning("%s: earlier epochs had %s, this attempt has %s; digits may differ", what, before, after)
        self.engine.restore(checkpoint.weights(self.job.run_dir), checkpoint.moments(), then.step)
        self.engine.micro_batches = then.micro_batches
        if then.scaler:
            self.engine.scaler.load_state_dict(then.scaler)
        own = {name: getattr(now, name) for name in ("threads", "engine", "engine_reason", "precision_reason")}
        self.state = replace(then, **own)
        self.resumed_from = then.epoch
        for report in then.reports:
            self.listener.epoch_done(report)

    def _run_epoch(self, epoch: int, saver: checkpoints.Saver) -> None:
        losses, seconds, rate = self._train_epoch(epoch, saver)
        step = self.state.step + self.steps_per_epoch
        logits = self._evaluate(epoch, step, losses.mean)
        self._report("save", epoch=epoch, step=step, loss=losses.mean, detail="writing predictions")
        # Never more than one epoch ahead of the rows in SQL: an epoch is reported when it is saved.
        saver.wait()
        report = self._epoch_report(epoch, step, losses, seconds, rate, logits)
        weights = checkpoints.weights_path(self.attempt_dir, epoch).relative_to(self.job.run_dir).as_posix()
        state = replace(
            self.state,
            epoch=epoch,
            step=step,
            epochs_without_better=0 if report.is_best else self.state.epochs_without_better + 1,
            micro_batches=self.engine.micro_batches,
            reports=(*self.state.reports, report),
            scaler=self.engine.scaler.state_dict(),
            weights=weights,
        )
        if report.is_best:
            state = replace(state, best_epoch=epoch, best_f1=self._f1(report), best_weights=weights)
        self._report("save", epoch=epoch, step=step, loss=losses.mean, detail="writing the checkpoint")
        if report.stopped_early or epoch == self.recipe.epochs:
            self._finish(state, saver)
            self.listener.epoch_done(report)
            return
        self.state = state
        if self.world.rank:
            return
        tensors = checkpoints.snapshot(self.engine.weights()), checkpoints.snapshot(self.engine.moments())

        def save() -> None:
            checkpoints.save_epoch(self.job.run_dir, self.attempt_dir, state, *tensors)
            self.listener.epoch_done(report)

        saver.submit(save)

    def _epoch_report(
        self, epoch: int, step: int, losses: Losses, seconds: float, rate: float, logits: NDArray[np.float32]
    ) -> EpochReport:
        """Score the epoch on validation rows and write their logits."""
        labels = self.rows.validation_labels
        validation_loss = mean_cross_entropy(logits, labels)
        if not math.isfinite(validation_loss):
            raise NonFiniteLossError(
                f"the validation loss is {validation_loss} after epoch {epoch}, step {step} "
                f"(learning rate {rate:g}, {self.picked.precision})",
                next_step=STABILISE,
            )
        predictions = self.attempt_dir / "epochs" / f"epoch-{epoch:04d}.npz"
        if self.world.rank == 0:
            write_predictions(predictions, logits, labels)
        predicted = logits.argmax(axis=1).astype(np.int64)
        report = EpochReport(
            attempt=self.job.attempt,
            epoch=epoch,
            step=step,
            training_loss=losses.mean,
            validation_loss=validation_loss,
            learning_rate=rate,
            examples_per_second=losses.examples / max(seconds, 1e-9),
            tokens_per_second=len(self.rows.train.ids) / max(seconds, 1e-9),
            predictions=predictions,
            scores=self.metrics.scores(labels, predicted),
            precision=self.picked.precision,
            device=devices.describe(self.picked.device),
            engine=self.engine.kind,
            engine_reason=self.engine_reason,
            is_best=False,
            stopped_early=False,
            metrics=self.metrics.own(labels, predicted),
        )
        # Strictly better: of equal epochs the first one stays.
        if self._f1(report) > self.state.best_f1:
            return replace(report, is_best=True)
        patience = self.recipe.early_stopping_patience
        stopped_early = 0 < patience <= self.state.epochs_without_better + 1 and epoch < self.recipe.epochs
        return replace(report, stopped_early=stopped_early)

    def _f1(self, report: EpochReport) -> float:
        f1 = report.scores.f1(self.pipeline.gate.average)
        assert f1 is not None
        return f1

    def _finish(self, state: RunState, saver: checkpoints.Saver) -> None:
        saver.close()
        if self.world.rank:
            self.state = replace(state, finished=True)
            return
        if state.best_epoch != state.epoch:
            best = self.job.run_dir / state.best_weights
            self.engine.load_weights(checkpoints.load_tensors(best, state.hashes[state.best_weights]))
        best_step = state.best_epoch * self.steps_per_epoch

        def export(folder: Path) -> None:
            self.engine.export(folder, best_step)
            write_learnt(folder, self.rows.learnt)

        self.state = checkpoints.save_finished(self.job.run_dir, self.attempt_dir, state, export).state
        shutil.rmtree(self.attempt_dir / checkpoints.METRICS, ignore_errors=True)

    def _train_epoch(self, epoch: int, saver: checkpoints.Saver) -> tuple[Losses, float, float]:
        """Train one epoch; returns its losses, its seconds, and the learning rate of its last step."""
        on_cpu = self.picked.device.type == "cpu"
        losses = Losses(epoch, self.picked.precision, 1 if on_cpu else LOSSES_PER_CHECK_ON_GPU)
        order = seed_epoch(self.recipe.seed, epoch, self.world.rank).permutation(len(self.rows.train_labels))
        self.engine.seed(self.recipe.seed, epoch, self.world.rank)
        size, lengths = self.recipe.batch_size, self.rows.train.lengths
        examples = tokens = 0
        skipped = self.engine.skipped_steps
        rate = self.recipe.learning_rate
        began = last = time.monotonic()
        for number in range(1, self.steps_per_epoch + 1):
            rows = order[(number - 1) * size : number * size]
            step = self.state.step + number
            rate = self.engine.rate(step)
            losses.add(step, rate, len(rows), self.engine.step(rows, self.rows.train_labels[rows]))
            saver.check()
            examples += len(rows)
            tokens += int(lengths[rows].sum())
            now = time.monotonic()
            self.step_seconds.append(now - last)
            last, elapsed = now, max(now - began, 1e-9)
            self._report(
                "train",
                epoch=epoch,
                step=step,
                loss=losses.mean if losses.examples else None,
                examples_per_second=examples / elapsed,
                tokens_per_second=tokens / elapsed,
                step_seconds=statistics.median(self.step_seconds),
                eta_seconds=self._seconds_left(epoch, number, elapsed / number),
            )
        losses.read()
        self._check_skipped(epoch, self.engine.skipped_steps - skipped)
        return losses, time.monotonic() - began, rate

    def _check_skipped(self, epoch: int, skipped: int) -> None:
        if skipped == self.steps_per_epoch:
            raise NonFiniteLossError(
                f"the gradients of all {skipped} steps of epoch {epoch} overflowed in fp16: nothing was learned",
                next_step="set training.precision = 'bf16' or 'fp32'",
            )
        if skipped:
            log.info("epoch %d: %d steps were skipped because their gradients overflowed in fp16", epoch, skipped)

    def _evaluate(self, epoch: int, step: int, loss: float) -> NDArray[np.float32]:
        began = time.monotonic()
        # A batch here may hold many times the rows of a step, and counts as a stall by the time that it is expected to
        # take: per row no more than a step, which goes backwards too.
        rows = min(self.recipe.eval_batch_size, len(self.rows.validation_labels))
        expected = statistics.median(self.step_seconds) * rows / self.recipe.batch_size
        self._report("evaluate", epoch=epoch, step=step, loss=loss, step_seconds=expected)

        def on_batch(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - began, 1e-9)
            self._report(
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

        logits = self.engine.logits(self.rows.validation, batch_size=self.recipe.eval_batch_size, on_batch=on_batch)
        self.evaluation_seconds = time.monotonic() - began
        return logits

    def _seconds_left(self, epoch: int, steps_done: int, step_seconds: float) -> float:
        # Before the first evaluation: a forward pass takes about a third of a step.
        guess = step_seconds / 3 * len(self.rows.validation_labels) / self.recipe.batch_size
        epochs_left = self.recipe.epochs - epoch
        steps_left = self.steps_per_epoch - steps_done + epochs_left * self.steps_per_epoch
        return steps_left * step_seconds + (epochs_left + 1) * (self.evaluation_seconds or guess)

    def _report(self, phase: Phase, **facts: Any) -> None:
        self.listener.progress(Progress(phase, epochs=self.recipe.epochs, total_steps=self.total_steps, **facts))


def _recipe(job: TrainJob, pipeline: Pipeline) -> str:
    """Hash of configuration, snapshot and start model: a checkpoint is resumed only under the same hash."""
    facts = [pipeline.config_hash, job.snapshot.name, job.data_until, job.start_from.name if job.start_from else ""]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
