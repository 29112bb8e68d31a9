"""Bootstrap confidence intervals of F1, and of the difference in F1 of two models on the same rows.

Rows are resampled with replacement. F1 depends on a row only through its (true, reference, candidate) labels, so rows
with the same labels form one cell, and resampling n rows is one multinomial draw over the cells. The cost grows with
the cells (at most labels cubed; 8 for the F1 of one class), not with the rows. Where rows come in groups (reviews of
one product), whole groups are resampled, because rows of a group are not independent.

The intervals are expanded percentile intervals (Hesterberg 2015, 'What Teachers Should Know About the Bootstrap'):
a plain percentile interval of n draws is too narrow by the factor sqrt((n - 1) / n) and by that between normal and
Student's t. No percentile lies beyond the worst row or group, though, and five of five groups favour the same model
once in 16 times. With fewer than `FEW` the interval therefore includes Student's, value +- t s; with fewer than
`FEWEST` there is none. A model without errors gets the interval [1, 1]: resampling sees only errors in the test rows.

Macro F1 is over the same classes in every resample. A class of very few rows is missing from some, where its F1 is 0,
so that the interval of one model reaches too low: it held the true macro F1 in 94 % of 250 samples of 500 rows with
two classes of 10 rows each, in 80 % with 5 and in 64 % with 2 or 3. That of a difference is not affected (94, 90 and
88 %; over the classes drawn in each resample 94, 90 and 88 %).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from nightgate.config.values import canonical_label
from nightgate.metrics.confusion import Average

Statistic = Average | int
"""`average` of `sklearn.metrics.f1_score` with `labels=np.unique(true)`, in resamples too; an int: one class."""
Labels = NDArray[np.int64]
Floats = NDArray[np.float64]

FEWEST, FEW = 5, 100
"""Rows (or groups) below which there is no interval, and below which it includes Student's."""
CELLS_AT_ONCE = 4_000_000
"""Drawn counts in memory at once: 32 MB."""


class Interval(NamedTuple):
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.4f} to {self.high:.4f}"


@dataclass(frozen=True)
class Estimate:
    """An F1, or a candidate's F1 minus a reference's, with its sampling uncertainty."""

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
        """One-sided p-value of the hypothesis 'not below `threshold`'; 1 where there is no interval.

        The share of resampled values at or above the threshold, or Student's tail if larger: a share of B values
        cannot resolve probabilities below 1/B, and does not account for a small number of groups.
        """
        if self.std_error is None:
            return 1.0
        share = np.count_nonzero(self.draws >= threshold) / len(self.draws)
        distance, error = threshold - self.value, _unbiased(self.std_error, self.size)
        if not error:
            return 0.0 if distance > 0 else 1.0
        return max(float(share), float(stdtr(self.size - 1, -distance / error)))


class Resampling(TypedDict, total=False):
    """Keyword arguments of `f1_estimate` and `f1_difference`, with the defaults of `_estimate`."""

    groups: Labels | None
    """A number for the group of each row, shape [rows]; None: all rows are independent."""
    confidence: float
    resamples: int
    seed: int


def f1_estimate(
    true: Labels, predictions: Labels, num_labels: int, statistic: Statistic, **resampling: Unpack[Resampling]
) -> Estimate:
    """F1 of one model with its bootstrap interval; labels are class indices of shape [rows]."""
    return _estimate(true, [predictions], num_labels, statistic, **resampling)


def f1_difference(
    true: Labels,
    reference: Labels,
    candidate: Labels,
    num_labels: int,
    statistic: Statistic,
    **resampling: Unpack[Resampling],
) -> Estimate:
    """The candidate's F1 minus the reference's with the interval of paired resampling; labels as in `f1_estimate`."""
    return _estimate(true, [reference, candidate], num_labels, statistic, **resampling)


