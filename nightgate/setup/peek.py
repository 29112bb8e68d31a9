"""The first rows of files of which nothing is known yet, and how they are written: format, encoding, dialect."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nightgate.config.data import Data
from nightgate.config.sources import SampleSource
from nightgate.durable_files import user_path
from nightgate.errors import DataError
from nightgate.sources.delimited import DelimitedFile
from nightgate.sources.files import FORMATS
from nightgate.sources.found_files import COMPRESSIONS, FoundFile, matching_files
from nightgate.sources.json_lines import read_json_lines
from nightgate.sources.parquet import class_names, read_parquet
from nightgate.sources.source import RawBatch
from nightgate.sources.text_stream import File, guess_encoding, open_text, unpack

MOST_ROWS = 50_000
"""Rows that are looked at."""
_USUAL = {"csv": ",", "tsv": "\t"}
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_LINES = 500
"""Lines by which a dialect is recognised."""
_NO_COLUMNS = Data.model_construct(source=SampleSource(kind="sample"), text=(), label="", labels=())
"""What readers know of the pipeline's columns."""


@dataclass(frozen=True)
class Peek:
    """What is in the files."""

    source: dict[str, Any]
    """`data.source` of a pipeline that reads them."""
    columns: dict[str, list[Any]]
    """Values by the name of a column, each of `num_rows`."""
    num_rows: int
    is_whole: bool
    """Whether these are all rows."""
    class_names: dict[str, list[str]]
    """Names of class numbers, by column."""
    notes: tuple[str, ...]
    """What was recognised, and by what."""


def peek(paths: Sequence[str]) -> Peek:
    """Read the first rows of paths, globs, folders or URLs.

    Raises:
        DataError: there is no such file, it cannot be read, or it has no rows.
    """
    patterns = _patterns(paths)
    source: dict[str, Any] = {"kind": "files", "paths": patterns}
    notes: list[str] = []
    tables: list[tuple[FoundFile, pa.Table]] = []
    names: dict[str, list[str]] = {}
    num_rows = 0
    files = matching_files(patterns)
    for file in files:
        with _plain(file) as here:
            kind = _format(file.path) or _by_content(here)
            if file is files[0]:
                dialect = _dialect(here, kind, named=_format(file.path) is not None)
                source |= {field: value for field, (value, _) in dialect.items()}
                notes += [f"{field} = {json.dumps(value)}: {why}" for field, (value, why) in dialect.items()]
                names = _class_names(here) if kind == "parquet" else {}
            for batch in _batches(here, kind, source):
                tables.append((file, batch.table))
                num_rows += batch.table.num_rows
                if num_rows >= MOST_ROWS:
                    return Peek(source, _joined(tables), num_rows, False, names, tuple(notes))
    if not num_rows:
        raise DataError(f"{files[0].name} has no rows", next_step="name a file with rows")
    return Peek(source, _joined(tables), num_rows, True, names, tuple(notes))


def _patterns(paths: Sequence[str]) -> list[str]:
    """The paths; of a folder, and of files that a shell has found, a glob that finds tomorrow's files too."""
    first = paths[0]
    if len(paths) > 1:
        glob = f"{Path(first).parent}/*{_ending(Path(first))}"
        is_local = not any("://" in path for path in paths)
        return [glob] if is_local and {one.path for one in matching_files([glob])} == {*map(Path, paths)} else [*paths]
    folder = user_path(first)
    if "://" in first or not folder.is_dir():
        return [*paths]
    for pattern in ("*", "**/*"):
        endings = Counter(_ending(path) for path in folder.glob(pattern) if path.is_file() and _format(path))
        if endings:
            return [f"{first.rstrip('/')}/{pattern}{endings.most_common(1)[0][0]}"]
    raise DataError(f"{first} holds no file of {', '.join(FORMATS)}", next_step="name the files in it")


def _ending(path: Path) -> str:
    """Such as `.csv.gz`."""
    return "".join(path.suffixes[-2:]) if path.suffix.lower() in COMPRESSIONS else path.suffix


def _format(path: Path) -> str | None:
    """The format that the name of a file tells."""
    return FORMATS.get("." + _ending(path).lower().lstrip(".").split(".")[0])


