"""Rows beside that of an epoch: metrics by class and slice, confusion counts, and the pipeline's own metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.column_types import Base
from nightgate.database.metric_schema import ConfusionMatrix, EpochMetric, SliceMetric
from nightgate.database.schema import Attempt, Run
from nightgate.database.shared_values import SlicePair, slice_ids

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nightgate.metrics.classification import SliceScore
    from nightgate.metrics.confusion import Average
    from nightgate.training.protocol import MetricValue


def add_details(
    session: Session,
    run: Run,
    attempt: int,
    epoch: int,
    slices: Sequence[SliceScore],
    confusion: NDArray[np.int64] | None,
    metrics: Sequence[MetricValue],
    *,
    is_test: bool,
) -> None:
    """Insert slices, confusion counts and own metrics of one epoch.

    Args:
        is_test: they are of the test rows, not of the validation rows.
    """
    place = {"attempt_id": attempt_id(session, run.run_id, attempt), "epoch": epoch, "is_test": is_test}
    labels = [("label", name) for name in run.label_names]
    ids = slice_ids(session, [*labels, *((one.slice_name, one.slice_value) for one in slices)])
    if slices:
        average = cast("Average", run.average)
        session.execute(sa.insert(SliceMetric), [place | slice_row(one, average, ids) for one in slices])
    if confusion is not None:
        assert confusion.shape == (len(labels), len(labels)), f"{confusion.shape} for {len(labels)} labels"
        names = [str(ids[label]) for label in labels]
        counts = {true: dict(zip(names, row, strict=True)) for true, row in zip(names, confusion.tolist(), strict=True)}
        session.execute(sa.insert(ConfusionMatrix), place | {"counts": counts})
    if metrics:
        session.execute(sa.insert(EpochMetric), [place | one.to_json() for one in metrics])


def attempt_id(session: Session, run_id: str, attempt: int) -> int:
    """The number of an attempt in the tables with most rows."""
    return session.scalars(sa.select(Attempt.attempt_id).filter_by(run_id=run_id, attempt=attempt)).one()


def has_test_details(session: Session, run_id: str, attempt: int, epoch: int) -> bool:
    """Whether slices, confusion counts or own metrics of an epoch on the test rows are recorded."""
    place = {"attempt_id": attempt_id(session, run_id, attempt), "epoch": epoch, "is_test": True}
    return is_recorded(session, (SliceMetric, ConfusionMatrix, EpochMetric), **place)


def is_recorded(session: Session, tables: Sequence[type[Base]], **place: Any) -> bool:
    """Whether one of the tables has a row at a place."""
    return bool(session.scalar(sa.select(sa.or_(*(sa.exists(sa.select(one).filter_by(**place)) for one in tables)))))


def slice_row(one: SliceScore, average: Average, ids: Mapping[SlicePair, int]) -> dict[str, Any]:
    """The columns of the scores of one slice."""
    return {
        "slice_id": ids[one.slice_name, one.slice_value],
        "support": one.scores.support,
        "accuracy": one.scores.accuracy,
        "f1": one.scores.f1(average),
        "precision": one.scores.precision(average),
        "recall": one.scores.recall(average),
    }
