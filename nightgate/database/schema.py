"""The tables, as SQLAlchemy models. Users query the views of the migrations: tables may change, views only grow.

Nothing is ever deleted through a foreign key: all of them restrict. Times are aware and UTC.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

import nightgate.database.gate_schema  # noqa: F401 - so that METADATA holds its tables too
from nightgate.database.column_types import Base, of, one_of

METADATA = Base.metadata
"""All tables: those below and those of the gate."""
HEAD = "0005"
"""The revision that this version reads and writes; a test holds it against the migrations."""

STATUSES = ("running", "waiting", "promoted", "held", "skipped", "superseded", "missed", "cancelled", "failed")
TRIGGERS = ("schedule", "manual", "backfill", "retry")
VERDICTS = ("promote", "hold", "underpowered")
DECISIONS = ("approved", "rejected", "timed_out", "superseded")
"""How the wait for a person ended."""
OUTCOMES = ("passed", "failed", "underpowered", "warning", "not_run")


class Setting(Base):
    """Facts that belong to no run: the id of the home that all paths are relative to, schedules that were seen off."""

    __tablename__ = "setting"

    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class Snapshot(Base):
    """One immutable set of rows; several runs may use it."""

    __tablename__ = "snapshot"

    pipeline: Mapped[str] = mapped_column(primary_key=True)
    snapshot_id: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str]
    test_version: Mapped[str]
    rows_total: Mapped[int]
    rows_train: Mapped[int]
    rows_validation: Mapped[int]
    rows_test: Mapped[int]
    rows_duplicate: Mapped[int]
    rows_quarantined: Mapped[int]
    data_until: Mapped[datetime | None]
    first_time: Mapped[datetime | None]
    last_time: Mapped[datetime | None]
    manifest: Mapped[dict[str, Any]]
    recorded_at: Mapped[datetime]


class Run(Base):
    """One run of one night, over all its attempts."""

    __tablename__ = "run"
    __table_args__ = (
        one_of("status", STATUSES),
        one_of("trigger", TRIGGERS),
        one_of("verdict", VERDICTS),
        one_of("average", ("weighted", "macro")),
        of("pipeline snapshot_id", "snapshot: pipeline snapshot_id"),
        sa.Index(None, "pipeline", "night"),
    )

    run_id: Mapped[str] = mapped_column(primary_key=True)
    pipeline: Mapped[str]
    night: Mapped[date]
    status: Mapped[str]
    attempt: Mapped[int]
    """The attempt that may write: whoever calls with another one is refused."""
    trigger: Mapped[str]
    dry_run: Mapped[bool]
    reason: Mapped[str | None]
    error_type: Mapped[str | None]
    next_step: Mapped[str | None]
    verdict: Mapped[str | None]
    scheduled_for: Mapped[datetime | None]
    data_until: Mapped[datetime]
    snapshot_id: Mapped[str | None]
    rows_new: Mapped[int | None]
    rows_total: Mapped[int | None]
    best_epoch: Mapped[int | None]
    test_version: Mapped[str | None]
    test_rows: Mapped[int | None]
    test_accuracy: Mapped[float | None]
    test_f1: Mapped[float | None]
    test_precision: Mapped[float | None]
    test_recall: Mapped[float | None]
    f1_ci_low: Mapped[float | None]
    f1_ci_high: Mapped[float | None]
    champion_version: Mapped[int | None]
    champion_f1: Mapped[float | None]
    f1_delta: Mapped[float | None]
    window_start: Mapped[datetime | None]
    """Test rows from here on decided; NULL: all of them."""
    test_rows_all: Mapped[int | None]
    """Test rows of the snapshot, in the window or not."""
    test_f1_all: Mapped[float | None]
    rows_left_out: Mapped[int | None]
    """Test rows that a side was trained on: they count nowhere."""
    detectable_gain: Mapped[float | None]
    """The gain in F1 over the champion that the window shows with 80 % power."""
    champion_fresh_f1: Mapped[float | None]
    """The champion's F1 on rows that came after all that it was chosen by: the one number without selection."""
    champion_fresh_rows: Mapped[int | None]
    fresh_ci_low: Mapped[float | None]
    fresh_ci_high: Mapped[float | None]
    anchor_version: Mapped[int | None]
    anchor_f1: Mapped[float | None]
    metric_key: Mapped[str | None]
    """Scores may be compared where it is the same: test version, window, labels, average, metrics' definition."""
    nonfinite: Mapped[str]
    average: Mapped[str]
    min_f1: Mapped[float]
    label_names: Mapped[list[str]]
    base_model: Mapped[str]
    config: Mapped[dict[str, Any]]
    config_hash: Mapped[str]
    code_version: Mapped[str]
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    prefect_flow_run_id: Mapped[str | None]
    announced_at: Mapped[datetime | None]
    """When the event of how it ended was sent; NULL while it is still to be sent."""


