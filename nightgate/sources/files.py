"""The `files` source: each file is a part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from nightgate.config.data import Data
from nightgate.config.sources import FilesSource
from nightgate.errors import DataError
from nightgate.sources.delimited import DelimitedFile
from nightgate.sources.found_files import COMPRESSIONS, FoundFile, matching_files
from nightgate.sources.json_lines import read_json_lines
from nightgate.sources.parquet import read_parquet
from nightgate.sources.source import Part, Plan, RawBatch
from nightgate.sources.source_table import check_columns
from nightgate.sources.text_stream import File

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    ".parquet": "parquet",
}


class Files:
    """Files in the order of their names.

    A column that slices or groups rows may be missing in some files, as where it was added later; the others may not.
    """

    def __init__(self, settings: FilesSource, data: Data, columns: Sequence[str]) -> None:
        self._settings = settings
        self._data = data
        self._columns = tuple(columns)
        needed = {data.id, *data.text_columns, data.label, data.time}
        self._optional = {*data.slices, data.group, data.updated, data.deleted} - needed
        self._lacking: set[str] = set()
        self._seen: set[str] = set()
        self._files: dict[str, FoundFile] = {}
        self._names: list[str] = []
        self._classes: tuple[str, ...] = ()

    def plan(self, before: Mapping[str, Any] | None) -> Plan:
        self._files = {file.name: file for file in matching_files(self._settings.paths)}
        plan = Plan.of((file.part for file in self._files.values()), before)
        if plan.unchanged:
            self._seen.update(self._columns)  # an earlier night has found them
        return plan

    def read(self, part: Part) -> Iterator[RawBatch]:
        yield from self.read_file(self._files[part.name])

    def read_file(self, file: FoundFile, class_names: Sequence[str] = ()) -> Iterator[RawBatch]:
        """The rows of one file.

        Args:
            class_names: of the class numbers in a Parquet file that does not name them itself.

        Raises:
            DataError: it is empty, damaged, in another encoding or lacks a column.
        """
        kind, compression = _format_of(file, self._settings)
        self._names.append(file.name)
        folder_values = {name: value for name, value in file.folder_values.items() if name in self._columns}
        required = [name for name in self._columns if name not in self._optional and name not in folder_values]
        with file.local() as path:
            here = File(path, file.name, compression)
            for batch in self._batches(here, kind, required, class_names):
                yield self._completed(batch, folder_values)

    def after(self) -> dict[str, Any]:
        if missing := self._lacking - self._seen:
            place = f"none of the {len(self._names):,} files, such as {self._names[0]},"
            check_columns(sorted(missing), sorted(self._seen), place)
        return {}

    def _batches(
        self, file: File, kind: str, required: Sequence[str], class_names: Sequence[str]
    ) -> Iterator[RawBatch]:
        settings, data, columns = self._settings, self._data, self._columns
        if kind == "parquet":
            return read_parquet(file, columns, required, data, class_names)
        if kind == "jsonl":
            return read_json_lines(file, settings.encoding, columns, required, data)
        delimiter = settings.delimiter or {"csv": ",", "tsv": "\t"}[kind]
        delimited = DelimitedFile(file, delimiter, settings.encoding, data.label, frozenset(data.label_index))
        return delimited.read(columns, required, settings.quoting)

    def _completed(self, batch: RawBatch, folder_values: Mapping[str, str | None]) -> RawBatch:
        """With the columns that its folders name, and without values for those that it lacks."""
        if batch.classes and self._classes not in ((), batch.classes):
            raise DataError(
                f"{batch.place} names its classes {', '.join(batch.classes)}, other files {', '.join(self._classes)}",
                next_step="write them with the same names, or name the labels in data.labels instead of numbers",
            )
        self._classes = batch.classes or self._classes
        table = batch.table
        found = {*table.column_names, *folder_values}
        self._seen |= found
        for name in self._columns:
            if name not in table.column_names:
                value = pa.scalar(folder_values.get(name), pa.string())
                table = table.append_column(name, pa.repeat(value, table.num_rows))
        self._lacking |= set(self._columns) - found
        return replace(batch, table=table.select(self._columns))


def _format_of(file: FoundFile, source: FilesSource) -> tuple[str, str | None]:
    """The format of a file, and its compression.

    Raises:
        DataError: neither its name nor the source says what it is.
    """
    path = file.path
    compression = COMPRESSIONS.get(path.suffix.lower())
    suffix = (path.with_suffix("") if compression else path).suffix.lower()
    kind = FORMATS.get(suffix, "") if source.format == "auto" else source.format
    if not kind:
        raise DataError(
            f"{file.name} has the unknown extension {suffix!r}; known are {', '.join(FORMATS)}, each with .gz or .zst",
            next_step='name the format: source = { kind = "files", format = "csv", ... }',
        )
    return kind, compression
