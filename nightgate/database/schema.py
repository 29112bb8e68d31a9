"""SQLAlchemy models of the tables. Users query the views of the migrations: tables may change, views only grow.

All foreign keys restrict deletion. Times are aware and UTC.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, MappedSQLExpression, column_property, mapped_column

import nightgate.database.data_schema
import nightgate.database.evaluation_schema
import nightgate.database.gate_schema
import nightgate.database.metric_schema
import nightgate.database.refresh_schema  # noqa: F401 (they add their tables to METADATA)
from nightgate.database.column_types import WITHOUT_ROWID, Base, Key, NumberKey, OfAttempt, Serial, of, one_of, one_open

METADATA = Base.metadata
"""All tables, including those of the other modules."""
HEAD = "0021"
"""The revision that this version reads and writes."""

STATUSES = ("running", "waiting", "promoted", "held", "skipped", "superseded", "missed", "cancelled", "failed")
TRIGGERS = ("schedule", "manual", "backfill", "retry")
VERDICTS = ("promote", "hold", "underpowered")
DECISIONS = ("approved", "rejected", "timed_out", "superseded")
"""How the wait for an approval ended."""


class Setting(Base):
    """Facts that belong to no run, such as the id of the home that all paths are relative to."""

    __tablename__ = "setting"

    key: Mapped[Key]
    value: Mapped[str]


class Document(Base):
    """JSON that many rows share: configurations and environments."""

    __tablename__ = "document"
    __table_args__ = (sa.UniqueConstraint("digest"),)

    document_id: Mapped[Serial]
    digest: Mapped[str]
    """Of the content: see `nightgate.database.shared_values`."""
    content: Mapped[dict[str, Any]]


class DocumentValue(Base):
    """One value of a document, as JSON: no SQL of both engines takes a document apart."""

    __tablename__ = "document_value"
    __table_args__ = (of("document_id", "document: document_id"), WITHOUT_ROWID)

    document_id: Mapped[NumberKey]
    name: Mapped[Key]
    """Such as `training.learning_rate`."""
    value: Mapped[str]
    is_default: Mapped[bool | None]
    """Whether it is known to be the default of a setting; NULL in an earlier release."""


def _content_of(number: Mapped[Any]) -> MappedSQLExpression[Any]:
    """The content of the document with this number, loaded when it is asked for."""
    of_row = sa.select(Document.content).where(Document.document_id == number)
    return column_property(of_row.correlate_except(Document).scalar_subquery(), deferred=True)


class Snapshot(Base):
    """One immutable set of rows; several runs may use it."""

    __tablename__ = "snapshot"

    pipeline: Mapped[Key]
    snapshot_id: Mapped[Key]
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
    files_removed_at: Mapped[datetime | None]
    """When retention removed its files."""
    rows_redacted: Mapped[int] = mapped_column(default=0, server_default="0")
    """Rows that `nightgate forget` removed from its files, and that the other counts include."""


class Timed:
    """Rows of what begins and ends."""

    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    duration_seconds: Mapped[float | None]
    """From start to end; stored, because the engines subtract times in different ways."""

    def finish(self, moment: datetime | None) -> None:
        """Set the end and what follows from it; None: it goes on."""
        self.finished_at = moment
        self.duration_seconds = None if moment is None else round((moment - self.started_at).total_seconds(), 3)


class Run(Timed, Base):
    """One run of one night, over all its attempts."""

    __tablename__ = "run"
    __table_args__ = (
        one_of("status", STATUSES),
        one_of("trigger", TRIGGERS),
        one_of("verdict", VERDICTS),
        one_of("average", ("weighted", "macro")),
        of("pipeline snapshot_id", "snapshot: pipeline snapshot_id"),
        of("config_id", "document: document_id"),
        sa.Index(None, "pipeline", "night"),
        sa.Index(None, "pipeline", "snapshot_id"),
        sa.Index(None, "status"),
    )

    run_id: Mapped[Key]
    pipeline: Mapped[str]
    night: Mapped[date]
    status: Mapped[str]
    attempt: Mapped[int]
    """The current attempt; writes by any other attempt are refused."""
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
    rows_trained: Mapped[int | None]
    """Training rows after `train_window` and `max_train_rows`; of a night that went on those that it learnt."""
    training: Mapped[str | None]
    """'full' or 'continued'; NULL before that was decided."""
    started_from: Mapped[int | None]
    """The version that it went on from; NULL: the base model."""
    training_reason: Mapped[str | None]
    """Why it went on, or trained in full; NULL where the pipeline always trains in full."""
    label_revision: Mapped[int | None]
    """Test rows whose label was corrected since the last snapshot."""
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
    """Start of the test window; NULL: all test rows count."""
    test_rows_all: Mapped[int | None]
    """Test rows of the snapshot, inside the window or not."""
    test_f1_all: Mapped[float | None]
    rows_left_out: Mapped[int | None]
    """Test rows excluded because one of the models was trained on them."""
    detectable_gain: Mapped[float | None]
    """The gain in F1 over the champion that the window detects with 80 % power."""
    champion_fresh_f1: Mapped[float | None]
    """The champion's F1 on labelled rows that came since it was chosen: see `champion_evaluation`."""
    champion_fresh_rows: Mapped[int | None]
    fresh_ci_low: Mapped[float | None]
    fresh_ci_high: Mapped[float | None]
    anchor_version: Mapped[int | None]
    anchor_f1: Mapped[float | None]
    labels_corrected: Mapped[int | None]
    """Test rows of the judged night before whose label was corrected since; NULL: there is none to compare with."""
    metric_key: Mapped[str | None]
    """Scores with the same key are comparable: see `nightgate.metrics.comparability`."""
    nonfinite: Mapped[str]
    average: Mapped[str]
    min_f1: Mapped[float | None]
    """The F1 that was asked for; NULL where it follows from the test rows and they have not been judged."""
    label_names: Mapped[list[str]]
    base_model: Mapped[str]
    config_id: Mapped[int] = mapped_column()
    config: Mapped[dict[str, Any]] = _content_of(config_id)
    config_hash: Mapped[str]
    code_version: Mapped[str]
    inputs: Mapped[dict[str, Any] | None]
    """What its result depends on, by name: see `nightgate.runs.inputs`."""
    reasons: Mapped[str | None]
    """Why it trained or did not; NULL before that was decided."""
    prefect_flow_run_id: Mapped[str | None]
    announced_at: Mapped[datetime | None]
    """When the completion event was published; NULL while it is pending."""
    closed_at: Mapped[datetime | None]
    """When everything that follows its end was done: `nightgate.night.closing`; NULL before."""