def _estimate(
    true: Labels,
    models: list[Labels],
    num_labels: int,
    statistic: Statistic,
    *,
    groups: Labels | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    assert 0 < confidence < 1, confidence
    assert all(labels.shape == true.shape for labels in models), "one prediction for each row"
    if not len(true):
        return Estimate(math.nan, None, None, np.empty(0))
    if isinstance(statistic, int):
        # For the F1 of one class all other classes are equal, which leaves at most 8 cells.
        assert 0 <= statistic < num_labels, statistic
        true, *models = ((labels == statistic).astype(np.int64) for labels in (true, *models))
        num_labels, statistic = 2, 1
    if groups is None:
        counts, cells = _cells_of_rows(true, models, num_labels)
    else:
        counts, cells = _cells_of_groups(true, models, num_labels, groups)
    f1 = partial(_statistic, num_labels=num_labels, statistic=statistic, num_classes=len(np.unique(true)))
    value = float(f1(counts[None] @ cells)[0])
    size = int(counts.sum())
    if size < FEWEST:
        return Estimate(value, None, None, np.empty(0))
    draws = np.empty(resamples)
    rng = np.random.default_rng(seed)
    chunk = max(1, CELLS_AT_ONCE // len(counts))
    for start in range(0, resamples, chunk):
        drawn = rng.multinomial(size, counts / size, size=min(chunk, resamples - start)).astype(np.float64)
        draws[start : start + len(drawn)] = f1(drawn @ cells)
    tail = _expanded_tail((1 - confidence) / 2, size)
    low, high = map(float, np.quantile(draws, [tail, 1 - tail]))
    error = float(draws.std(ddof=1))
    if size < FEW:
        reach = float(stdtrit(size - 1, (1 + confidence) / 2)) * _unbiased(error, size)
        least = 0.0 if len(models) == 1 else -1.0
        low, high = max(least, min(low, value - reach)), min(1.0, max(high, value + reach))
    return Estimate(value, Interval(low, high), error, draws, size)


def _unbiased(std_error: float, size: int) -> float:
    """`std_error` corrected for resampling, which sees (n - 1) / n of the variance of n draws."""
    return std_error * math.sqrt(size / (size - 1))


def _expanded_tail(tail: float, size: int) -> float:
    """The share of resampled values to cut at each end for a one-sided `tail` and samples of `size` draws."""
    return NormalDist().cdf(math.sqrt(size / (size - 1)) * stdtrit(size - 1, tail))


def _statistic(drawn: Floats, *, num_labels: int, statistic: Statistic, num_classes: int) -> Floats:
    """F1 of the only model, or the second model's F1 minus the first's, for each row of [resamples, columns].

    Columns are blocks of `num_labels` counts by class: true rows, then for each model predicted rows and hits.
    `num_classes` have true rows before resampling.
    """
    true, *blocks = np.split(drawn, drawn.shape[1] // num_labels, axis=1)
    f1 = [_f1(true, blocks[at], blocks[at + 1], statistic, num_classes) for at in range(0, len(blocks), 2)]
    return f1[0] if len(f1) == 1 else f1[1] - f1[0]


def _f1(true: Floats, predicted: Floats, hits: Floats, statistic: Statistic, num_classes: int) -> Floats:
    """F1 of each resample, shape [resamples], from class counts of shape [resamples, labels]."""
    both = true + predicted
    by_class = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)
    if statistic == "macro":
        # A class without true rows adds 0 and does not count; one whose rows are not drawn adds 0 and counts, so that
        # every resample averages the same classes for both models.
        return np.asarray(by_class.sum(axis=1) / num_classes)
    if statistic == "weighted":
        return np.asarray((by_class * true).sum(axis=1) / true.sum(axis=1))
    return by_class[:, statistic]


def _cells_of_rows(true: Labels, models: list[Labels], num_labels: int) -> tuple[NDArray[np.int64], Floats]:
    """Number of rows in each joint cell, shape [cells], and the class counts of one such row, [cells, columns]."""
    shape = (num_labels,) * (1 + len(models))
    codes, counts = np.unique(np.ravel_multi_index((true, *models), shape), return_counts=True)
    kinds, *parts = np.unravel_index(codes, shape)
    return counts, _columns(kinds, parts, num_labels)


def _cells_of_groups(
    true: Labels, models: list[Labels], num_labels: int, groups: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Floats]:
    """Number of groups with the same class counts, shape [cells], and those counts, [cells, columns]."""
    assert groups.shape == true.shape, "one group for each row"
    names, index = np.unique(groups, return_inverse=True)
    columns = _columns(true, models, num_labels)
    totals = np.stack([np.bincount(index, weights=column, minlength=len(names)) for column in columns.T], axis=1)
    cells, counts = np.unique(totals, axis=0, return_counts=True)
    return counts, np.asarray(cells, dtype=np.float64)


def _columns(true: Labels, models: list[Labels], num_labels: int) -> Floats:
    """Class counts of single rows, shape [rows, columns], in the blocks that `_statistic` describes."""
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
