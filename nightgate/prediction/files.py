"""Predictions in a file: Parquet, CSV or JSON lines, written aside and renamed when it is whole."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq

from nightgate.durable_files import replacing, user_path
from nightgate.errors import DataError, first_line, output_errors
from nightgate.prediction.rows import KEYS, PRECISION, keys_of

CHUNK = 8192
"""Rows that are read at a time."""


class PredictionFile:
    """A file of one pipeline's predictions, which need not exist yet."""

    def __init__(self, path: str, schema: pa.Schema, pipeline: str) -> None:
        self.path, self.schema, self.pipeline = user_path(path).absolute(), schema, pipeline
        self.name = path

    def check(self, *, adds: bool) -> None:
        """Refuse a file that predictions would not be added to, or that they must not replace.

        Raises:
            DataError: it holds something else or predictions of another pipeline, or its folder is missing.
        """
        with output_errors(self.path):
            if not self.path.parent.is_dir():
                raise DataError(f"there is no folder {self.path.parent}", next_step="create it, or name another output")
            if not self.path.exists():
                return
        with _readable(self.name):
            found, first = self._start()
        # Without these columns, as one of an earlier version, it is replaced.
        fixed = {name for name in self.schema.names if not name.startswith("probability_")} - {"pipeline", PRECISION}
        problem = ""
        if not fixed <= set(found):
            problem = f"no predictions of this kind: it has no column {', '.join(sorted(fixed - set(found)))}"
        elif (owner := first.get("pipeline")) and owner != self.pipeline:
            problem = f"the predictions of pipeline {owner}"
        if problem:
            raise DataError(
                f"{self.name} exists and holds {problem}", next_step="name another output, or remove that file"
            )
        if adds and found not in (self.schema.names, [name for name in self.schema.names if name != PRECISION]):
            raise DataError(
                f"{self.name} has the columns {', '.join(found)}; these predictions have "
                f"{', '.join(self.schema.names)}",
                next_step="name another output, or predict all rows again, with --all-rows",
            )

    def held(self) -> Iterator[list[str]]:
        """The keys (`keys_of`) of the rows that it has, some at a time."""
        if not self.path.exists():
            return
        with _readable(self.name):
            if self.path.suffix == ".parquet":
                with pq.ParquetFile(self.path) as file:
                    for batch in file.iter_batches(CHUNK, columns=list(KEYS)):
                        yield keys_of(zip(*(batch.column(name).to_pylist() for name in KEYS), strict=True))
                return
            with self.path.open(encoding="utf-8", newline="") as text:
                rows: Iterator[dict[str, Any]]
                rows = map(json.loads, text) if self.path.suffix == ".jsonl" else _csv_rows(text)
                while some := list(islice(rows, CHUNK)):
                    yield keys_of([row[name] for name in KEYS] for row in some)

    def write(self, parts: Iterator[pa.Table], *, adds: bool) -> None:
        """Write the predictions, behind those that it has if they are added. It is whole or as it was.

        Raises:
            StorageError: the disk is full, read-only or forbidden.
            ConfigurationError: nothing can be written at this path.
        """
        with output_errors(self.path):
            # Left by killed processes: the caller's lock excludes a live one.
            for draft in self.path.parent.glob(f".{self.path.name}.*.tmp"):
                draft.unlink()
            with replacing(self.path) as draft:
                existing = self.path if adds and self.path.exists() else None
                if existing and existing.suffix != ".jsonl" and PRECISION not in self._start()[0]:
                    existing, parts = None, chain(self._of_earlier_version(), parts)
                if self.path.suffix == ".parquet":
                    self._write_parquet(draft, existing, parts)
                else:
                    with draft.open("wb") as file:
                        if existing:
                            with existing.open("rb") as before:
                                shutil.copyfileobj(before, file)
                        (_write_json if self.path.suffix == ".jsonl" else self._write_csv)(file, existing, parts)

    def _start(self) -> tuple[list[str], dict[str, Any]]:
        """The file's columns and its first row."""
        if self.path.suffix == ".parquet":
            with pq.ParquetFile(self.path) as file:
                rows = [row for batch in islice(file.iter_batches(1), 1) for row in batch.to_pylist()]
                return list(file.schema_arrow.names), next(iter(rows), {})
        with self.path.open(encoding="utf-8", newline="") as text:
            if self.path.suffix == ".jsonl":
                first = dict(json.loads(next(text, "{}")))
                return list(first), first
            reader = _csv_rows(text)
            return list(reader.fieldnames or ()), next(reader, {})

    def _of_earlier_version(self) -> Iterator[pa.Table]:
        """Its rows with the column that an earlier version did not write, empty."""
        as_written = pyarrow.csv.ConvertOptions(
            null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
        )
        as_csv = pyarrow.dataset.CsvFileFormat(
            pyarrow.csv.ParseOptions(newlines_in_values=True), convert_options=as_written
        )
        kind = "parquet" if self.path.suffix == ".parquet" else as_csv
        for batch in pyarrow.dataset.dataset(self.path, self.schema, kind).to_batches(batch_size=CHUNK):
            yield pa.Table.from_batches([batch])

    def _write_parquet(self, draft: Path, existing: Path | None, parts: Iterator[pa.Table]) -> None:
        with pq.ParquetWriter(draft, self.schema) as writer:
            if existing:
                with pq.ParquetFile(existing) as before:
                    for batch in before.iter_batches(CHUNK):
                        writer.write_table(pa.Table.from_batches([batch]).cast(self.schema))
            for part in parts:
                writer.write_table(part)

    def _write_csv(self, file: BinaryIO, existing: Path | None, parts: Iterator[pa.Table]) -> None:
        options = pyarrow.csv.WriteOptions(include_header=existing is None)
        with pyarrow.csv.CSVWriter(file, self.schema, write_options=options) as writer:
            for part in parts:
                writer.write_table(part)


def _write_json(file: BinaryIO, _: Path | None, parts: Iterator[pa.Table]) -> None:
    for part in parts:
        for row in part.to_pylist():
            file.write(json.dumps(row, ensure_ascii=False, default=datetime.isoformat).encode() + b"\n")


def _csv_rows(text: TextIO) -> csv.DictReader[str]:
    # By default a text of more than 131,072 characters cannot be read.
    csv.field_size_limit(sys.maxsize)
    return csv.DictReader(text)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:  # Arrow's are ValueErrors
        raise DataError(
            f"{name} exists and cannot be read as predictions: {first_line(error)}",
            next_step="name another output, or remove that file",
        ) from error