class Attempt(Timed, Base):
    """One process's attempt at a run; a resumed run has another attempt."""

    __tablename__ = "attempt"
    __table_args__ = (
        one_of("status", STATUSES),
        of("run_id", "run: run_id"),
        sa.UniqueConstraint("run_id", "attempt"),
    )

    attempt_id: Mapped[Serial]
    """Its key in the tables with most rows; `run_id` and `attempt` are those of the others and of all views."""
    run_id: Mapped[str]
    attempt: Mapped[int]
    status: Mapped[str]
    trigger: Mapped[str]
    error_type: Mapped[str | None]
    reason: Mapped[str | None]
    host: Mapped[str]
    pid: Mapped[int]
    owner_started: Mapped[datetime | None]
    """When its process began, by the clock as it was set then."""
    owner_ticks: Mapped[int | None] = mapped_column(sa.BigInteger)
    """Clock ticks from the boot to the start of its process; NULL: of an earlier version, or not on Linux."""
    process_space: Mapped[str | None]
    """Boot id and pid namespace in which the pid is valid."""
    heartbeat_at: Mapped[datetime | None]
    """Last heartbeat of its process, by the database's clock."""
    device: Mapped[str | None]
    precision: Mapped[str | None]
    precision_reason: Mapped[str | None]
    threads: Mapped[int | None]
    resumed_from_epoch: Mapped[int | None]
    """0: from the start. NULL: training did not begin."""
    engine: Mapped[str | None]
    """'packed' or 'padded'."""
    engine_reason: Mapped[str | None]
    micro_batches: Mapped[int | None]
    """Parts that a batch was split into, for lack of memory."""
    restarts: Mapped[int] = mapped_column(default=0, server_default="0")
    """Restarts of its training process after it made no progress."""
    slot: Mapped[str | None]
    """The slot that it held or waited for; NULL: none."""
    slot_wait_seconds: Mapped[float | None]
    """Until it held the slot; NULL: it never did. What Prefect's queue held back has waited before its start."""
    code_version: Mapped[str]
    prefect_flow_run_id: Mapped[str | None]
    busy_seconds: Mapped[float | None]
    """How long it held its machine, without the waits for the slot and for an approval; NULL while it runs."""
    scoring_precision: Mapped[str | None]
    """Of the scores on the test rows; NULL: none yet, or of an earlier version, which scored in fp32."""


