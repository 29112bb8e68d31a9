"""The whole pipeline file. The same models check the file, `--set` and the Prefect form, and are the stored record.

`nightgate.pipeline_files` finds and reads the files.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from functools import cached_property
from typing import Any

from pydantic import Field, model_validator

from nightgate.config.data import Data, Split
from nightgate.config.gate import Gate
from nightgate.config.predict import Predict
from nightgate.config.schedule import Schedule
from nightgate.config.sources import HubSource
from nightgate.config.training import Training, metric_name
from nightgate.config.values import Section, Size
from nightgate.cron import instants


class Resources(Section):
    """What concurrent runs share."""

    slot: str = Field(default="default", pattern=r"^[a-z0-9-]{0,63}$")
    """Nights with the same slot run one at a time unless NIGHTGATE_SLOT_LIMITS allows more; '': they wait for none."""
    priority: int = Field(default=0, ge=-1000, le=1000)
    """When several nights wait for a slot, the highest priority goes first; among equals, the one due first."""


class Retention(Section):
    """What is kept on disk. The champion, the previous one, the anchor and candidates under review always are, and
    what a run, or the next night, needs to go on; rows in SQL are never removed."""

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
    predict: Predict = Predict()
    """What the champion predicts."""

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
        if self.schedule.predict.cron and self.predict.source is None:
            raise ValueError("predict.source: name the rows that `schedule.predict` predicts")
        return self

    def record(self) -> dict[str, Any]:
        """The resolved configuration as JSON: what is stored with the run and beside the weights."""
        return self.model_dump(mode="json")

    @property
    def predicts_after_nights(self) -> bool:
        """Whether a night that has ended predicts the rows of `[predict]`: they have no cron of their own."""
        return self.predict.source is not None and not self.schedule.predict.cron

    @cached_property
    def config_hash(self) -> str:
        """12 hex digits over all fields that can change a result: no schedule, queue, retention, approval, limits or
        predictions."""
        outside = {"schedule", "resources", "retention", "predict"}
        record = {key: value for key, value in self.record().items() if key not in outside}
        record["gate"] = {key: value for key, value in record["gate"].items() if not key.startswith("approval")}
        # Not their folder, which differs between machines.
        metrics = [metric_name(one) for one in record["training"].pop("metrics")]
        record["training"] |= {"metrics": metrics} if metrics else {}
        if record["training"]["start_from"] == "base":
            for name in ("replay", "continued_rate", "full_every"):
                del record["training"][name]
        rules = record["data"].pop("checks")["columns"]
        record["data"] |= {"columns": rules} if rules else {}
        # How a table is read again never counts; fields that earlier releases did not have only where they are set.
        later = {
            "updated": "",
            "deleted": "",
            "time_format": "",
            "delimiter": "",
            "quoting": "auto",
            "class_weight": "none",
        }
        for table in (record["data"], record["data"]["source"], record["training"]):
            for name in [name for name in table if name in ("lag", "sweep") or table[name] == later.get(name, ...)]:
                del table[name]
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]

    def next_night(self, after: datetime) -> datetime | None:
        """The scheduled instant (aware, UTC) that follows `after` (aware); None without a cron."""
        return next(instants(self.schedule.cron, self.schedule.timezone, after), None)
