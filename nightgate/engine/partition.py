"""Optimal partition of a batch into parts of similar length, by the cost of padding and of each part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def cut(widths: NDArray[np.int64], power: int, part_cost: int) -> list[slice]:
    """Partition ascending `widths` into contiguous parts of least total cost, by dynamic programming.

    Args:
        widths: tokens of each text, ascending; texts of one width stay together.
        power: work of a part is its number of texts times the `power` of its greatest width.
        part_cost: overhead of one more part, in the same unit.
    """
    if not len(widths):
        return []
    ends = np.append(np.flatnonzero(np.diff(widths)) + 1, len(widths))
    begins = np.append(0, ends[:-1])
    work = widths[ends - 1].astype(np.int64) ** power
    # best[k]: least cost of all texts before the k-th begin
    best = np.zeros(len(ends) + 1, np.int64)
    came_from = np.zeros(len(ends), np.int64)
    for number, end in enumerate(ends):
        costs = best[: number + 1] + (end - begins[: number + 1]) * work[number] + part_cost
        came_from[number] = np.argmin(costs)
        best[number + 1] = costs[came_from[number]]
    parts: list[slice] = []
    number = len(ends) - 1
    while number >= 0:
        parts.append(slice(int(begins[came_from[number]]), int(ends[number])))
        number = int(came_from[number]) - 1
    return parts[::-1]