class Approval(Base):
    """A candidate that passed the gate and needs a human decision, and that decision."""

    __tablename__ = "approval"
    __table_args__ = (one_of("decision", DECISIONS), of("run_id", "run: run_id"))

    run_id: Mapped[Key]
    requested_at: Mapped[datetime]
    deadline: Mapped[datetime]
    expected_version: Mapped[int | None]
    """The champion that it was compared with, if any."""
    decision: Mapped[str | None]
    decided_by: Mapped[str | None]
    reason: Mapped[str | None]
    decided_at: Mapped[datetime | None]


class Epoch(OfAttempt, Base):
    """Training metrics of one epoch and scores on the validation rows."""

    __tablename__ = "epoch"
    __table_args__ = (of("run_id attempt", "attempt: run_id attempt"), WITHOUT_ROWID)

    epoch: Mapped[NumberKey]
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


class QuarantinedRow(Base):
    """A source row that cannot be used for one reason: open from its first night until it is resolved."""

    __tablename__ = "quarantine"

    pipeline: Mapped[Key]
    row_key: Mapped[Key]
    """A hash of its id, or else of its place: see `nightgate.runs.refresh_records`."""
    reason: Mapped[Key]
    run_id: Mapped[str]
    """The newest run or refresh that read it."""
    attempt: Mapped[int]
    position: Mapped[int]
    origin: Mapped[str]
    part: Mapped[str]
    row_id: Mapped[str | None]
    detail: Mapped[str]
    excerpt: Mapped[str]
    first_night: Mapped[date]
    last_night: Mapped[date]
    """The newest night that read it; a part that does not change is not read again."""
    resolved_night: Mapped[date | None]
    """The first night on which it was corrected, gone, or usable by other rules; NULL: it is open."""


class ModelVersion(Base):
    """A registered candidate, promoted or not, numbered per pipeline."""

    __tablename__ = "model_version"
    __table_args__ = (
        sa.UniqueConstraint("run_id"),
        of("run_id attempt", "attempt: run_id attempt"),
        of("environment_id", "document: document_id"),
    )

    pipeline: Mapped[Key]
    version: Mapped[NumberKey]
    run_id: Mapped[str]
    attempt: Mapped[int]
    path: Mapped[str]
    created_at: Mapped[datetime]
    started_from: Mapped[int | None]
    """The version whose weights training started from; NULL: the base model."""
    base_model_revision: Mapped[str | None]
    """The commit of the base model, or else a hash of its weights."""
    environment_id: Mapped[int | None] = mapped_column()
    environment: Mapped[dict[str, Any] | None] = _content_of(environment_id)
    """Python, libraries, machine and device that trained it."""
    size_bytes: Mapped[int | None] = mapped_column(sa.BigInteger)
    quarantined_at: Mapped[datetime | None]
    quarantined_by: Mapped[str | None]
    quarantine_reason: Mapped[str | None]
    """Why it cannot be promoted until it is released."""
    files_removed_at: Mapped[datetime | None]
    """When retention removed its files."""


class Promotion(Base):
    """A period with one champion (half-open; `valid_to` is NULL for the current one) and who promoted it."""

    __tablename__ = "promotion"
    __table_args__ = (
        one_of("kind", ("promote", "rollback")),
        sa.CheckConstraint("valid_to > valid_from", name="order"),
        of("pipeline version", "model_version: pipeline version"),
        of("pipeline replaced_version", "model_version: pipeline version"),
        of("run_id", "run: run_id"),
        one_open("uq_promotion_champion", "valid_to"),
        sa.Index(None, "pipeline", "valid_from"),
    )

    promotion_id: Mapped[Key]
    pipeline: Mapped[str]
    version: Mapped[int]
    replaced_version: Mapped[int | None]
    kind: Mapped[str]
    run_id: Mapped[str | None]
    """The run that was promoted automatically; NULL after a manual promotion."""
    promoted_by: Mapped[str]
    reason: Mapped[str]
    valid_from: Mapped[datetime]
    valid_to: Mapped[datetime | None]
