"""Frozen pydantic models of a pipeline file, with a description and bounds for every field.

The same models check the file, `--set` and the Prefect form, and are the stored record. `nightgate.pipeline_files`
finds and reads the files.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nightgate.check_config import DataChecks
from nightgate.config_types import (
    Column,
    Cron,
    Duration,
    Label,
    Section,
    Size,
    TimeFormat,
    Timezone,
    label_name,
    labels_by_value,
)
from nightgate.cron import instants
from nightgate.gate_config import Gate
from nightgate.source_config import HubSource, SampleSource, Source, SqlSource


class Data(Section):
    """Where rows come from and what their columns mean."""

    source: Source
    """Where rows come from."""
    id: Column | None = None
    """Column of the row's id. Default: the fingerprint of the normalised text."""
    text: Column | Annotated[tuple[Column, ...], Field(min_length=1)] = "text"
    """Column of the text, or several to join with line breaks."""
    label: Column = "label"
    """Column of the label."""
    labels: Annotated[tuple[Label, ...], Field(min_length=2)] | Annotated[dict[str, Label], Field(min_length=2)]
    """Labels in order, or a table from source values to labels. Rows with other values are quarantined."""
    time: Column | None = None
    """Column of the row's time: a night reads rows from before its `data_until`."""
    time_format: TimeFormat = ""
    """Format of times as `strptime` has it, such as '%d-%m-%Y %H:%M', or 'epoch_s' or 'epoch_ms' for seconds or
    milliseconds since 1970. '': ISO 8601."""
    timezone: Timezone = "UTC"
    """Timezone of times without one."""
    updated: Column | Literal[""] = ""
    """Column with the time of the row's last change: the newest version of an id holds."""
    deleted: Column | Literal[""] = ""
    """Column that marks deleted rows: true, a number but 0, or a time."""
    lag: Duration = "2d"
    """How far behind the newest row that was read a night looks again for rows that were written late; `sql` only."""
    sweep: int = Field(default=1, ge=0, le=10_000)
    """Every how many nights the whole table is read again, for edits and deletions that no column tells; `sql` only.
    0: never."""
    slices: tuple[Column, ...] = ()
    """Columns by whose values metrics are broken down."""
    group: Column | None = None
    """Column whose equal values stay on one side of the split; intervals resample these groups."""
    near_duplicates: bool = True
    """Whether near-copies of a text, in other case or punctuation or with a few words changed, share its split."""
    conflicts: Literal["majority", "newest", "drop"] = "majority"
    """Which label a text has that rows give several: the one of most rows (of equally many that of the newest row),
    the one of the newest row, or none, which leaves the text out."""
    train_window: Duration = ""
    """Rows older than this before the night are not trained on, such as '365d'; '' for all."""
    golden: str = ""
    """File with the source's columns: rows that every candidate should get right. '': test rows of the first night."""
    golden_rows: int = Field(default=500, ge=64, le=100_000)
    """The most golden rows that are frozen, or read from the file."""
    checks: DataChecks = DataChecks()
    """What ends a night before training because its data look broken."""

    @property
    def text_columns(self) -> tuple[str, ...]:
        return (self.text,) if isinstance(self.text, str) else self.text

    @property
    def has_times(self) -> bool:
        """Whether a night leaves out rows of after its `data_until`; else it sees them as they are when it runs."""
        return self.time is not None or isinstance(self.source, SampleSource)

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """The labels in order; the model's class k is `label_names[k]`."""
        values = self.labels.values() if isinstance(self.labels, dict) else self.labels
        return tuple(dict.fromkeys(map(label_name, values)))

    @cached_property
    def label_index(self) -> dict[str, int]:
        """Class index by canonical source value."""
        return {value: self.label_names.index(label) for value, label in labels_by_value(self.labels).items()}

    @model_validator(mode="after")
    def _labels_make_sense(self) -> Data:
        if len(self.label_index) != len(self.labels):
            raise ValueError(f"labels: {[label_name(label) for label in self.labels]} names a label twice")
        if any(not name for name in self.label_names):
            raise ValueError("labels: a label is blank")
        if len(self.label_names) < 2:
            raise ValueError(f"labels: only one label ({self.label_names[0]!r}); a classifier needs at least two")
        if self.train_window and not self.time:
            raise ValueError("train_window needs `time`: name the column that holds each row's time")
        if (self.updated or self.deleted) and not self.id:
            raise ValueError("updated and deleted need `id`: name the column by which a row is found again")
        self._check_marks()
        if "label" in self.slices:
            raise ValueError("slices: 'label' is taken, classes are reported as slices of that name already")
        return self

    def _check_marks(self) -> None:
        """Refuse `lag` and `sweep` where they would do nothing."""
        sql = isinstance(self.source, SqlSource)
        for name in ("lag", "sweep"):
            if not sql and getattr(self, name) != Data.model_fields[name].default:
                raise ValueError(f"{name} is for sources of kind 'sql'; files and data sets are compared as a whole")
        if self.sweep != 1 and self.updated and self.deleted:
            raise ValueError("sweep: `updated` and `deleted` tell every change already; remove it")
        if self.sweep != 1 and not (self.updated or self.time):
            raise ValueError("sweep needs `updated` or `time`: without them only a whole read shows what is new")


