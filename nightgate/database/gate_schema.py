"""Tables of the promotion gate: test sets and predictions, evidence, checks, anchors, freezes and seed studies."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from nightgate.database.column_types import WITHOUT_ROWID, Base, Key, NumberKey, OfAttempt, of, one_of, one_open

SIDES = ("candidate", "champion", "anchor")
ROW_SETS = ("test", "golden")
OUTCOMES = ("passed", "failed", "underpowered", "warning", "not_run")
SCOPES = ("window", "all", "golden", "slice")


class TestSet(Base):
    """Rows that models are evaluated on, stored once for all nights with the same rows. Bytes are zlib's.

    Most sets differ little from an earlier one: they name it as their base, and hold the difference of each value from
    that of the same row there; rows that it lacks differ from 0. `nightgate.runs.test_sets` writes and reads them.
    """

    __test__ = False
    __tablename__ = "test_set"
    __table_args__ = (one_of("kind", ROW_SETS), of("pipeline base_id", "test_set: pipeline test_set_id"))

    pipeline: Mapped[Key]
    test_set_id: Mapped[Key]
    kind: Mapped[str]
    num_rows: Mapped[int]
    label_names: Mapped[list[str]]
    base_id: Mapped[str | None]
    """The base, which is whole itself; NULL: this set is whole."""
    places: Mapped[bytes | None]
    """Place of each row in the base, -1 for those that it lacks: the step from the row before, 4 bytes a row."""
    fingerprints: Mapped[bytes]
    """16 bytes for each row that the base lacks."""
    labels: Mapped[bytes]
    """True class indices: a byte a row, two where there are more than 256 labels."""
    seen_at: Mapped[bytes]
    """Microseconds since 1970 of a row's time, or else of the first night with the row: 8 bytes a row."""
    groups: Mapped[bytes | None]
    """A number for the group of each row: 4 bytes a row; NULL where rows have none."""
    slices: Mapped[bytes]
    """JSON: for each slice column its values and each row's index into them."""
    recorded_at: Mapped[datetime]


class TestPrediction(OfAttempt, Base):
    """Predicted labels of one model (a side) for every row of a test set on one night."""

    __test__ = False
    __tablename__ = "test_prediction"
    __table_args__ = (
        one_of("side", SIDES),
        one_of("kind", ROW_SETS),
        of("run_id attempt", "attempt: run_id attempt"),
        of("pipeline test_set_id", "test_set: pipeline test_set_id"),
        of("model_run_id", "run: run_id"),
        sa.Index(None, "model_run_id"),
    )

    side: Mapped[Key]
    kind: Mapped[Key]
    pipeline: Mapped[str]
    test_set_id: Mapped[str]
    model_run_id: Mapped[str]
    """The run that trained the model."""
    labels: Mapped[bytes]
    """Encoded and ordered as in the test set."""


class GateSide(OfAttempt, Base):
    """Evidence about one model (a side) on one night beyond its predicted labels."""

    __tablename__ = "gate_side"
    __table_args__ = (one_of("side", SIDES), of("run_id attempt", "attempt: run_id attempt"))

    side: Mapped[Key]
    version: Mapped[int | None]
    data_until: Mapped[datetime | None]
    flaw: Mapped[str]
    """Why its score cannot be used; '' where it can."""
    rows_trained_on: Mapped[int | None]
    """Test rows seen in training or selection by the model or any of its ancestors; NULL: unknown."""
    calibration_error: Mapped[float | None]
    nonfinite_rows: Mapped[int]
    latency_ms: Mapped[float | None]
    """Median for a single text, in a fresh process."""
    size_bytes: Mapped[int | None] = mapped_column(sa.BigInteger)
    logit_difference: Mapped[float | None]
    """Largest difference between the fresh process and the night's own scoring."""
    serving_flaw: Mapped[str]
    """Why the fresh process could not serve it; '' where it could."""
    facts: Mapped[dict[str, Any]]
    """Other input of the checks, such as which test rows it was trained on: see `nightgate.runs.evidence_store`."""


