"""Bootstrap intervals of F1, and of the difference between two models on the same rows.

Rows are resampled with replacement. F1 depends on a row only through the triple (true, reference's, candidate's label),
so rows with the same triple are one cell, and resampling n rows is one multinomial draw over the cells: the cost goes
with the number of cells (at most labels cubed; 8 for the F1 of one class), not with the number of rows. Where rows come
in groups (reviews of one product), whole groups are resampled, because rows of a group are not independent; groups with
the same counts are one cell then.

The intervals are expanded percentile intervals (Hesterberg 2015, 'What Teachers Should Know About the Bootstrap'):
a plain percentile interval of n draws is too narrow by the factor sqrt((n - 1) / n) and by that between
normal and Student's t. No percentile lies beyond the worst row or group, though, and of five groups all five favour the
same model once in 16 times: with fewer than `FEW` the interval also holds Student's, value +- t s, and with fewer than
`FEWEST` there is none. A model without a single error gets the interval [1, 1]: resampling cannot see errors that the
test rows do not hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from nightgate.config_types import canonical_label

Average = Literal["weighted", "macro"]
Statistic = Average | int
"""As in `sklearn.metrics.f1_score` without `labels` ('macro' is over labels that occur); an int: of one class alone."""
Labels = NDArray[np.int64]
Floats = NDArray[np.float64]

FEWEST, FEW = 5, 100
"""Rows, or groups where rows come in groups, below which there is no interval, and below which Student's counts too."""
CELLS_AT_ONCE = 4_000_000
"""Drawn counts held in memory together: 32 MB."""


class Interval(NamedTuple):
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.4f} to {self.high:.4f}"


@dataclass(frozen=True)
class Estimate:
    """An F1, or a candidate's F1 minus a reference's, and how far chance may have moved it."""

    value: float
    """NaN where there are no rows."""
    interval: Interval | None
    """Two-sided; None with fewer than `FEWEST` rows (or groups)."""
    std_error: float | None
    """Standard deviation of the resampled values."""
    draws: Floats = field(repr=False, compare=False)
    """The resampled values; empty where there is no interval."""
    size: int = field(default=0, compare=False)
    """Rows (or groups) that were resampled."""

    def p_value(self, threshold: float) -> float:
        """Of 'not below `threshold`', one-sided; 1 where there is no interval.

        The share of resampled values at or above the threshold, or Student's tail where that is larger: no share of B
        values is between 0 and 1/B, and none of few groups knows how few they were.
        """
        if self.std_error is None:
            return 1.0
        share = np.count_nonzero(self.draws >= threshold) / len(self.draws)
        distance, error = threshold - self.value, _unbiased(self.std_error, self.size)
        if not error:
            return 0.0 if distance > 0 else 1.0
        return max(float(share), float(stdtr(self.size - 1, -distance / error)))