class Attempt(Base):
    """One process's try at a run. A run that is taken up again gets another."""

    __tablename__ = "attempt"
    __table_args__ = (one_of("status", STATUSES), of("run_id", "run: run_id"))

    run_id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    status: Mapped[str]
    trigger: Mapped[str]
    error_type: Mapped[str | None]
    reason: Mapped[str | None]
    host: Mapped[str]
    pid: Mapped[int]
    owner_started: Mapped[datetime | None]
    process_space: Mapped[str | None]
    """Within which the pid means something: boot and pid namespace."""
    heartbeat_at: Mapped[datetime | None]
    """The last sign of life of its process, by the database's clock."""
    device: Mapped[str | None]
    precision: Mapped[str | None]
    precision_reason: Mapped[str | None]
    threads: Mapped[int | None]
    resumed_from_epoch: Mapped[int | None]
    """0: from the start. NULL: it never came to training."""
    engine: Mapped[str | None]
    """'packed' or 'padded'."""
    engine_reason: Mapped[str | None]
    micro_batches: Mapped[int | None]
    """Parts that one batch was computed in, for lack of memory."""
    restarts: Mapped[int] = mapped_column(default=0, server_default="0")
    """How often its training process stood still and was started again."""
    code_version: Mapped[str]
    prefect_flow_run_id: Mapped[str | None]
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class SlotRequest(Base):
    """An attempt's place in the queue for a slot: waiting, then holding it, then done."""

    __tablename__ = "slot_request"
    __table_args__ = (
        of("run_id attempt", "attempt: run_id attempt"),
        sa.Index(None, "slot", "released_at"),
    )

    run_id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    slot: Mapped[str]
    priority: Mapped[int]
    requested_at: Mapped[datetime]
    granted_at: Mapped[datetime | None]
    released_at: Mapped[datetime | None]
    """Also of a request that was given up while it waited."""


class Approval(Base):
    """A candidate that passed the gate and waits for a person, and what that person said."""

    __tablename__ = "approval"
    __table_args__ = (one_of("decision", DECISIONS), of("run_id", "run: run_id"))

    run_id: Mapped[str] = mapped_column(primary_key=True)
    requested_at: Mapped[datetime]
    deadline: Mapped[datetime]
    expected_version: Mapped[int | None]
    """The champion that it was compared with; NULL: there was none."""
    decision: Mapped[str | None]
    decided_by: Mapped[str | None]
    reason: Mapped[str | None]
    decided_at: Mapped[datetime | None]


class Epoch(Base):
    """What one epoch showed on the validation rows."""

    __tablename__ = "epoch"
    __table_args__ = (of("run_id attempt", "attempt: run_id attempt"),)

    run_id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    step: Mapped[int]
    training_loss: Mapped[float | None]
    validation_loss: Mapped[float | None]
    support: Mapped[int]
    accuracy: Mapped[float | None]
    f1_weighted: Mapped[float | None]
    f1_macro: Mapped[float | None]
    precision_weighted: Mapped[float | None]
    precision_macro: Mapped[float | None]
    recall_weighted: Mapped[float | None]
    recall_macro: Mapped[float | None]
    learning_rate: Mapped[float | None]
    examples_per_second: Mapped[float | None]
    tokens_per_second: Mapped[float | None]
    nonfinite: Mapped[str]
    recorded_at: Mapped[datetime]


class SliceMetric(Base):
    """Metrics of the rows that share a value; a class is a slice named `label`. Averaged as the run's pipeline says."""

    __tablename__ = "slice_metric"
    __table_args__ = (
        one_of("split", ("validation", "test")),
        of("run_id attempt", "attempt: run_id attempt"),
    )

    run_id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    split: Mapped[str] = mapped_column(primary_key=True)
    slice_name: Mapped[str] = mapped_column(primary_key=True)
    slice_value: Mapped[str] = mapped_column(primary_key=True)
    support: Mapped[int]
    accuracy: Mapped[float | None]
    f1: Mapped[float | None]
    precision: Mapped[float | None]
    recall: Mapped[float | None]


