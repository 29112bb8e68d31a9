"""Messages between a night's process and its training process: a job file one way, JSON lines back.

Does not import torch, which the night's process does not need.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, TypeAdapter

from nightgate.durable_files import write_whole
from nightgate.metrics.confusion import Scores

Phase = Literal["load", "train", "evaluate", "save"]


class _Message:
    """Conversion of the dataclasses below to and from JSON; unknown keys are an error."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json")
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        return TypeAdapter(cls).validate_python(record)


@dataclass(frozen=True)
class TrainJob(_Message):
    """One attempt at fine-tuning."""

    run_dir: Path
    """`home/runs/<run_id>`; the attempt owns `attempt-<n>/` below it."""
    attempt: int
    snapshot: Path
    pipeline: dict[str, Any]
    """`Pipeline.record()`."""
    data_until: str
    """ISO time with an offset, from which `train_window` counts back."""
    start_from: Path | None = None
    """Folder of the version to go on from, on rows that its line has not learnt and a replay of others; None trains in
    full from `training.base_model`."""

    @property
    def attempt_dir(self) -> Path:
        return self.run_dir / f"attempt-{self.attempt}"


@dataclass(frozen=True)
class ScoreJob(_Message):
    """Scoring of several models on the same rows."""

    pipeline: dict[str, Any]
    snapshot: Path
    models: dict[str, Path]
    """Name to model folder: {"candidate": ..., "champion": ..., "anchor": ...}."""
    out: Path
    """Folder for `<name>.npz` of every model, `score.json` and `score.log`."""
    split: str = "test"
    places: dict[str, list[int]] | None = None
    """In place of a whole split: rows of each split, as `Snapshot.rows` takes them, one split after the other."""
    golden: Path | None = None
    """Folder of golden rows (`nightgate.data.golden_rows`), scored to `<name>.golden.npz`."""
    serve: int = 0
    """Number of the first golden rows, or else of the first rows, whose logits in fp32 are written to
    `<name>.serve.npz`: a fresh process with plain transformers computes in fp32."""


@dataclass(frozen=True)
class MetricValue(_Message):
    """A number of one of the pipeline's own metrics."""

    metric: str
    """Its name, or `name.key` of a metric with several numbers."""
    value: float | None
    reason: str = ""
    """Why there is no value: 'nan', 'inf', '-inf', or the error of the metric."""


@dataclass(frozen=True)
class PredictJob(_Message):
    """Predictions of a version for texts that the parent hands over, a window at a time."""

    version: Path
    """Its folder."""
    out: Path
    """Folder for `TEXTS`, `PROBABILITIES`, `predict.json` and `predict.log`."""
    batch_size: int
    """In longest texts, as in `nightgate.engine.forward`."""
    texts: int
    """Most texts that will be handed over."""


TEXTS, PROBABILITIES = "texts.json", "probabilities.npz"
"""A window's normalised texts; float64 [texts, labels] in the order of the manifest's labels, and their precision."""

Job = TrainJob | ScoreJob | PredictJob
JOBS: dict[str, type[Job]] = {"train": TrainJob, "score": ScoreJob, "predict": PredictJob}


@dataclass(frozen=True)
class EpochReport(_Message):
    """One epoch, trained and scored on validation."""

    attempt: int
    """The attempt that trained it; a resumed attempt repeats the reports of earlier epochs."""
    epoch: int
    """From 1."""
    step: int
    """Optimiser steps since the start of the run."""
    training_loss: float
    """Mean over the epoch's examples, with label smoothing and class weights."""
    validation_loss: float
    """Mean cross-entropy over the validation rows, without either."""
    learning_rate: float
    """At the epoch's last step."""
    examples_per_second: float
    """In training, without evaluation and saving."""
    tokens_per_second: float
    """In training, without padding."""
    predictions: Path
    """npz: `logits` float32 [rows, labels] and `labels` int64 [rows], in the order of `snapshot.rows("validation")`."""
    scores: Scores
    """On the validation rows."""
    precision: str
    device: str
    engine: str
    """'packed' or 'padded'."""
    engine_reason: str
    """Reasons for packing, vocabulary and threads."""
    is_best: bool
    """Better validation F1 than every epoch before."""
    stopped_early: bool
    """Early stopping ended the run here."""
    metrics: tuple[MetricValue, ...] = ()
    """Of `training.metrics`, on the validation rows."""


@dataclass(frozen=True)
class TrainResult(_Message):
    """Result of a `TrainJob`."""

    best_epoch: int
    best_model: Path
    """A stock Hugging Face folder: model.safetensors, config.json with label names, tokenizer."""
    epochs_run: int
    stopped_early: bool
    resumed_from: int
    """The last epoch before the attempt resumed; 0 when it started anew."""
    device: str
    precision: str
    precision_reason: str
    threads: int
    engine: str
    """'packed' or 'padded': how texts were laid out in memory."""
    engine_reason: str
    micro_batches: int
    """Parts in which a batch was computed for lack of memory; 1 when it fitted whole. The step is the same."""
    rows_trained: int | None = None
    """Rows of one epoch; None in a checkpoint of an earlier release."""


@dataclass(frozen=True)
class ScoreResult(_Message):
    """Result of a `ScoreJob`, by the name of the model."""

    written: dict[str, Path]
    """npz: `logits` float32 [rows, labels] and `labels` int64 [rows], in the order of `snapshot.rows(job.split)`,
    or of `job.places`. Logits that are not finite are written as they are: the gate judges them."""
    golden: dict[str, Path]
    """npz of the golden rows, in their order; empty without golden rows."""
    max_length: dict[str, int]
    """Tokens at which texts were cut."""
    precision: str
    """'bf16', 'fp16' or 'fp32', the same for all models."""
    serve: dict[str, Path]
    """npz of the first `job.serve` rows in fp32; empty if that is 0."""
    metrics: tuple[MetricValue, ...] = ()
    """Of `training.metrics`, of the candidate on all rows of the split."""


@dataclass(frozen=True)
class Progress(_Message):
    """Progress of training or scoring, sent about once a second."""

    phase: Phase
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    """Optimiser steps since the start of the run."""
    total_steps: int = 0
    loss: float | None = None
    """Mean over the epoch's examples so far."""
    examples_per_second: float | None = None
    tokens_per_second: float | None = None
    """Without padding."""
    eta_seconds: float | None = None
    """Until the end of the training, or of the scoring of this model."""
    step_seconds: float | None = None
    """Median time of recent steps, or mean time of a batch."""
    detail: str = ""
    """The current work, such as `tokenising`."""
    done: int = 0
    total: int = 0
    """Rows (or bytes) of the current work, where it is measured."""


def kind_of(job: Job) -> str:
    """`train`, `score` or `predict`."""
    return next(kind for kind, job_type in JOBS.items() if isinstance(job, job_type))


def write_job(job: Job, path: Path) -> Path:
    """Write the job file that `python -m nightgate.training.worker` reads.

    Raises:
        StorageError: the disk is full or read-only.
    """
    write_whole(path, json.dumps({"kind": kind_of(job), **job.to_json()}, indent=1).encode())
    return path


def read_job(path: Path) -> Job:
    record = json.loads(path.read_text(encoding="utf-8"))
    return JOBS[record.pop("kind")].from_json(record)
