"""Whether a model's F1 has fallen since its promotion by more than chance: newest rows against the rows of that time.

    fall = largest_fall(at_promotion, rows_since, arrived, num_labels=3, average="weighted")
    alarm = fall is not None and fall.z > LIMIT

F1 depends on the shares of the classes, which shift without any fault of the model. So the rows of the promotion are
weighted, class by class, to the shares of the new rows (direct standardisation): the F1 expected of a model that treats
each class as it did then. With C[t, p] rows of class t predicted as p then, and n[t] rows of the class now,
    expected = F1(n[t] C[t, p] / sum C[t, :])        z = (expected - F1 now) / sqrt(V then + V now)
The variances are of the first order (delta method, as for F1 in Takahashi et al. 2022, 'Confidence interval for
micro-averaged F1 and macro-averaged F1 scores', here with the numbers of rows of each class given): the sum over
rows, or over whole groups (Liang and Zeger 1986), of squared deviations of the row's derivative from its class's mean.
V now is the larger of that of the new rows and that expected of as many rows of then, since errors may be rare.

A fall of last night would drown in months of good rows, so the rows of the last 1, 2, 4, 8, ... arrivals and all of
them are compared, and the largest z counts, as windows of ADWIN are (Bifet and Gavalda 2007). `LIMIT` pays for all of
these comparisons on all nights: `benchmarks.alarms` counts the years with a false alarm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nightgate.metrics.bootstrap import FEW, Floats, Labels
from nightgate.metrics.confusion import Average, confusion_counts

LIMIT = 4.5
"""Standard errors beyond which a fall is no chance."""


class Predicted(NamedTuple):
    """Rows with their predictions, all of shape [rows]."""

    true: Labels
    predictions: Labels
    groups: Labels | None = None
    """A number for the group of each row; None: all rows are independent."""

    def only(self, chosen: NDArray[np.bool_]) -> Predicted:
        return Predicted(*(None if column is None else column[chosen] for column in self))  # type: ignore[arg-type]

    @property
    def units(self) -> int:
        """Rows, or groups, that are independent."""
        return len(self.true) if self.groups is None else len(np.unique(self.groups))


@dataclass(frozen=True)
class Fall:
    rows: int
    """Newest rows that were compared."""
    f1: float
    expected: float
    """F1 at the promotion, with the class shares of these rows."""
    z: float


def largest_fall(
    then: Predicted,
    now: Predicted,
    arrived: NDArray[np.integer],
    *,
    num_labels: int,
    average: Average,
    fewest: int = FEW,
) -> Fall | None:
    """The clearest fall among the newest rows of 1, 2, 4, ... arrivals; None where there are too few.

    Args:
        arrived: the refresh that each row of `now` came with, ascending numbers, shape [rows].
        fewest: rows, or groups, below which nothing is compared.
    """
    counted = np.isin(now.true, np.unique(then.true))  # of a class that is new nothing is expected
    now, arrived = now.only(counted), arrived[counted]
    arrivals = np.unique(arrived)[::-1]
    places = sorted({*(2**power for power in range(len(arrivals).bit_length())), len(arrivals)} - {0})
    found = []
    for place in places:
        newest = now.only(arrived >= arrivals[min(place, len(arrivals)) - 1])
        if min(newest.units, then.units) >= fewest:
            found.append(_fall(then, newest, num_labels, average))
    return max(found, key=lambda fall: fall.z, default=None)


def _fall(then: Predicted, now: Predicted, num_labels: int, average: Average) -> Fall:
    before, counts = (confusion_counts(rows.true, rows.predictions, num_labels) for rows in (then, now))
    known, rows_now = before.sum(axis=1), counts.sum(axis=1)
    weight = np.divide(rows_now, known, out=np.zeros(num_labels), where=known > 0)
    expected, of_then = _f1(weight[:, None] * before, average)
    f1, of_now = _f1(counts.astype(np.float64), average)
    spread = _spread(before, of_then)
    variance = max(float(spread @ (rows_now * weight)), _of_groups(then, weight[:, None] * of_then, before))
    variance += max(
        float(spread @ rows_now), float(_spread(counts, of_now) @ rows_now), _of_groups(now, of_now, counts)
    )
    return Fall(len(now.true), f1, expected, (expected - f1) / variance**0.5 if variance > 0 else 0.0)


def _f1(counts: Floats, average: Average) -> tuple[float, Floats]:
    """F1 of counts [true, predicted], and its derivative by each of them at given numbers of true rows."""
    true, both, hits = counts.sum(axis=1), counts.sum(axis=0) + counts.sum(axis=1), np.diag(counts)
    share = true / true.sum() if average == "weighted" else (true > 0) / np.count_nonzero(true)
    rate = np.divide(2 * share, both, out=np.zeros_like(both), where=both > 0)
    by_class = rate * hits
    lost = np.divide(by_class, both, out=np.zeros_like(both), where=both > 0)
    return float(by_class.sum()), np.diag(rate) - lost[None, :]


def _spread(counts: NDArray[np.integer], derivative: Floats) -> Floats:
    """The variance of the derivative by a row of each class, shape [labels]; with two more rows a class, spread evenly.

    Those keep a class of few rows that are all right, or all wrong, from looking certain (Agresti and Coull 1998).
    """
    likely = counts + 2 / len(counts)
    likely /= likely.sum(axis=1, keepdims=True)
    means = (likely * derivative).sum(axis=1, keepdims=True)
    return np.asarray((likely * (derivative - means) ** 2).sum(axis=1))


def _of_groups(rows: Predicted, derivative: Floats, counts: NDArray[np.integer]) -> float:
    """The variance between groups: the sum of squares of their deviations; 0 without groups."""
    if rows.groups is None:
        return 0.0
    means = (counts * derivative).sum(axis=1) / np.maximum(counts.sum(axis=1), 1)
    deviations = derivative - means[:, None]
    return float((np.bincount(rows.groups, weights=deviations[rows.true, rows.predictions]) ** 2).sum())
