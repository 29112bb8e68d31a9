"""Columns of numbers of equal length, and sets of 64-bit hashes among them, which are found by sorting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = dict[str, NDArray[Any]]
"""Equally long columns, by name."""
Hashes = NDArray[np.uint64]
"""Sorted, each once, without 0, which stands for none."""
Mask = NDArray[np.bool_]
_LAST = np.uint64((1 << 20) - 1)
_BLOCK = 1 << 16


def take(columns: Columns, rows: NDArray[Any]) -> Columns:
    """The rows at these places, or where a mask is true, of each column."""
    if rows.dtype == bool:
        if rows.all():
            return dict(columns)
        rows = np.flatnonzero(rows)
    return {name: column[rows] for name, column in columns.items()}


def joined(parts: Sequence[Columns]) -> Columns:
    """The columns of several parts one after the other; those that all parts have."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    filled = [part for part in parts if len(part[names[0]])]
    if len(filled) == 1:
        # A copy of a million rows takes 90 MB.
        return {name: filled[0][name] for name in names}
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


class Growing:
    """Columns that rows are added to, without a copy of all of them at the end, which would double the memory."""

    def __init__(self, columns: Columns) -> None:
        self._columns, self._used = dict(columns), 0

    def add(self, rows: Columns) -> None:
        used = self._used
        self._used += len(next(iter(rows.values())))
        for name, column in self._columns.items():
            if self._used > len(column):
                # Pages of it that nothing was written to take no memory.
                self._columns[name] = np.empty(2 * self._used, column.dtype)
                self._columns[name][:used] = column[:used]
            self._columns[name][used : self._used] = rows[name]

    @property
    def columns(self) -> Columns:
        return {name: column[: self._used] for name, column in self._columns.items()}


def blocks(*parts: Columns) -> Iterator[Columns]:
    """The rows of several parts in pieces that fit the processor's cache."""
    for columns in parts:
        for start in range(0, len(next(iter(columns.values()))), _BLOCK):
            yield {name: column[start : start + _BLOCK] for name, column in columns.items()}


def distinct(*columns: NDArray[np.uint64]) -> Hashes:
    """The hashes of several columns."""
    # A million take 6 ms, and np.unique 680: numpy 2.3 and newer build a table of hashes first.
    values = np.sort(np.concatenate(columns))
    found: Hashes = values[np.diff(values, prepend=np.uint64(0)) != 0]
    return found


def repeated(column: NDArray[np.uint64]) -> Hashes:
    """The hashes that occur more than once."""
    # Most occur once: sorting values alone takes a fourth of sorting places.
    values = np.sort(column)
    return distinct(values[1:][values[1:] == values[:-1]])


def among(values: NDArray[np.uint64], wanted: Hashes) -> Mask:
    """Which values are among these hashes."""
    # Few of many are: their last 20 bits rule out nearly all others, in a tenth of the time of a search.
    may_be = np.zeros(1 << 20, bool)
    may_be[wanted & _LAST] = True
    found = np.empty(len(values), bool)
    for start in range(0, len(values), _BLOCK):
        found[start : start + _BLOCK] = may_be[values[start : start + _BLOCK] & _LAST]
    some = np.flatnonzero(found)
    if len(some):
        places = np.minimum(np.searchsorted(wanted, values[some]), len(wanted) - 1)
        found[some] = wanted[places] == values[some]
    return found


def mixed(*columns: NDArray[Any]) -> NDArray[np.uint64]:
    """A 64-bit hash of each row of numbers."""
    hashes = np.full(len(columns[0]), 0x9E3779B97F4A7C15, np.uint64)
    for column in columns:
        hashes ^= column.astype(np.int64, copy=False).view(np.uint64) if column.dtype.kind == "i" else column
        hashes *= np.uint64(0xBF58476D1CE4E5B9)
        hashes ^= hashes >> np.uint64(29)
    return hashes
