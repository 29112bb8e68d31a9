"""Medians of paired ratios and differences, with an interval that assumes nothing but independent rounds.

The interval of a median by order statistics (the sign test turned round): of n values, the k-th smallest and the k-th
largest enclose the true median with probability 1 - 2 P(Binomial(n, 1/2) < k). Nine rounds give 96.1 % with k = 2, six
give 96.9 % with k = 1; fewer than six rounds cannot give 95 %, and say so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Median:
    median: float
    low: float
    high: float
    confidence: float
    """What the interval really covers; below 0.95 where there were too few rounds."""

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.median:.2f}"
        short = "" if self.confidence >= CONFIDENCE else f", {self.confidence:.0%}"
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f}{short})"


def ratio(reference: Sequence[float], other: Sequence[float]) -> Median:
    """How many times faster `other` is than `reference`: seconds of the same rounds, in the same order."""
    return _median(slower / faster for slower, faster in zip(reference, other, strict=True))


def difference(reference: Sequence[float], other: Sequence[float]) -> Median:
    """By how much `other` is above `reference`: values of the same rounds, in the same order."""
    return _median(above - below for below, above in zip(reference, other, strict=True))


def _median(values: Iterable[float]) -> Median:
    found = sorted(values)
    count = len(found)
    place, covered = 1, coverage(count, 1)
    while coverage(count, place + 1) >= CONFIDENCE:
        place += 1
        covered = coverage(count, place)
    return Median(statistics.median(found), found[place - 1], found[count - place], covered)


def coverage(count: int, place: int) -> float:
    """Probability that the median lies between the `place`-th smallest and the `place`-th largest of `count`."""
    if 2 * place > count + 1:
        return 0.0
    below = sum(math.comb(count, at) for at in range(place))
    return max(0.0, 1 - below * 0.5 ** (count - 1))
