"""Tables of the champion's evaluation on rows that came since it was chosen."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped

from nightgate.database.column_types import WITHOUT_ROWID, Base, NumberKey, Serial, of, one_of

ROLES = ("champion", "anchor")


class ChampionEvaluation(Base):
    """A version on the labelled rows of a snapshot that became known after it was chosen."""

    __tablename__ = "champion_evaluation"
    __table_args__ = (
        one_of("role", ROLES),
        of("pipeline model_version", "model_version: pipeline version"),
        of("run_id", "run: run_id"),
        sa.UniqueConstraint("pipeline", "snapshot_id", "model_version", "role"),
    )

    evaluation_id: Mapped[Serial]
    pipeline: Mapped[str]
    snapshot_id: Mapped[str]
    model_version: Mapped[int]
    role: Mapped[str]
    run_id: Mapped[str | None]
    """The night that it is a part of; NULL: it was evaluated on its own."""
    evaluated_at: Mapped[datetime]
    rows_from: Mapped[datetime | None]
    """`data_until` of the snapshot that the version was chosen on."""
    rows_to: Mapped[datetime | None]
    """`data_until` of the evaluated snapshot."""
    rows: Mapped[int]
    f1: Mapped[float | None]
    f1_ci_low: Mapped[float | None]
    f1_ci_high: Mapped[float | None]
    accuracy: Mapped[float | None]
    min_f1: Mapped[float | None]
    """The F1 that was asked for; of 'majority' that of the commonest class on these rows."""
    promotion_f1: Mapped[float | None]
    """F1 on the test rows that the version was chosen by, weighted to the class shares of these rows."""
    fall: Mapped[float | None]
    """The clearest fall below it among the newest rows, in standard errors."""
    alarms: Mapped[str]
    """Names, with commas; '' for none."""
    reason: Mapped[str]
    policy: Mapped[dict[str, Any]]
    """`average`, `confidence` and `min_f1` of the gate: with others it is evaluated again."""
    announced_at: Mapped[datetime | None]
    """When the events of its alarms were published; NULL while they are pending."""
    precision: Mapped[str | None]
    """In which it was computed; NULL: of an earlier version, which scored in fp32."""


class ChampionEvaluationSlice(Base):
    """The same rows by class (slice `label`) and by value of each slice."""

    __tablename__ = "champion_evaluation_slice"
    __table_args__ = (
        of("evaluation_id", "champion_evaluation: evaluation_id"),
        of("slice_id", "slice: slice_id"),
        WITHOUT_ROWID,
    )

    evaluation_id: Mapped[NumberKey]
    slice_id: Mapped[NumberKey]
    support: Mapped[int]
    accuracy: Mapped[float | None]
    f1: Mapped[float | None]
    precision: Mapped[float | None]
    recall: Mapped[float | None]
