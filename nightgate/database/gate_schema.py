"""The tables of the gate: what models are judged on and what they said, anchors, freezes, seed studies."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from nightgate.database.column_types import Base, of, one_of

SIDES = ("candidate", "champion", "anchor")
ROW_SETS = ("test", "golden")
SCOPES = ("window", "all", "golden", "slice")


class TestSet(Base):
    """Rows that models are judged on, by their content; nights with the same rows share one. Bytes are zlib's."""

    __test__ = False
    __tablename__ = "test_set"
    __table_args__ = (one_of("kind", ROW_SETS),)

    pipeline: Mapped[str] = mapped_column(primary_key=True)
    test_set_id: Mapped[str] = mapped_column(primary_key=True)
    """`nightgate.runs.evidence_store` says how it is made, and how the bytes are read."""
    kind: Mapped[str]
    num_rows: Mapped[int]
    label_names: Mapped[list[str]]
    fingerprints: Mapped[bytes]
    """16 bytes a row."""
    labels: Mapped[bytes]
    """True class indices: a byte a row, two where there are more than 256 labels."""
    seen_at: Mapped[bytes]
    """Microseconds since 1970 of a row's time, or of the night that saw it first: 8 bytes a row."""
    groups: Mapped[bytes | None]
    """A number for the group of each row: 4 bytes a row; NULL where rows have none."""
    slices: Mapped[bytes]
    """JSON: by slice column its values, and for each row which of them it has."""
    recorded_at: Mapped[datetime]


class TestPrediction(Base):
    """The predicted label of every row of a test set, of one side on one night."""

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

    run_id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    side: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    pipeline: Mapped[str]
    test_set_id: Mapped[str]
    model_run_id: Mapped[str]
    """The run that made the model: that of a version, the night's own for its candidate."""
    labels: Mapped[bytes]
    """As in the test set, in its order."""


class GateSide(Base):
    """What was observed of one side on one night and no label can give again: the rest of the gate's evidence."""

    __tablename__ = "gate_side"
    __table_args__ = (one_of("side", SIDES), of("run_id attempt", "attempt: run_id attempt"))

    run_id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    side: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int | None]
    data_until: Mapped[datetime | None]
    flaw: Mapped[str]
    """Why its score is no evidence; '' where it is."""
    rows_trained_on: Mapped[int | None]
    """Test rows that it, or a model that it goes back to, was trained on or chosen by; NULL: unknown."""
    calibration_error: Mapped[float | None]
    nonfinite_rows: Mapped[int]
    latency_ms: Mapped[float | None]
    """Median of a text alone, in a fresh process."""
    size_bytes: Mapped[int | None] = mapped_column(sa.BigInteger)
    logit_difference: Mapped[float | None]
    """Largest, between the fresh process and the night's own scoring."""
    serving_flaw: Mapped[str]
    """Why the fresh process could not serve it; '' where it could."""
    facts: Mapped[dict[str, Any]]
    """What else the checks read, such as which test rows it was trained on; written by
    `nightgate.runs.evidence_store`."""


class JointOutcome(Base):
    """How many rows have this label and were given these two: what every paired figure of a night follows from."""

    __tablename__ = "joint_outcome"
    __table_args__ = (one_of("scope", SCOPES), of("run_id attempt", "attempt: run_id attempt"))

    run_id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    scope: Mapped[str] = mapped_column(primary_key=True)
    slice_name: Mapped[str] = mapped_column(primary_key=True)
    slice_value: Mapped[str] = mapped_column(primary_key=True)
    reference: Mapped[str] = mapped_column(primary_key=True)
    """'champion', 'anchor', or '' where there was none."""
    true_label: Mapped[str] = mapped_column(primary_key=True)
    reference_label: Mapped[str] = mapped_column(primary_key=True)
    """'' where there was none."""
    candidate_label: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int]


class Anchor(Base):
    """Which version no candidate may fall behind, from when to when. Only one that is significantly better follows."""

    __tablename__ = "anchor"
    __table_args__ = (
        sa.CheckConstraint("valid_to > valid_from", name="order"),
        of("pipeline version", "model_version: pipeline version"),
        of("run_id", "run: run_id"),
        sa.Index(
            "uq_anchor_open",
            "pipeline",
            unique=True,
            sqlite_where=sa.text("valid_to IS NULL"),
            postgresql_where=sa.text("valid_to IS NULL"),
        ),
    )

    anchor_id: Mapped[str] = mapped_column(primary_key=True)
    pipeline: Mapped[str]
    version: Mapped[int]
    run_id: Mapped[str | None]
    """The run whose evidence moved it; NULL when a person did."""
    moved_by: Mapped[str]
    reason: Mapped[str]
    valid_from: Mapped[datetime]
    valid_to: Mapped[datetime | None]


class Freeze(Base):
    """From when to when no run of a pipeline may promote by itself."""

    __tablename__ = "pipeline_freeze"
    __table_args__ = (
        sa.Index(
            "uq_pipeline_freeze_open",
            "pipeline",
            unique=True,
            sqlite_where=sa.text("ended_at IS NULL"),
            postgresql_where=sa.text("ended_at IS NULL"),
        ),
    )

    freeze_id: Mapped[str] = mapped_column(primary_key=True)
    pipeline: Mapped[str]
    frozen_at: Mapped[datetime]
    frozen_by: Mapped[str]
    reason: Mapped[str]
    ended_at: Mapped[datetime | None]
    ended_by: Mapped[str | None]
    end_reason: Mapped[str | None]


class SeedStudy(Base):
    """The same snapshot and configuration trained with several seeds: what the seed alone moves."""

    __tablename__ = "seed_study"
    __table_args__ = (of("pipeline snapshot_id", "snapshot: pipeline snapshot_id"),)

    study_id: Mapped[str] = mapped_column(primary_key=True)
    pipeline: Mapped[str]
    snapshot_id: Mapped[str]
    config_hash: Mapped[str]
    """With the seed left out."""
    code_version: Mapped[str]
    average: Mapped[str]
    num_seeds: Mapped[int]
    """Seeds that came to an end."""
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

    study_id: Mapped[str] = mapped_column(primary_key=True)
    seed: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    best_epoch: Mapped[int | None]
    validation_f1: Mapped[float | None]
    test_f1: Mapped[float | None]
    test_accuracy: Mapped[float | None]
    error: Mapped[str | None]
    """Why it came to no score, in words."""
    duration_seconds: Mapped[float | None]
    recorded_at: Mapped[datetime]
