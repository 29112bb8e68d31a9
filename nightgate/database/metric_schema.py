"""Tables of metrics beside those of an epoch's row: by slice, by pair of labels, and the pipeline's own."""

from __future__ import annotations

from sqlalchemy.orm import Mapped

from nightgate.database.column_types import Base, Key, NumberKey, OfAttempt, of, one_of


class SliceMetric(OfAttempt, Base):
    """Metrics of the rows with one value of a slice, averaged as in the run. Classes are the slice `label`."""

    __tablename__ = "slice_metric"
    __table_args__ = (
        one_of("split", ("validation", "test")),
        of("run_id attempt", "attempt: run_id attempt"),
    )

    epoch: Mapped[NumberKey]
    split: Mapped[Key]
    slice_name: Mapped[Key]
    slice_value: Mapped[Key]
    support: Mapped[int]
    accuracy: Mapped[float | None]
    f1: Mapped[float | None]
    precision: Mapped[float | None]
    recall: Mapped[float | None]


class ConfusionCell(OfAttempt, Base):
    """Number of rows with a true and a predicted label: one cell of a confusion matrix."""

    __tablename__ = "confusion_cell"
    __table_args__ = (
        one_of("split", ("validation", "test")),
        of("run_id attempt", "attempt: run_id attempt"),
    )

    epoch: Mapped[NumberKey]
    split: Mapped[Key]
    true_label: Mapped[Key]
    predicted_label: Mapped[Key]
    count: Mapped[int]


class EpochMetric(OfAttempt, Base):
    """A number of one of the pipeline's own metrics (`training.metrics`)."""

    __tablename__ = "epoch_metric"
    __table_args__ = (
        one_of("split", ("validation", "test")),
        of("run_id attempt", "attempt: run_id attempt"),
    )

    epoch: Mapped[NumberKey]
    split: Mapped[Key]
    metric: Mapped[Key]
    value: Mapped[float | None]
    reason: Mapped[str]
    """Why there is no value; '' where there is one."""
