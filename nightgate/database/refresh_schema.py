"""Tables of what a refresh counted, checked and decided: rows of each part, data checks, votes on labels."""

from __future__ import annotations

from datetime import date, datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from nightgate.database.column_types import WITHOUT_ROWID, Base, Key, NumberKey, OfAttempt, of, one_of

CHECK_OUTCOMES = ("passed", "failed", "allowed", "not_run")
PLACES = ("taken", "merged", "replaced", "deleted", "quarantined", "conflicting", "future", "outside")
"""Where a row that was seen went: columns `rows_<place>` of `refresh_count`, whose sum is `rows_seen`."""


class Refresh(Base):
    """A refresh on its own, which belongs to no night. What it finds, such as counts and checks, has its id in place of
    a run's.
    """

    __tablename__ = "refresh"
    __table_args__ = (
        one_of("status", ("completed", "failed")),
        of("pipeline snapshot_id", "snapshot: pipeline snapshot_id"),
        sa.Index(None, "pipeline", "started_at"),
    )

    refresh_id: Mapped[Key]
    pipeline: Mapped[str]
    night: Mapped[date]
    """Its date in the timezone of the schedule."""
    status: Mapped[str]
    reason: Mapped[str | None]
    error_type: Mapped[str | None]
    next_step: Mapped[str | None]
    data_until: Mapped[datetime]
    snapshot_id: Mapped[str | None]
    rows_new: Mapped[int | None]
    """Rows whose text the refresh before lacks."""
    rows_total: Mapped[int | None]
    label_revision: Mapped[int | None]
    """Test rows whose label was corrected since the refresh before."""
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime]
    prefect_flow_run_id: Mapped[str | None]


class RefreshCount(OfAttempt, Base):
    """Where the rows of a part of the source went, as `nightgate.data.refresh_counts.PartCounts`."""

    __tablename__ = "refresh_count"
    __table_args__ = (
        sa.CheckConstraint(f"rows_seen = {' + '.join(f'rows_{place}' for place in PLACES)}", name="balance"),
        WITHOUT_ROWID,
    )

    position: Mapped[NumberKey]
    part: Mapped[str]
    rows_seen: Mapped[int]
    rows_taken: Mapped[int]
    rows_merged: Mapped[int]
    rows_replaced: Mapped[int]
    rows_deleted: Mapped[int]
    rows_quarantined: Mapped[int]
    rows_conflicting: Mapped[int]
    rows_future: Mapped[int]
    rows_outside: Mapped[int]
    rows_vanished: Mapped[int]
    bytes: Mapped[int | None] = mapped_column(sa.BigInteger)
    modified: Mapped[datetime | None]
    unchanged: Mapped[bool]


class DataCheck(OfAttempt, Base):
    """One check of the data, with its numbers, and who let it fail."""

    __tablename__ = "data_check"
    __table_args__ = (one_of("outcome", CHECK_OUTCOMES), WITHOUT_ROWID)

    check_name: Mapped[Key]
    position: Mapped[int]
    value: Mapped[float | None]
    threshold: Mapped[float | None]
    outcome: Mapped[str]
    reason: Mapped[str]
    allowed_by: Mapped[str | None]
    allowed_reason: Mapped[str | None]


class LabelVote(Base):
    """How many rows with one text have a label, where they have several."""

    __tablename__ = "label_vote"
    __table_args__ = (WITHOUT_ROWID,)

    pipeline: Mapped[Key]
    fingerprint: Mapped[Key]
    label: Mapped[Key]
    votes: Mapped[int]
    chosen: Mapped[bool]
    run_id: Mapped[str]
    """The last run or refresh that read a row with the text."""
