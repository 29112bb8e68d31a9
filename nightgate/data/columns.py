"""Columns of numbers of equal length, in memory and in files, and sets of 64-bit hashes among them, which are found by
sorting.

    with chain.rows() as index:
        rows = index.take(index.among("id_key", ids))

Memory that a process uses for the first time costs more than the reading: a column of a million hashes takes 2.5 ms in
pieces that share their memory, and 5 to 15 ms as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nightgate.errors import SnapshotError, first_line

Columns = dict[str, NDArray[Any]]
"""Equally long columns, by name."""
Hashes = NDArray[np.uint64]
"""Sorted, each once, without 0, which stands for none."""
Mask = NDArray[np.bool_]
SMALL = {
    "text_key": np.uint64,  # the first 64 bits of the fingerprint, which sort as it does; 0: no text
    "text_rest": np.uint64,  # the other 64; not stored
    "id_key": np.uint64,  # hash of the row id; 0 without one
    "group_key": np.uint64,  # hash of the group; 0 without one
    "facts": np.uint64,  # hash of everything that is taken from the row
    "time": np.int64,
    "updated": np.int64,
    "own_label": np.int16,  # class index of the row itself
    "given": np.int8,  # index in SPLITS that the source names; -1: none
}
"""What is known of a row of a batch."""
INDEX = {name: kind for name, kind in SMALL.items() if name != "text_rest"} | {
    "label": np.int16,  # class index of the text, by the votes of all its rows; of a taken row
    "split": np.int8,  # index in SPLITS; -1: in none
    "state": np.int8,
    "part": np.int32,  # number of the part of the source that has the row
    "text_at": np.int64,  # place of its text among those of all deltas; -1: none
    "seen": np.int32,  # number of the delta that had the row first
}
"""Columns of the index."""
AGAIN = "run again with --force: the refresh moves this folder aside and writes a new one from the source"
_LAST, _HALF = np.uint64((1 << 20) - 1), np.uint64(32)
_BLOCK = 1 << 16
_PIECE = 1 << 17
"""Rows of a column that are read at a time."""
_BUFFER = 1 << 16


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


def pieces(file: pq.ParquetFile, name: str) -> Iterator[NDArray[Any]]:
    """A column of numbers, piece by piece."""
    # By one thread: each thread of Arrow's pool would use memory of its own.
    for batch in file.iter_batches(_PIECE, columns=[name], use_threads=False):
        yield batch.column(0).to_numpy()


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
    return finder(wanted)(values)


def finder(wanted: Hashes) -> Callable[[NDArray[np.uint64]], Mask]:
    """Tells which values are among these hashes."""
    # Few of many are: the last 20 bits rule out nearly all others, and 20 more those that are left, in a twentieth of
    # the time of a search.
    low, high = np.zeros((2, 1 << 20), bool)
    low[_bits(wanted)], high[_bits(wanted >> _HALF)] = True, True

    def found(values: NDArray[np.uint64]) -> Mask:
        mask = np.empty(len(values), bool)
        for start in range(0, len(values), _BLOCK):
            # Wrapped, although none is out of bounds: looking for those takes as long again.
            low.take(_bits(values[start : start + _BLOCK]), mode="wrap", out=mask[start : start + _BLOCK])
        some = np.flatnonzero(mask)
        mask[some] = high.take(_bits(values[some] >> _HALF), mode="wrap")
        some = some[mask[some]]
        if len(some):
            places = np.minimum(np.searchsorted(wanted, values[some]), len(wanted) - 1)
            mask[some] = wanted[places] == values[some]
        return mask

    return found


def _bits(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The last 20 bits."""
    return (hashes & _LAST).view(np.int64)


def mixed(*columns: NDArray[Any]) -> NDArray[np.uint64]:
    """A 64-bit hash of each row of numbers."""
    hashes = np.full(len(columns[0]), 0x9E3779B97F4A7C15, np.uint64)
    for column in columns:
        hashes ^= column.astype(np.int64, copy=False).view(np.uint64) if column.dtype.kind == "i" else column
        hashes *= np.uint64(0xBF58476D1CE4E5B9)
        hashes ^= hashes >> np.uint64(29)
    return hashes


class Index:
    """Rows by their place in a chain of deltas, those that hold no longer among them."""

    def __init__(self, files: Mapping[Path, pq.ParquetFile], gone: Sequence[NDArray[np.int64]]) -> None:
        """
        Args:
            files: of the deltas, oldest first; they stay open as long as the index is used.
            gone: places of rows that hold no longer.
        """
        self._files = files
        self._columns: Columns = {}
        self.holds: Mask = np.ones(sum(file.metadata.num_rows for file in files.values()), bool)
        for places in gone:
            self.holds[places] = False

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A whole column, which is kept."""
        if name not in self._columns:
            self._columns[name] = self.read(name)
        return self._columns[name]

    def __setitem__(self, name: str, column: NDArray[Any]) -> None:
        self._columns[name] = column

    def read(self, name: str) -> NDArray[Any]:
        """A whole column; of one value it takes no memory."""
        column = np.empty(len(self.holds), INDEX[name])
        only, is_one = np.zeros(1, column.dtype), True
        for first, values in self._pieces(name):
            only = values[:1].copy() if first == 0 else only
            if is_one and (values != only).any():
                column[:first], is_one = only, False
            if not is_one:
                column[first : first + len(values)] = values
        return np.broadcast_to(only, column.shape) if is_one else column

    def where(self, name: str, holds: Callable[[NDArray[Any]], Mask]) -> Mask:
        """Which rows hold and have a value in a column of which something is true."""
        found = np.zeros(len(self.holds), bool)
        for first, values in self._pieces(name):
            found[first : first + len(values)] = holds(values)
        return found & self.holds

    def among(self, name: str, wanted: Hashes) -> Mask:
        """Which rows hold and have one of these hashes in a column."""
        if not len(wanted):
            return np.zeros(len(self.holds), bool)
        return self.where(name, finder(wanted))

    def take(self, rows: Mask) -> Columns:
        """The rows where a mask is true, with their `place`."""
        places = np.flatnonzero(rows)
        return {name: self.at(name, places) for name in INDEX} | {"place": places}

    def at(self, name: str, places: NDArray[np.intp]) -> NDArray[Any]:
        """The values of a column at places, which ascend."""
        found = np.empty(len(places), INDEX[name])
        for first, values in self._pieces(name) if len(places) else ():
            low, high = np.searchsorted(places, (first, first + len(values)))
            found[low:high] = values[places[low:high] - first]
        return found

    def _pieces(self, name: str) -> Iterator[tuple[int, NDArray[Any]]]:
        """A column in pieces, each with the place of its first row."""
        if name in self._columns:
            for first in range(0, len(self.holds), _PIECE):
                yield first, self._columns[name][first : first + _PIECE]
            return
        first = 0
        for path, file in self._files.items():
            with named(path):
                for values in pieces(file, name):
                    yield first, values
                    first += len(values)


def opened(path: Path, *, buffer: int = _BUFFER) -> pq.ParquetFile:
    """A file of a delta.

    Args:
        buffer: bytes that are read at a time; 0: a whole column of a row group.

    Raises:
        SnapshotError: it cannot be read.
    """
    with named(path):
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=buffer)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Errors of the block become a `SnapshotError` that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise SnapshotError(f"{path} cannot be read: {first_line(error)}", next_step=AGAIN) from error