def f1_estimate(
    true: Labels,
    predictions: Labels,
    num_labels: int,
    statistic: Statistic,
    *,
    groups: NDArray[np.int64] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """One model's F1.

    Args:
        true: class indices, shape [rows].
        predictions: class indices, shape [rows].
        groups: a number for the group of each row, shape [rows]; None: all rows are independent.
    """
    return _estimate(true, [predictions], num_labels, statistic, groups, confidence, resamples, seed)


def f1_difference(
    true: Labels,
    reference: Labels,
    candidate: Labels,
    num_labels: int,
    statistic: Statistic,
    *,
    groups: NDArray[np.int64] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Candidate's F1 minus the reference's, both on the same rows, which are resampled in pairs; as `f1_estimate`."""
    return _estimate(true, [reference, candidate], num_labels, statistic, groups, confidence, resamples, seed)


def _estimate(
    true: Labels,
    models: list[Labels],
    num_labels: int,
    statistic: Statistic,
    groups: NDArray[np.int64] | None,
    confidence: float,
    resamples: int,
    seed: int,
) -> Estimate:
    assert 0 < confidence < 1, confidence
    assert all(labels.shape == true.shape for labels in models), "one prediction for each row"
    if not len(true):
        return Estimate(math.nan, None, None, np.empty(0))
    if isinstance(statistic, int):
        # To one class's F1 all others are one: that leaves a handful of cells.
        assert 0 <= statistic < num_labels, statistic
        true, *models = ((labels == statistic).astype(np.int64) for labels in (true, *models))
        num_labels, statistic = 2, 1
    if groups is None:
        counts, cells = _cells_of_rows(true, models, num_labels)
    else:
        counts, cells = _cells_of_groups(true, models, num_labels, groups)
    value = float(_statistic(counts[None] @ cells, num_labels, statistic)[0])
    size = int(counts.sum())
    if size < FEWEST:
        return Estimate(value, None, None, np.empty(0))
    draws = np.empty(resamples)
    rng = np.random.default_rng(seed)
    chunk = max(1, CELLS_AT_ONCE // len(counts))
    for start in range(0, resamples, chunk):
        drawn = rng.multinomial(size, counts / size, size=min(chunk, resamples - start)).astype(np.float64)
        draws[start : start + len(drawn)] = _statistic(drawn @ cells, num_labels, statistic)
    tail = _expanded_tail((1 - confidence) / 2, size)
    low, high = map(float, np.quantile(draws, [tail, 1 - tail]))
    error = float(draws.std(ddof=1))
    if size < FEW:
        reach = float(stdtrit(size - 1, (1 + confidence) / 2)) * _unbiased(error, size)
        least = 0.0 if len(models) == 1 else -1.0
        low, high = max(least, min(low, value - reach)), min(1.0, max(high, value + reach))
    return Estimate(value, Interval(low, high), error, draws, size)


def _unbiased(std_error: float, size: int) -> float:
    """Resampling n draws sees (n - 1) / n of their variance."""
    return std_error * math.sqrt(size / (size - 1))


def _expanded_tail(tail: float, size: int) -> float:
    """The share of resampled values beyond each end, for a one-sided `tail` and samples of `size` draws."""
    return NormalDist().cdf(math.sqrt(size / (size - 1)) * stdtrit(size - 1, tail))


def _statistic(drawn: Floats, num_labels: int, statistic: Statistic) -> Floats:
    """F1 of the only model, or the second model's F1 minus the first's, for each row of [resamples, columns].

    Columns are blocks of `num_labels`: true rows by class, then for each model its predicted rows and its hits.
    """
    true, *blocks = np.split(drawn, drawn.shape[1] // num_labels, axis=1)
    f1 = [_f1(true, blocks[at], blocks[at + 1], statistic) for at in range(0, len(blocks), 2)]
    return f1[0] if len(f1) == 1 else f1[1] - f1[0]


def _f1(true: Floats, predicted: Floats, hits: Floats, statistic: Statistic) -> Floats:
    """F1 by resample, shape [resamples], of class counts of shape [resamples, labels]."""
    both = true + predicted
    by_class = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)
    if statistic == "macro":
        return np.asarray(by_class.sum(axis=1) / np.count_nonzero(both, axis=1))
    if statistic == "weighted":
        return np.asarray((by_class * true).sum(axis=1) / true.sum(axis=1))
    return by_class[:, statistic]


def _cells_of_rows(true: Labels, models: list[Labels], num_labels: int) -> tuple[NDArray[np.int64], Floats]:
    """How often each joint cell occurs, shape [cells], and what one row of it counts for, [cells, columns]."""
    code = true
    for labels in models:
        code = code * num_labels + labels
    kinds, counts = np.unique(code, return_counts=True)
    parts = []
    for _ in models:
        kinds, part = np.divmod(kinds, num_labels)
        parts.append(part)
    return counts, _columns(kinds, parts[::-1], num_labels)


def _cells_of_groups(
    true: Labels, models: list[Labels], num_labels: int, groups: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Floats]:
    """As `_cells_of_rows`, where a cell is a kind of group: its class counts."""
    assert groups.shape == true.shape, "one group for each row"
    names, index = np.unique(groups, return_inverse=True)
    columns = _columns(true, models, num_labels)
    totals = np.stack([np.bincount(index, weights=column, minlength=len(names)) for column in columns.T], axis=1)
    cells, counts = np.unique(totals, axis=0, return_counts=True)
    return counts, np.asarray(cells, dtype=np.float64)


def _columns(true: Labels, models: list[Labels], num_labels: int) -> Floats:
    """Class counts of single rows, shape [rows, columns]; the blocks are those of `_statistic`."""
    one_hot = np.eye(num_labels)
    blocks = [one_hot[true]]
    for predicted in models:
        blocks += [one_hot[predicted], one_hot[true] * (true == predicted)[:, None]]
    return np.concatenate(blocks, axis=1)


def group_numbers(names: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
    """A number for the group of each row, from 0; missing groups (None, NaN, '') get one each."""
    numbers: dict[str | int, int] = {}
    index = np.empty(len(names), dtype=np.int64)
    for row, group in enumerate(names):
        name = canonical_label(group)
        index[row] = numbers.setdefault(row if name is None else name, len(numbers))
    return index
