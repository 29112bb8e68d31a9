"""Parquet and other Arrow tables as batches of plain types."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nightgate.config.data import Data
from nightgate.config.values import canonical_label
from nightgate.errors import DataError, first_line
from nightgate.sources.source import BATCH_ROWS, RawBatch
from nightgate.sources.source_table import check_columns
from nightgate.sources.text_stream import File, empty_file, unpack


def read_parquet(
    file: File, columns: Sequence[str], required: Sequence[str], data: Data, names: Sequence[str] = ()
) -> Iterator[RawBatch]:
    """The rows of a file, with those of `columns` that it has.

    Args:
        names: of the class numbers in the label column, where the file does not name them itself.

    Raises:
        DataError: it is empty or damaged, or lacks a required column.
    """
    if file.compression is None:
        yield from _read(file, columns, required, data, names)
        return
    # Its columns lie in many places of the file, so it cannot be read as a stream.
    with tempfile.NamedTemporaryFile(prefix="nightgate-") as unpacked:
        unpack(file, unpacked)
        unpacked.flush()
        yield from _read(replace(file, path=Path(unpacked.name)), columns, required, data, names)


def _read(
    file: File, columns: Sequence[str], required: Sequence[str], data: Data, names: Sequence[str]
) -> Iterator[RawBatch]:
    try:
        with file.path.open("rb") as binary:
            if not binary.read(64).strip():
                raise empty_file(file)
        number = 1
        with pq.ParquetFile(file.path) as parquet:
            schema = parquet.schema_arrow
            present = [name for name in columns if name in schema.names]
            check_columns([*required, *present], schema.names, file.name)
            names = class_names((schema.metadata or {}).get(b"huggingface")).get(data.label, names)
            for batch in parquet.iter_batches(BATCH_ROWS, columns=present):
                table = pa.Table.from_batches([batch])
                yield batch_of(table, file.name, number, data, names)
                number += table.num_rows
    except PermissionError as error:
        raise DataError(
            f"cannot read {file.name}: {error.strerror}", next_step="give this user the right to read it"
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file.name} is not a Parquet file, or is truncated or damaged ({first_line(error)})",
            next_step="copy or write it again; none of its rows were used",
        ) from error


def batch_of(table: pa.Table, place: str, first: int, data: Data, names: Sequence[str] = ()) -> RawBatch:
    """A batch in plain types, whose rows are numbered from `first`.

    Args:
        names: the source's names of the class numbers in the label column.
    """
    columns = {name: _plain(table.column(name), f"{place}: column {name!r}") for name in table.column_names}
    classes: tuple[str, ...] = ()
    if names and data.label in columns and pa.types.is_integer(columns[data.label].type):
        # Star ratings fit both: class 0 is named "1". Names are used where they cover every label.
        by_name = set(data.label_index) <= {canonical_label(name) for name in names}
        if not by_name and any(str(number) in data.label_index for number in range(len(names))):
            classes = tuple(names)
        else:
            columns[data.label] = _with_names(columns[data.label], names)
    numbers = pa.array(range(first, first + table.num_rows), pa.int64())
    return RawBatch(pa.table(columns), place, numbers, classes=classes)


def class_names(metadata: bytes | None) -> dict[str, list[str]]:
    """The names of class numbers by column, from what `datasets` writes into the metadata of an Arrow schema."""
    try:
        features = json.loads(metadata or b"{}")["info"]["features"]
        return {name: list(map(str, kind["names"])) for name, kind in features.items() if "names" in kind}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _with_names(numbers: Any, names: Sequence[str]) -> pa.Array:
    """Names in the place of class numbers; a number without a name stays."""
    known = dict(enumerate(names))
    values = (None if value is None else known.get(value, str(value)) for value in numbers.to_pylist())
    return pa.array(list(values), pa.string())


def _plain(column: Any, place: str) -> Any:
    """A column without dictionaries, bytes, views, short fractions, and zones that no one knows."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_float16(column.type) or pa.types.is_float32(column.type):
        # 0.1, not 0.10000000149011612.
        return column.cast(pa.float32()).cast(pa.string()).cast(pa.float64())
    if pa.types.is_timestamp(column.type) and column.type.tz:
        try:
            pa.lib.string_to_tzinfo(column.type.tz)
        except (KeyError, ValueError):
            return column.cast(pa.timestamp(column.type.unit, "UTC"))
    if pa.types.is_string_view(column.type):
        return column.cast(pa.string())
    if pa.types.is_binary_view(column.type):
        column = column.cast(pa.large_binary())
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        try:
            return column.cast(pa.large_string())
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{place} holds bytes that are not UTF-8 text", next_step="store it as text (a string column)"
            ) from error
    return column
