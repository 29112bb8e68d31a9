"""Tables of what happened to data besides the runs that used it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Mapped

from nightgate.database.column_types import WITHOUT_ROWID, Base, Key, OfAttempt, one_of

REFERENCES = ("champion", "last_week")
"""What drift is measured against."""


class Forgotten(Base):
    """A row id that was forgotten: who asked for it and what it touched, without the id and without text."""

    __tablename__ = "forgotten"

    pipeline: Mapped[Key]
    id_hash: Mapped[Key]
    """SHA-256 of the id, 64 hex digits."""
    forgotten_by: Mapped[str]
    begun_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    """When all was removed; NULL while it has to be repeated."""
    snapshots: Mapped[int]
    """Snapshots that held the id, of those that were kept."""
    rows_redacted: Mapped[int]
    """Rows removed, summed over these snapshots."""
    golden_rows: Mapped[int]
    quarantined_rows: Mapped[int]
    versions: Mapped[str]
    """Numbers of the versions that were trained on it or selected by it, such as `3, 7`."""


class DriftRow(OfAttempt, Base):
    """One statistic of drift of the new rows of a night, or of a refresh on its own, against a reference: see
    `nightgate.metrics.drift`.
    """

    __tablename__ = "drift_statistic"
    __table_args__ = (
        one_of("reference", REFERENCES),
        one_of("outcome", ("passed", "warning")),
        WITHOUT_ROWID,
    )

    reference: Mapped[Key]
    """'champion': its training rows; 'last_week': rows of the seven days before."""
    statistic: Mapped[Key]
    slice_name: Mapped[Key]
    """'' but for shares of a slice."""
    distance: Mapped[str]
    value: Mapped[float | None]
    threshold: Mapped[float | None]
    tonight_value: Mapped[float | None]
    """The median length, or the rate; NULL for shares."""
    reference_value: Mapped[float | None]
    rows_used: Mapped[int]
    reference_rows: Mapped[int]
    outcome: Mapped[str]
    reason: Mapped[str]
