"""Rows beside that of an epoch: metrics by class and slice, confusion counts, and the pipeline's own metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.column_types import OfAttempt
from nightgate.database.metric_schema import ConfusionCell, EpochMetric, SliceMetric
from nightgate.database.schema import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nightgate.metrics.classification import SliceScore
    from nightgate.metrics.confusion import Average
    from nightgate.training.protocol import MetricValue


def add_details(
    session: Session,
    run: Run,
    place: dict[str, Any],
    slices: Sequence[SliceScore],
    confusion: NDArray[np.int64] | None,
    metrics: Sequence[MetricValue],
) -> None:
    """Insert slices, confusion counts and own metrics of one epoch and split, unless they are recorded already."""
    average = cast("Average", run.average)
    if slices and not session.scalar(count_of(SliceMetric, **place)):
        rows = [
            place
            | {
                "slice_name": one.slice_name,
                "slice_value": one.slice_value,
                "support": one.scores.support,
                "accuracy": one.scores.accuracy,
                "f1": one.scores.f1(average),
                "precision": one.scores.precision(average),
                "recall": one.scores.recall(average),
            }
            for one in slices
        ]
        session.execute(sa.insert(SliceMetric), rows)
    if confusion is not None and not session.scalar(count_of(ConfusionCell, **place)):
        names = run.label_names
        assert confusion.shape == (len(names), len(names)), f"{confusion.shape} for {len(names)} labels"
        cells = [
            place | {"true_label": true, "predicted_label": predicted, "count": int(confusion[row, column])}
            for row, true in enumerate(names)
            for column, predicted in enumerate(names)
        ]
        session.execute(sa.insert(ConfusionCell), cells)
    if metrics and not session.scalar(count_of(EpochMetric, **place)):
        session.execute(sa.insert(EpochMetric), [place | one.to_json() for one in metrics])


def count_of(table: type[OfAttempt], **place: Any) -> sa.Select[Any]:
    """A query for the number of rows of a table at a place."""
    return sa.select(sa.func.count()).select_from(table).filter_by(**place)