@contextmanager
def _plain(file: FoundFile) -> Iterator[File]:
    """The file on this machine; compressed Parquet unpacked, because its columns lie in many places."""
    with file.local() as path:
        here = File(path, file.name, COMPRESSIONS.get(file.path.suffix.lower()))
        if here.compression is None or _format(file.path) != "parquet":
            yield here
            return
        with NamedTemporaryFile(prefix="nightgate-") as unpacked:
            unpack(here, unpacked)
            unpacked.flush()
            yield replace(here, path=Path(unpacked.name), compression=None)


def _by_content(file: File) -> str:
    """The format of a file whose name does not tell it.

    Raises:
        DataError: it is a workbook.
    """
    with file.path.open("rb") as binary:
        start = binary.read(4)
    if start == b"PK\x03\x04":
        raise DataError(
            f"{file.name} is a workbook or an archive", next_step="save its rows as CSV, and name that file"
        )
    if start == b"PAR1":
        return "parquet"
    with open_text(file, guess_encoding(file), newline="") as text:
        return "jsonl" if text.read(4096).lstrip().startswith("{") else "csv"


def _dialect(file: File, kind: str, *, named: bool) -> dict[str, tuple[str, str]]:
    """What `data.source` must say of a file, and why."""
    found = {} if named else {"format": (kind, "by its content")}
    if kind == "parquet":
        return found
    encoding = guess_encoding(file)
    if encoding != "utf-8":
        found["encoding"] = (encoding, "it is not UTF-8")
    if kind == "jsonl":
        return found
    with open_text(file, encoding, newline="") as text:
        lines = [*islice(text, _LINES)]
    delimiter = max(_DELIMITERS, key=lambda sign: (*_fit(lines, sign), sign == _USUAL[kind]))
    if delimiter != _USUAL[kind] and _fit(lines, delimiter)[1] > 1:
        found["delimiter"] = (delimiter, f"its fields stand between {_DELIMITERS[delimiter]}")
    if _delimited(file, kind, {name: value for name, (value, _) in found.items()}).recognised() == "none":
        found["quoting"] = ("none", "its quotes are letters like any other")
    return found


def _fit(lines: Sequence[str], delimiter: str) -> tuple[float, int]:
    """The share of rows, in tenths, with as many fields as the header, if these are several; and their number."""
    try:
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
    except csv.Error:
        return 0.0, 0
    # The last row may be cut.
    width, rows = len(rows[0]) if rows else 0, rows[:-1] or rows
    return (round(sum(len(row) == width for row in rows) / len(rows), 1) if width > 1 else 0.0), width


def _delimited(file: File, kind: str, source: dict[str, Any]) -> DelimitedFile:
    delimiter = source.get("delimiter", _USUAL[kind])
    return DelimitedFile(file, delimiter, source.get("encoding", "utf-8"), "", frozenset())


def _batches(file: File, kind: str, source: dict[str, Any]) -> Iterator[RawBatch]:
    """All columns of a file."""
    if kind == "parquet":
        yield from read_parquet(file, _parquet_schema(file).names, (), _NO_COLUMNS)
    elif kind == "jsonl":
        encoding = source.get("encoding", "utf-8")
        with open_text(file, encoding, newline="\n") as text:
            names = dict.fromkeys(name for line in islice(text, MOST_ROWS) for name in _keys(line))
        yield from read_json_lines(file, encoding, [*names], (), _NO_COLUMNS)
    else:
        delimited = _delimited(file, kind, source)
        # pandas writes its row numbers as a column without a name.
        yield from delimited.read([name for name in delimited.columns() if name], (), source.get("quoting", "standard"))


def _parquet_schema(file: File) -> pa.Schema:
    try:
        return pq.read_schema(file.path)
    except (pa.ArrowException, OSError):
        return pa.schema([])  # the reader says what is wrong


def _class_names(file: File) -> dict[str, list[str]]:
    return class_names((_parquet_schema(file).metadata or {}).get(b"huggingface"))


def _keys(line: str) -> list[str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return []  # the reader says what is wrong
    return list(row) if isinstance(row, dict) else []


def _joined(tables: Sequence[tuple[FoundFile, pa.Table]]) -> dict[str, list[Any]]:
    """The values of all columns; None where a file lacks one."""
    names = dict.fromkeys(name for file, table in tables for name in (*table.column_names, *file.folder_values))
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for file, table in tables:
        for name, values in columns.items():
            if name in table.column_names:
                values += _values(table[name])
            else:
                values += [file.folder_values.get(name)] * table.num_rows
    return columns


def _values(column: pa.ChunkedArray) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):  # times beyond what Python can hold
        return list(column.cast(pa.string()).to_pylist())
