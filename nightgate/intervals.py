"""Bootstrap intervals of F1, and of the difference between two models on the same rows. numpy only.

Rows are resampled with replacement. F1 depends on a row only through the triple (true, champion's, candidate's label),
so rows with the same triple are one cell, and resampling n rows is one multinomial draw over the cells: the cost goes
with the number of cells (at most labels cubed), not with the number of rows. Where rows come in groups (reviews of one
product), whole groups are resampled, because rows of a group are not independent; groups with the same counts are
one cell then.

The intervals are percentile intervals. A model without a single error gets the interval [1, 1]: resampling cannot
see errors that the test rows do not hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nightgate.config import canonical_label

Average = Literal["weighted", "macro"]
Labels = NDArray[np.int64]
Floats = NDArray[np.float64]

CELLS_AT_ONCE = 4_000_000
"""Drawn counts held in memory together: 32 MB."""


class Interval(NamedTuple):
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.4f} to {self.high:.4f}"


def f1_interval(
    references: Labels,
    predictions: Labels,
    num_labels: int,
    average: Average,
    *,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """The interval of one model's F1.

    Args:
        references: true class indices, shape [rows].
        predictions: predicted class indices, shape [rows].
        average: as in `sklearn.metrics.f1_score` without `labels`: 'macro' is over labels that occur.
        groups: the group of each row, shape [rows]; a row whose group is missing is a group of its own.

    Returns:
        None when there are fewer than two rows (or groups): nothing can be resampled.
    """
    return _interval(references, [predictions], num_labels, average, groups, confidence, resamples, seed)


def f1_difference_interval(
    references: Labels,
    champion: Labels,
    candidate: Labels,
    num_labels: int,
    average: Average,
    *,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """The paired interval of candidate's F1 minus champion's F1, both on the same rows; otherwise as `f1_interval`."""
    return _interval(references, [champion, candidate], num_labels, average, groups, confidence, resamples, seed)


def _interval(
    references: Labels,
    models: list[Labels],
    num_labels: int,
    average: Average,
    groups: Sequence[Any] | NDArray[Any] | None,
    confidence: float,
    resamples: int,
    seed: int,
) -> Interval | None:
    assert 0 < confidence < 1, confidence
    assert all(model.shape == references.shape for model in models), "one prediction for each row"
    counts, cells = (
        _cells_of_rows(references, models, num_labels)
        if groups is None
        else _cells_of_groups(references, models, num_labels, groups)
    )
    draws = int(counts.sum())
    if draws < 2:
        return None
    rng = np.random.default_rng(seed)
    chance = counts / draws
    scores = np.empty(resamples)
    chunk = max(1, CELLS_AT_ONCE // len(counts))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.multinomial(draws, chance, size=size).astype(np.float64) @ cells
        scores[start : start + size] = _statistic(drawn, num_labels, average)
    tail = (1 - confidence) / 2
    low, high = np.quantile(scores, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _statistic(drawn: Floats, num_labels: int, average: Average) -> Floats:
    """F1 of the only model, or the second model's F1 minus the first's, for each row of [resamples, columns].

    Columns are blocks of `num_labels`: true rows by class, then for each model its predicted rows and its hits.
    """
    true, *blocks = np.split(drawn, drawn.shape[1] // num_labels, axis=1)
    f1 = [_f1(true, blocks[at], blocks[at + 1], average) for at in range(0, len(blocks), 2)]
    return f1[0] if len(f1) == 1 else f1[1] - f1[0]


def _f1(true: Floats, predicted: Floats, hits: Floats, average: Average) -> Floats:
    """F1 by resample, shape [resamples], of class counts of shape [resamples, labels]."""
    both = true + predicted
    by_class = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)
    if average == "macro":
        return np.asarray(by_class.sum(axis=1) / np.count_nonzero(both, axis=1))
    return np.asarray((by_class * true).sum(axis=1) / true.sum(axis=1))


def _cells_of_rows(references: Labels, models: list[Labels], num_labels: int) -> tuple[NDArray[np.int64], Floats]:
    """How often each joint cell occurs, shape [cells], and what one row of it counts for, [cells, columns]."""
    code = references
    for model in models:
        code = code * num_labels + model
    kinds, counts = np.unique(code, return_counts=True)
    parts = []
    for _ in models:
        kinds, part = np.divmod(kinds, num_labels)
        parts.append(part)
    return counts, _columns(kinds, parts[::-1], num_labels)


def _cells_of_groups(
    references: Labels, models: list[Labels], num_labels: int, groups: Sequence[Any] | NDArray[Any]
) -> tuple[NDArray[np.int64], Floats]:
    """As `_cells_of_rows`, where a cell is a kind of group: its class counts."""
    index = _group_index(groups)
    assert len(index) == len(references), "one group for each row"
    if not len(index):
        return np.zeros(1, dtype=np.int64), np.zeros((1, num_labels))
    totals = np.zeros((int(index.max()) + 1, (1 + 2 * len(models)) * num_labels))
    for column, values in enumerate(_columns(references, models, num_labels).T):
        totals[:, column] = np.bincount(index, weights=values, minlength=len(totals))
    cells, counts = np.unique(totals, axis=0, return_counts=True)
    return counts, cells


def _columns(true: Labels, models: list[Labels], num_labels: int) -> Floats:
    """Class counts of single rows, shape [rows, columns]; the blocks are those of `_statistic`."""
    one_hot = np.eye(num_labels)
    blocks = [one_hot[true]]
    for predicted in models:
        blocks += [one_hot[predicted], one_hot[true] * (true == predicted)[:, None]]
    return np.concatenate(blocks, axis=1)


def _group_index(groups: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
    """A number for the group of each row, from 0; missing groups (None, NaN, '') get one each."""
    numbers: dict[str | int, int] = {}
    index = np.empty(len(groups), dtype=np.int64)
    for row, group in enumerate(groups):
        name = canonical_label(group)
        index[row] = numbers.setdefault(row if name is None else name, len(numbers))
    return index
