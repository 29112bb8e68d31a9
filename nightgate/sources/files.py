"""The `files` source: each file is a part, whose version is its size and the times of its last changes."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nightgate import config
from nightgate.durable_files import user_path
from nightgate.errors import DataError
from nightgate.sources.delimited import read_delimited
from nightgate.sources.json_lines import read_json_lines
from nightgate.sources.parquet import read_parquet
from nightgate.sources.source import Part, Plan, RawBatch

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    ".parquet": "parquet",
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


class Files:
    """Files on disk, in the order of their names."""

    swept = False

    def __init__(self, settings: config.FilesSource, columns: Sequence[str]) -> None:
        self._settings = settings
        self._columns = tuple(columns)

    def plan(self, before: Mapping[str, Any] | None) -> Plan:
        return Plan.of(map(_part, matching_files(self._settings.paths)), before)

    def read(self, part: Part) -> Iterator[RawBatch]:
        yield from read_file(Path(part.name), self._settings, self._columns)

    def after(self) -> dict[str, Any]:
        return {}


def _part(path: Path) -> Part:
    stat = path.stat()
    # With the time of the last change of the inode: a copy can keep the time of modification.
    version = f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"
    return Part(str(path), version, bytes=stat.st_size, modified=datetime.fromtimestamp(stat.st_mtime, UTC))


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


def read_file(path: Path, source: config.FilesSource, columns: Sequence[str]) -> Iterator[RawBatch]:
    """The rows of one file, with these columns.

    Raises:
        DataError: it is empty, damaged, in another encoding or lacks a column.
    """
    kind, compression = format_of(path, source)
    if kind == "parquet":
        return read_parquet(path, compression, columns)
    if kind == "jsonl":
        return read_json_lines(path, compression, source, columns)
    return read_delimited(path, compression, "," if kind == "csv" else "\t", source, columns)
