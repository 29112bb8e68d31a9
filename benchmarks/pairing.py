"""Medians of paired ratios and differences, with the smallest and the largest of all rounds.

The two enclose the true median with probability 1 - 2^(1 - rounds), if rounds are independent: 96.9 % with six.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Median(NamedTuple):
    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(reference: Sequence[float], other: Sequence[float]) -> Median:
    """How many times faster `other` is than `reference`: seconds of the same rounds, in the same order."""
    return _median(slower / faster for slower, faster in zip(reference, other, strict=True))


def difference(reference: Sequence[float], other: Sequence[float]) -> Median:
    """By how much `other` is above `reference`: values of the same rounds, in the same order."""
    return _median(above - below for below, above in zip(reference, other, strict=True))


def _median(values: Iterable[float]) -> Median:
    found = sorted(values)
    return Median(statistics.median(found), found[0], found[-1])
