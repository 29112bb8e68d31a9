"""Rows beside that of an epoch: its attempt, scores by class and slice, confusion counts, and the user's metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from nightgate.database.metric_schema import ConfusionMatrix, EpochMetric, SliceMetric
from nightgate.database.shared_values import SlicePair, add_rows, slice_ids
from nightgate.runs.lifecycle import Fenced

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nightgate.metrics.classification import SliceScore
    from nightgate.metrics.confusion import Average
    from nightgate.training.protocol import MetricValue


def add_details(
    session: Session,
    run: Fenced,
    attempt_id: int,
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
    place = {"attempt_id": attempt_id, "epoch": epoch, "is_test": is_test}
    labels = [("label", name) for name in run.label_names]
    ids = slice_ids(session, [*labels, *((one.slice_name, one.slice_value) for one in slices)])
    average = run.average
    add_rows(session, SliceMetric, [place | slice_row(one, average, ids) for one in slices])
    if confusion is not None:
        assert confusion.shape == (len(labels), len(labels)), f"{confusion.shape} for {len(labels)} labels"
        names = [str(ids[label]) for label in labels]
        counts = {true: dict(zip(names, row, strict=True)) for true, row in zip(names, confusion.tolist(), strict=True)}
        add_rows(session, ConfusionMatrix, [place | {"counts": counts}])
    add_rows(session, EpochMetric, [place | one.to_json() for one in metrics])


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
