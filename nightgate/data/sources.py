"""Source readers: files, `datasets.load_dataset` or the sample generator, each as one frame of unconverted values.

`read_source` fails as a whole, before anything is written, when any file is damaged. Only a CSV row with too few or
too many fields is returned in `rejected`, to be quarantined.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from nightgate import config
from nightgate.data.hub_source import read_hub
from nightgate.data.sample_source import sample_reviews
from nightgate.data.source_table import GIVEN_SPLIT, ORIGIN, Quarantined, Table, check_columns, from_arrow
from nightgate.durable_files import user_path
from nightgate.errors import DataError, first_line
from nightgate.schedule import Night

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    ".parquet": "parquet",
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_LONGEST_FIELD = 2**26
MOST_EXPANSION = 200
"""Times its own size to which a compressed file may expand. Text shrinks to a tenth, zeros to a thousandth."""
FREE_EXPANSION = 64 * 2**20
"""Bytes that any compressed file may expand to."""
MOST_UNPACKED = 16 * 2**30
"""Bytes that no compressed file may expand beyond: all of it is read into memory."""
_PIECE = 4096
"""Compressed bytes that are unpacked at a time; zstd makes at most 128 MiB of them."""


@dataclass(frozen=True)
class RawRows:
    """Rows of a source: `frame` has the pipeline's columns, unconverted, and `ORIGIN`."""

    frame: pd.DataFrame
    rejected: tuple[Quarantined, ...] = ()
    classes: tuple[str, ...] = ()
    """As in `Table`."""


def read_source(data: config.Data, night: Night, *, split_column: str | None = None) -> RawRows:
    """All rows of the source of `data`, with the columns that the pipeline uses and `split_column`.

    CSV gives text, so that ids such as 007 survive; other formats give their own types. Missing values and empty CSV
    fields are None.

    Raises:
        DataError: a file or data set is missing, empty, damaged, in another encoding or lacks a column.
    """
    columns = wanted_columns(data, split_column)
    source = data.source
    if isinstance(source, config.SampleSource):
        sample = sample_reviews(source, night.data_until)
        check_columns(columns, list(sample), "the sample source")
        return RawRows(_frame([Table({name: sample[name] for name in columns}, sample["review_id"])], columns))
    if isinstance(source, config.FilesSource):
        tables = [read_file(path, source, columns) for path in matching_files(source.paths)]
        return RawRows(_frame(tables, columns), tuple(row for table in tables for row in table.rejected))
    tables = read_hub(source, data, columns)
    frame = _frame(tables, (*columns, GIVEN_SPLIT) if source.splits else columns)
    return RawRows(frame, classes=tables[0].classes)


def wanted_columns(data: config.Data, split_column: str | None) -> tuple[str, ...]:
    """The columns that the pipeline uses, each once."""
    named = (
        data.id,
        *data.text_columns,
        data.label,
        data.time,
        *data.slices,
        data.group,
        split_column,
        *data.checks.columns,
    )
    return tuple(dict.fromkeys(column for column in named if column is not None))


