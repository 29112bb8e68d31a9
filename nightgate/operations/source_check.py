"""Check, reading few rows, that a source exists and has the columns that a pipeline names.

What cannot be seen in the head of a file is left to `nightgate.sources.files`, which reads all of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from nightgate.config.data import Data
from nightgate.config.sources import FilesSource, SqlSource
from nightgate.data.golden_rows import golden_errors, golden_source
from nightgate.sources.files import Files
from nightgate.sources.kinds import wanted_columns
from nightgate.sources.sample import COLUMNS
from nightgate.sources.source import RawBatch
from nightgate.sources.source_table import check_columns
from nightgate.sources.sql import look_at

SMALL = 2**24
"""Bytes up to which all of a file is read where its first rows lack a column, or that are fetched from a server."""


def check_sample(data: Data, split_column: str | None) -> None:
    """Check the columns against those of the sample source.

    Raises:
        DataError: a column is missing.
    """
    check_columns(wanted_columns(data, split_column), COLUMNS, "the sample source")


def check_files(source: FilesSource, data: Data, split_column: str | None) -> int:
    """The number of files, each of which has the columns as far as its head shows them.

    Raises:
        DataError: a pattern matches no file, or a file is empty or lacks a column.
    """
    files = Files(source, data, wanted_columns(data, split_column))
    parts = files.plan(None).read
    for part in parts:
        size = part.bytes or 0
        if size <= SMALL or "://" not in part.name:
            _check_rows(files.read(part), whole=size <= SMALL)
    files.after()
    return len(parts)


def check_sql(source: SqlSource, data: Data, split_column: str | None) -> str:
    """What is read from where, in words; the database is asked for the columns.

    Raises:
        ConfigurationError: the variable with the URL is not set, or holds none.
        DataError: the database cannot be reached, or has no such table or column.
    """
    return look_at(source, wanted_columns(data, split_column))


def check_golden(data: Data) -> None:
    """Check the file that `data.golden` names, if it names one.

    Raises:
        DataError: the file is missing or empty, or lacks a column.
    """
    if data.golden:
        with golden_errors():
            check_files(golden_source(data), data, None)


def _check_rows(batches: Iterator[RawBatch], *, whole: bool) -> None:
    """Read the first rows; all of them if `whole` and these lack a column: later rows of JSON lines may have it."""
    first = next(batches, None)
    if whole and first and any(column.null_count == len(column) for column in first.table.columns):
        for _ in batches:
            pass