class Split(Section):
    """How rows are divided: by hash of the text at first; a split once given stays, whatever is edited or arrives."""

    validation: float = Field(default=0.1, gt=0, le=0.5)
    """Share of rows on which the best epoch is chosen."""
    test: float = Field(default=0.1, gt=0, le=0.5)
    """Share of rows on which the gate decides."""
    seed: int = Field(default=42, ge=0, le=2**32 - 1)
    """Changing the split makes a new test version."""
    column: Column | None = None
    """Column with the source's own split (train, validation or test) instead of the hash."""


class Training(Section):
    """How the model is fine-tuned. The defaults are the published recipe."""

    base_model: str = Field(default="microsoft/Multilingual-MiniLM-L12-H384", min_length=1)
    """Hub name, folder, or `package:NAME/FOLDER` inside an installed Python package."""
    base_model_revision: str = ""
    """Branch, tag or commit of the base model on the hub."""
    epochs: int = Field(default=5, ge=1, le=1000)
    """Passes over the training rows."""
    learning_rate: float = Field(default=5e-5, gt=0, le=1)
    """Peak learning rate of AdamW."""
    batch_size: int = Field(default=16, ge=1, le=65_536)
    """Examples in one optimiser step, on any hardware."""
    eval_batch_size: int = Field(default=16, ge=1, le=65_536)
    """Examples in one evaluation batch."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """AdamW's decay, on all weights but biases and layer norms."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's first moment decay."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's second moment decay."""
    adam_epsilon: float = Field(default=1e-8, gt=0, le=1)
    """AdamW's denominator floor."""
    max_grad_norm: float = Field(default=1.0, ge=0, le=1e6)
    """Gradients are clipped to this norm; 0: not clipped."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate after the warm-up."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from 0."""
    max_length: int = Field(default=128, ge=2, le=8192)
    """Texts are cut at this many tokens, special ones included."""
    dropout: Literal["model"] | Annotated[float, Field(ge=0, lt=1)] = "model"
    """Dropout of the hidden layers, the attention and the head; 'model' keeps the base model's own."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes."""
    early_stopping_patience: int = Field(default=0, ge=0, le=1000)
    """Epochs without a better validation F1 before training stops; 0: never."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """'auto': bf16 or fp16 with loss scaling on a GPU, fp32 on a CPU; the reason is logged."""
    seed: int = Field(default=42, ge=0, le=2**32 - 1)
    """Seed of the new head, the order of rows and dropout."""
    start_from: Literal["base", "champion"] = "base"
    """Start from the base model, or continue from the champion."""
    max_train_rows: int = Field(default=0, ge=0)
    """At most this many training rows; 0: all."""
    keep: Literal["newest", "random"] = "newest"
    """Which rows stay when `max_train_rows` cuts."""

    @model_validator(mode="after")
    def _revision_has_a_hub(self) -> Training:
        if self.base_model_revision and self.base_model.startswith(("package:", ".", "/", "~")):
            raise ValueError(f"base_model_revision is for models of the hub, not for {self.base_model!r}")
        return self


class Schedule(Section):
    """When nights start: at most once per date."""

    cron: Cron = "15 3 * * *"
    """Five fields: minute, hour, day of month, month, day of week. Where both days are given, either is enough."""
    timezone: Timezone = "UTC"
    """Timezone of the cron; a night is a date in it."""
    max_skips: int = Field(default=6, ge=0, le=1000)
    """Scheduled nights in a row that are skipped while nothing is new: data, configuration, code, models; the next one
    runs anyway. 0: none is skipped."""


class Resources(Section):
    """What concurrent runs share."""

    slot: str = Field(default="default", pattern=r"^[a-z0-9-]{0,63}$")
    """Runs with the same slot queue for it, one at a time unless NIGHTGATE_SLOT_LIMITS allows more; '': no queue."""
    priority: int = Field(default=0, ge=-1000, le=1000)
    """When several runs wait for a slot, the highest priority goes first; among equals, the first to arrive."""


class Retention(Section):
    """What is kept on disk. The champion, the previous one, the anchor and candidates under review always are, and
    what a run needs to go on; rows in SQL are never removed."""

    models: int = Field(default=20, ge=1, le=100_000)
    """How many of the newest versions keep their files, besides all former champions and anchors that are not
    quarantined."""
    disk: Size = ""
    """Most bytes for the versions of a pipeline, such as '20GB'; the oldest are removed first, former champions and
    anchors last. '': no limit."""
    snapshots: int = Field(default=90, ge=1, le=100_000)
    """How many of the newest snapshots are kept, besides those of versions that keep their files."""
    runs: int = Field(default=365, ge=1, le=100_000)
    """How many of the newest runs keep their folder, with log, predictions and report."""


class Pipeline(Section):
    """A whole pipeline file."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    """Lower-case letters, digits, - and _; names the folders, rows and deployments."""
    data: Data
    """Where rows come from and what they mean."""
    split: Split = Split()
    """How rows are divided."""
    training: Training = Training()
    """How the model is fine-tuned."""
    gate: Gate = Gate()
    """What a candidate must show."""
    schedule: Schedule = Schedule()
    """When nights start."""
    resources: Resources = Resources()
    """What concurrent runs share."""
    retention: Retention = Retention()
    """What is kept on disk."""

    @model_validator(mode="after")
    def _sections_agree(self) -> Pipeline:
        if self.split.validation + self.split.test >= 1:
            raise ValueError(
                f"split: validation ({self.split.validation}) and test ({self.split.test}) leave nothing to train on"
            )
        given = self.data.source.splits if isinstance(self.data.source, HubSource) else None
        if given and "train" not in given:
            raise ValueError("data.source.splits must name the source's `train` split")
        if given and self.split.column:
            raise ValueError("split.column and data.source.splits both name given splits; keep one")
        return self

    def record(self) -> dict[str, Any]:
        """The resolved configuration as JSON: what is stored with the run and beside the weights."""
        return self.model_dump(mode="json")

    @cached_property
    def config_hash(self) -> str:
        """12 hex digits over all fields that can change a result: no schedule, queue, retention, approval or limits."""
        outside = {"schedule", "resources", "retention"}
        record = {key: value for key, value in self.record().items() if key not in outside}
        record["gate"] = {key: value for key, value in record["gate"].items() if not key.startswith("approval")}
        rules = record["data"].pop("checks")["columns"]
        record["data"] |= {"columns": rules} if rules else {}
        # How a table is read again never counts; fields that earlier releases did not have only where they are set.
        later = {"updated": "", "deleted": "", "time_format": "", "delimiter": "", "quoting": "auto"}
        for table in (record["data"], record["data"]["source"]):
            for name in [name for name in table if name in ("lag", "sweep") or table[name] == later.get(name, ...)]:
                del table[name]
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]

    def next_night(self, after: datetime) -> datetime:
        """The scheduled instant (aware, UTC) that follows `after` (aware)."""
        return next(instants(self.schedule.cron, self.schedule.timezone, after))