def matching_files(patterns: Sequence[str]) -> list[Path]:
    """The files that match paths and globs, sorted, without duplicates.

    Raises:
        DataError: a pattern that matches no file.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        expanded = str(user_path(pattern))
        # A name with brackets is a glob only if no file has that name.
        names = [expanded] if Path(expanded).exists() else glob.glob(expanded, recursive=True)  # noqa: PTH207 (Path.glob refuses absolute patterns)
        files = [Path(name) for name in names if Path(name).is_file()]
        if not files:
            folders = [name for name in sorted(names) if Path(name).is_dir()]
            if folders:
                example = f'"{folders[0].rstrip("/")}/*.parquet"'
                raise DataError(f"{pattern} is a folder", next_step=f"name the files in it, such as {example}")
            raise DataError(
                f"no file matches {pattern} (searched from {Path.cwd()})",
                next_step="check data.source.paths; they are relative to the folder in which the command runs",
            )
        for path in sorted(files):
            found.setdefault(path.resolve(), path)
    return sorted(found.values())


def format_of(path: Path, source: config.FilesSource) -> tuple[str, str | None]:
    """The format of a file, and its compression.

    Raises:
        DataError: neither its name nor the source says what it is.
    """
    compression = _COMPRESSIONS.get(path.suffix.lower())
    suffix = (path.with_suffix("") if compression else path).suffix.lower()
    kind = FORMATS.get(suffix, "") if source.format == "auto" else source.format
    if not kind:
        raise DataError(
            f"{path} has the unknown extension {suffix!r}; known are {', '.join(FORMATS)}, each with .gz or .zst too",
            next_step='name the format: source = { kind = "files", format = "csv", ... }',
        )
    return kind, compression


def read_file(path: Path, source: config.FilesSource, columns: Sequence[str]) -> Table:
    """The rows of one file, with these columns.

    Raises:
        DataError: it is empty, damaged, in another encoding or lacks a column.
    """
    kind, compression = format_of(path, source)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}", next_step="give this user the right to read it"
        ) from error
    content = _unpacked(content, compression, path)
    if not content.strip():
        raise _empty(path)
    if kind == "parquet":
        return _read_parquet(content, path, columns)
    text = _decoded(content, source.encoding, path)
    if kind == "jsonl":
        return _read_json_lines(text, path, columns)
    return _read_delimited(text, "," if kind == "csv" else "\t", path, columns)


def _unpacked(content: bytes, compression: str | None, path: Path) -> bytes:
    if compression is None or not content:
        return content
    limit = min(max(FREE_EXPANSION, MOST_EXPANSION * len(content)), MOST_UNPACKED)
    unpacked = bytearray()
    try:
        for part in (_gzip_parts if compression == "gzip" else _zstd_parts)(content):
            unpacked += part
            if len(unpacked) > limit:
                raise DataError(
                    f"{path} has {len(content):,} bytes and expands to more than {limit:,}: nothing of it was read",
                    next_step="if its rows are meant, unpack it and name the unpacked file in data.source.paths",
                )
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        what = "ends too early" if isinstance(error, EOFError) else f"is not {compression}, or is damaged ({error})"
        raise DataError(f"{path} {what}", next_step="copy or write it again; none of its rows were used") from error
    return bytes(unpacked)


def _gzip_parts(content: bytes) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        while part := file.read(2**20):
            yield part


def _zstd_parts(content: bytes) -> Iterator[bytes]:
    # The stream reader of zstandard says nothing when a frame ends too early; a decompressor's `eof` does.
    start = 0
    while start < len(content):
        frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
        while not frame.eof:
            if start >= len(content):
                raise EOFError
            yield frame.decompress(content[start : start + _PIECE])
            start += _PIECE
        start = min(start, len(content)) - len(frame.unused_data)


def codec_of(encoding: str) -> str:
    """The codec of an encoding: that of UTF-8 skips a byte order mark."""
    return "utf-8-sig" if encoding.lower().replace("_", "-") in {"utf-8", "utf8"} else encoding


def _decoded(content: bytes, encoding: str, path: Path) -> str:
    try:
        return content.decode(codec_of(encoding))
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        packed = {b"\x1f\x8b": ".gz", b"\x28\xb5": ".zst"}.get(content[:2])
        guess = "cp1252" if codec_of(encoding) == "utf-8-sig" else "utf-8"
        if content[:2] in {b"\xff\xfe", b"\xfe\xff"}:
            guess = "utf-16"
        line = content.count(b"\n", 0, start) + 1
        raise DataError(
            f"{path} is not {encoding}: byte {start} (line {line}) is 0x{content[start : start + 1].hex() or '??'}",
            next_step=f"it looks compressed: its name must end in {packed}"
            if packed
            else f'name its encoding in data.source, such as encoding = "{guess}", or save it as UTF-8',
        ) from error


def _read_delimited(text: str, delimiter: str, path: Path, columns: Sequence[str]) -> Table:
    nul = text.find("\0")
    if nul >= 0:
        raise DataError(
            f"{path}, line {text.count(chr(10), 0, nul) + 1}: NUL byte in a text file",
            next_step="write the file again; a crash during writing often leaves NUL bytes",
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(_LONGEST_FIELD)
    row_start = 1
    rows, origins, rejected = [], [], []
    try:
        header = [name.strip() for name in next(reader)]
        check_columns(columns, header, str(path))
        twice = sorted(name for name in columns if header.count(name) > 1)
        if twice:
            raise DataError(f"{path}: the header names {twice[0]!r} twice", next_step="rename one of the two columns")
        places = [header.index(name) for name in columns]
        row_start = reader.line_num + 1
        for row in reader:
            origin = f"{path}:{row_start}"
            row_start = reader.line_num + 1
            if len(row) > len(header) and not any(row[len(header) :]):
                del row[len(header) :]
            if len(row) == len(header):
                rows.append([row[place] or None for place in places])
                origins.append(origin)
            elif row:
                detail = f"has {len(row)} fields where the header has {len(header)}"
                rejected.append(Quarantined(origin, None, "bad_row", detail, delimiter.join(row)[:200]))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {row_start}: a quoted field is not closed, or text follows its closing quote ({error})",
            next_step='correct that line: a quote inside a quoted field is written twice ("")',
        ) from error
    except StopIteration:
        raise _empty(path) from None
    finally:
        csv.field_size_limit(limit)
    values = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in columns]
    return Table(dict(zip(columns, values, strict=True)), origins, rejected)


def _read_json_lines(text: str, path: Path, columns: Sequence[str]) -> Table:
    if text.lstrip()[:1] == "[":
        raise DataError(
            f"{path} holds a JSON array instead of one object a line (JSON lines)",
            next_step=f"convert it, for example: jq -c '.[]' {path} > {path.with_suffix('.jsonl')}",
        )
    rows: list[dict[str, Any]] = []
    origins = []
    # Not splitlines(): JSON may hold U+2028 and similar characters unescaped.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error}); it begins with {line[:60]!r}",
                next_step="correct or remove that line; an incomplete last line means that the file is truncated",
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: holds {line.strip()[:60]!r}, which is not an object",
                next_step='write one object a line, such as {"text": "...", "label": 5}',
            )
        rows.append(row)
        origins.append(f"{path}:{number}")
    check_columns(columns, list(dict.fromkeys(key for row in rows for key in row)), str(path))
    return Table({name: [row.get(name) for row in rows] for name in columns}, origins)


def _read_parquet(content: bytes, path: Path, columns: Sequence[str]) -> Table:
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        check_columns(columns, file.schema_arrow.names, str(path))
        table = file.read(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a Parquet file, or is truncated or damaged ({first_line(error)})",
            next_step="copy or write it again; none of its rows were used",
        ) from error
    return from_arrow(table, columns, str(path))


def _empty(path: Path) -> DataError:
    return DataError(f"{path} is empty", next_step="write it again, or remove it from data.source.paths")


def _frame(tables: Sequence[Table], columns: Iterable[str]) -> pd.DataFrame:
    joined = {name: [value for table in tables for value in table.columns[name]] for name in columns}
    joined[ORIGIN] = [origin for table in tables for origin in table.origins]
    # As objects: pandas would turn integers beside a missing value into floats, and fail on lone surrogates.
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in joined.items()})
