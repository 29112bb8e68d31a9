"""Parquet and other Arrow tables as batches of plain types."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nightgate.errors import DataError, first_line
from nightgate.sources.source import BATCH_ROWS, RawBatch
from nightgate.sources.source_table import check_columns
from nightgate.sources.text_stream import empty_file, unpack


def read_parquet(path: Path, compression: str | None, columns: Sequence[str]) -> Iterator[RawBatch]:
    """The rows of a file.

    Raises:
        DataError: it is empty or damaged, or lacks a column.
    """
    if compression is None:
        yield from _read(path, path, columns)
        return
    # Its columns lie in many places of the file, so it cannot be read as a stream.
    with tempfile.NamedTemporaryFile() as file:
        unpack(path, compression, file)
        file.flush()
        yield from _read(Path(file.name), path, columns)


def _read(path: Path, shown: Path, columns: Sequence[str]) -> Iterator[RawBatch]:
    try:
        if is_blank(path):
            raise empty_file(shown)
        number = 1
        with pq.ParquetFile(path) as file:
            check_columns(columns, file.schema_arrow.names, str(shown))
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
                table = pa.Table.from_batches([batch])
                yield batch_of(table, columns, str(shown), number)
                number += table.num_rows
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, PermissionError):
            raise DataError(
                f"cannot read {shown}: {error.strerror}", next_step="give this user the right to read it"
            ) from error
        raise DataError(
            f"{shown} is not a Parquet file, or is truncated or damaged ({first_line(error)})",
            next_step="copy or write it again; none of its rows were used",
        ) from error


def is_blank(path: Path) -> bool:
    """Whether a file holds nothing but white space, of which a few bytes are tried."""
    with path.open("rb") as file:
        return not file.read(64).strip()


def batch_of(
    table: pa.Table, columns: Sequence[str], place: str, first: int, classes: tuple[str, ...] = ()
) -> RawBatch:
    """A batch of these columns in plain types, whose rows are numbered from `first`."""
    plain = pa.table({name: plain_column(table.column(name), f"{place}: column {name!r}") for name in columns})
    return RawBatch(plain, place, pa.array(range(first, first + table.num_rows), pa.int64()), classes=classes)


def plain_column(column: Any, place: str) -> Any:
    """A column without dictionaries and bytes."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        try:
            return column.cast(pa.large_string())
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{place} holds bytes that are not UTF-8 text", next_step="store it as text (a string column)"
            ) from error
    return column
