"""Check without reading rows that a source exists and has the columns that a pipeline names.

What cannot be seen in the head of a file is left to `nightgate.sources.files`, which reads all of it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from nightgate import config
from nightgate.data.golden_rows import golden_errors, golden_source
from nightgate.sources.files import format_of, matching_files, read_file
from nightgate.sources.kinds import wanted_columns
from nightgate.sources.sample import COLUMNS
from nightgate.sources.source_table import check_columns
from nightgate.sources.sql import look_at
from nightgate.sources.text_stream import codec_of

HEAD = 2**16
"""Characters of JSON lines that are searched for the columns."""
SMALL = 2**24
"""Bytes up to which all of a file is read, where its head does not show every column or cannot be read."""

_DAMAGED = (EOFError, csv.Error, zlib.error, zstandard.ZstdError, pa.ArrowException)


def check_sample(data: config.Data, split_column: str | None) -> None:
    """Check the columns against those of the sample source.

    Raises:
        DataError: a column is missing.
    """
    check_columns(wanted_columns(data, split_column), COLUMNS, "the sample source")


def check_files(source: config.FilesSource, data: config.Data, split_column: str | None) -> int:
    """The number of files, each of which has the columns as far as its head shows them.

    Raises:
        DataError: a pattern matches no file, or a file is empty or lacks a column.
    """
    columns = wanted_columns(data, split_column)
    files = matching_files(source.paths)
    for path in files:
        _check_file(path, source, columns)
    return len(files)


def check_sql(source: config.SqlSource, data: config.Data, split_column: str | None) -> str:
    """What is read from where, in words; the database is asked for the columns.

    Raises:
        ConfigurationError: the variable with the URL is not set, or holds none.
        DataError: the database cannot be reached, or has no such table or column.
    """
    return look_at(source, wanted_columns(data, split_column))


def check_golden(data: config.Data) -> None:
    """Check the file that `data.golden` names, if it names one.

    Raises:
        DataError: the file is missing or empty, or lacks a column.
    """
    if data.golden:
        with golden_errors():
            check_files(golden_source(data), data, None)


def _check_file(path: Path, source: config.FilesSource, columns: Sequence[str]) -> None:
    kind, compression = format_of(path, source)
    try:
        found = _head(path, kind, compression, codec_of(source.encoding))
    except (OSError, ValueError, RecursionError, *_DAMAGED):
        found = []
    if set(columns) <= set(found):
        return
    if path.stat().st_size <= SMALL:
        # Says in words what is wrong with it, unless later rows of JSON lines have the column.
        for _ in read_file(path, source, columns):
            pass
    elif found and kind != "jsonl":
        check_columns(columns, found, str(path))


def _head(path: Path, kind: str, compression: str | None, codec: str) -> list[str]:
    """The columns of a file; of JSON lines, those of the first rows."""
    with _opened(path, compression) as binary:
        if kind == "parquet":
            return list(pq.read_schema(binary).names) if compression is None else []
        text = io.TextIOWrapper(binary, encoding=codec, newline="")
        if kind == "jsonl":
            lines = text.read(HEAD).split("\n")
            rows = [json.loads(line) for line in (lines[:-1] or lines) if line.strip()]
            return [key for row in rows if isinstance(row, dict) for key in row]
        reader = csv.reader(text, delimiter="," if kind == "csv" else "\t", strict=True)
        return [name.strip() for name in next(reader, [])]


def _opened(path: Path, compression: str | None) -> BinaryIO:
    if compression == "gzip":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if compression == "zstd":
        return cast(BinaryIO, zstandard.open(path, "rb", dctx=zstandard.ZstdDecompressor(max_window_size=2**31)))
    return path.open("rb")