class ConfusionCell(Base):
    """How many rows of one label were given another."""

    __tablename__ = "confusion_cell"
    __table_args__ = (
        one_of("split", ("validation", "test")),
        of("run_id attempt", "attempt: run_id attempt"),
    )

    run_id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    split: Mapped[str] = mapped_column(primary_key=True)
    true_label: Mapped[str] = mapped_column(primary_key=True)
    predicted_label: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int]


class GateCheck(Base):
    """One check of the gate, with the numbers that it saw. `slice_name` is '' where all test rows are meant."""

    __tablename__ = "gate_check"
    __table_args__ = (one_of("outcome", OUTCOMES), of("run_id attempt", "attempt: run_id attempt"))

    run_id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    check_name: Mapped[str] = mapped_column(primary_key=True)
    slice_name: Mapped[str] = mapped_column(primary_key=True)
    slice_value: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]
    metric: Mapped[str]
    candidate_value: Mapped[float | None]
    champion_value: Mapped[float | None]
    threshold: Mapped[float | None]
    ci_low: Mapped[float | None]
    ci_high: Mapped[float | None]
    rows_used: Mapped[int | None]
    outcome: Mapped[str]
    reason: Mapped[str]


class QuarantinedRow(Base):
    """A source row that could not be used, and why."""

    __tablename__ = "quarantined_row"
    __table_args__ = (of("run_id attempt", "attempt: run_id attempt"),)

    run_id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    origin: Mapped[str]
    row_id: Mapped[str | None]
    reason: Mapped[str]
    detail: Mapped[str]
    excerpt: Mapped[str]


class ModelVersion(Base):
    """A completed candidate, numbered per pipeline; held ones too."""

    __tablename__ = "model_version"
    __table_args__ = (sa.UniqueConstraint("run_id"), of("run_id attempt", "attempt: run_id attempt"))

    pipeline: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    run_id: Mapped[str]
    attempt: Mapped[int]
    path: Mapped[str]
    created_at: Mapped[datetime]
    started_from: Mapped[int | None]
    """The version that its training went on from; NULL: the base model."""
    base_model_revision: Mapped[str | None]
    """The commit of the base model, or a hash of its weights where it has none."""
    environment: Mapped[dict[str, Any] | None]
    """Python, libraries, machine and device that trained it."""
    size_bytes: Mapped[int | None] = mapped_column(sa.BigInteger)
    quarantined_at: Mapped[datetime | None]
    quarantined_by: Mapped[str | None]
    quarantine_reason: Mapped[str | None]
    """Why nothing may promote it; a person may release it."""
    files_removed_at: Mapped[datetime | None]
    """Retention has taken its files."""


class Promotion(Base):
    """A reign: which version was champion from when to when (half-open; `valid_to` NULL for now), and by whose will."""

    __tablename__ = "promotion"
    __table_args__ = (
        one_of("kind", ("promote", "rollback")),
        sa.CheckConstraint("valid_to > valid_from", name="order"),
        of("pipeline version", "model_version: pipeline version"),
        of("pipeline replaced_version", "model_version: pipeline version"),
        of("run_id", "run: run_id"),
        # The constraint that two processes cannot argue with: one open reign per pipeline.
        sa.Index(
            "uq_promotion_champion",
            "pipeline",
            unique=True,
            sqlite_where=sa.text("valid_to IS NULL"),
            postgresql_where=sa.text("valid_to IS NULL"),
        ),
        sa.Index(None, "pipeline", "valid_from"),
    )

    promotion_id: Mapped[str] = mapped_column(primary_key=True)
    pipeline: Mapped[str]
    version: Mapped[int]
    replaced_version: Mapped[int | None]
    kind: Mapped[str]
    run_id: Mapped[str | None]
    """The run that promoted itself; NULL when a person did."""
    promoted_by: Mapped[str]
    reason: Mapped[str]
    valid_from: Mapped[datetime]
    valid_to: Mapped[datetime | None]