class GateCheck(OfAttempt, Base):
    """One check of the gate, with its numbers. `slice_name` is '' for checks on all test rows."""

    __tablename__ = "gate_check"
    __table_args__ = (
        one_of("outcome", OUTCOMES),
        of("run_id attempt", "attempt: run_id attempt"),
        WITHOUT_ROWID,
    )

    check_name: Mapped[Key]
    slice_name: Mapped[Key]
    slice_value: Mapped[Key]
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


class JointOutcome(Base):
    """Joint counts of (true, reference, candidate) labels: sufficient statistics for every paired comparison."""

    __tablename__ = "joint_outcome"
    __table_args__ = (
        one_of("scope", SCOPES),
        of("attempt_id", "attempt: attempt_id"),
    )

    attempt_id: Mapped[NumberKey]
    scope: Mapped[Key]
    reference: Mapped[Key]
    """'champion', 'anchor', or '' where there was none."""
    counts: Mapped[dict[str, Any]]
    """By `slice_id` of the slice, the true label, the reference's and the candidate's, of those that occur; the
    reference's is '0' without one."""


class Anchor(Base):
    """The version that no candidate may fall behind, for a period. Only a significantly better version replaces it."""

    __tablename__ = "anchor"
    __table_args__ = (
        sa.CheckConstraint("valid_to > valid_from", name="order"),
        of("pipeline version", "model_version: pipeline version"),
        of("run_id", "run: run_id"),
        one_open("uq_anchor_open", "valid_to"),
    )

    anchor_id: Mapped[Key]
    pipeline: Mapped[str]
    version: Mapped[int]
    run_id: Mapped[str | None]
    """The run whose evidence moved it; NULL after a manual move."""
    moved_by: Mapped[str]
    reason: Mapped[str]
    valid_from: Mapped[datetime]
    valid_to: Mapped[datetime | None]


class Freeze(Base):
    """A period in which no run of a pipeline may promote automatically."""

    __tablename__ = "pipeline_freeze"
    __table_args__ = (one_open("uq_pipeline_freeze_open", "ended_at"),)

    freeze_id: Mapped[Key]
    pipeline: Mapped[str]
    frozen_at: Mapped[datetime]
    frozen_by: Mapped[str]
    reason: Mapped[str]
    ended_at: Mapped[datetime | None]
    ended_by: Mapped[str | None]
    end_reason: Mapped[str | None]


class SeedStudy(Base):
    """Trainings of one snapshot and configuration with several seeds, to measure the effect of the seed."""

    __tablename__ = "seed_study"
    __table_args__ = (of("pipeline snapshot_id", "snapshot: pipeline snapshot_id"),)

    study_id: Mapped[Key]
    pipeline: Mapped[str]
    snapshot_id: Mapped[str]
    config_hash: Mapped[str]
    """Without the seed."""
    code_version: Mapped[str]
    average: Mapped[str]
    num_seeds: Mapped[int]
    """Seeds that finished."""
    f1_mean: Mapped[float | None]
    """On the test rows."""
    f1_spread: Mapped[float | None]
    """Standard deviation (n - 1)."""
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class SeedRun(Base):
    """One seed of a study."""

    __tablename__ = "seed_run"
    __table_args__ = (of("study_id", "seed_study: study_id"),)

    study_id: Mapped[Key]
    seed: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    best_epoch: Mapped[int | None]
    validation_f1: Mapped[float | None]
    test_f1: Mapped[float | None]
    test_accuracy: Mapped[float | None]
    error: Mapped[str | None]
    """Why it has no score."""
    duration_seconds: Mapped[float | None]
    recorded_at: Mapped[datetime]
    precision: Mapped[str | None]
    """Of the test scores; NULL: of an earlier version, which scored in fp32."""
