"""Tables of metrics beside those of an epoch's row: by slice, by pair of labels, and the pipeline's own.

They hold most of a night's numbers, so that their keys are numbers too: the views show run, split, slice and label.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from nightgate.database.column_types import WITHOUT_ROWID, Base, Key, NumberKey, Serial, of


class SliceName(Base):
    """A slice and one of its values, numbered for all tables. Classes are the slice `label`; ('', '') is all rows."""

    __tablename__ = "slice"
    __table_args__ = (sa.UniqueConstraint("slice_name", "slice_value"),)

    slice_id: Mapped[Serial]
    slice_name: Mapped[str]
    slice_value: Mapped[str]


class SliceMetric(Base):
    """Metrics of the rows with one value of a slice, averaged as in the run."""

    __tablename__ = "slice_metric"
    __table_args__ = (
        of("attempt_id", "attempt: attempt_id"),
        of("slice_id", "slice: slice_id"),
        WITHOUT_ROWID,
    )

    attempt_id: Mapped[NumberKey]
    slice_id: Mapped[NumberKey]
    """Before the epoch: the usual question is for one slice over many nights."""
    epoch: Mapped[int] = mapped_column(sa.SmallInteger, primary_key=True, autoincrement=False)
    is_test: Mapped[bool] = mapped_column(primary_key=True)
    """Whether of the test rows, not the validation rows."""
    support: Mapped[int]
    accuracy: Mapped[float | None]
    f1: Mapped[float | None]
    precision: Mapped[float | None]
    recall: Mapped[float | None]


class ConfusionMatrix(Base):
    """Numbers of rows by true and predicted label."""

    __tablename__ = "confusion_matrix"
    __table_args__ = (of("attempt_id", "attempt: attempt_id"),)

    attempt_id: Mapped[NumberKey]
    epoch: Mapped[NumberKey]
    is_test: Mapped[bool] = mapped_column(primary_key=True)
    counts: Mapped[dict[str, Any]]
    """By `slice_id` of the true and then of the predicted label, all pairs."""


class EpochMetric(Base):
    """A number of one of the pipeline's own metrics (`training.metrics`)."""

    __tablename__ = "epoch_metric"
    __table_args__ = (of("attempt_id", "attempt: attempt_id"), WITHOUT_ROWID)

    attempt_id: Mapped[NumberKey]
    epoch: Mapped[NumberKey]
    is_test: Mapped[bool] = mapped_column(primary_key=True)
    metric: Mapped[Key]
    value: Mapped[float | None]
    reason: Mapped[str]
    """Why there is no value; '' where there is one."""
