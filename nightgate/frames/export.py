"""Every view as a Parquet file with types, for pandas, DuckDB, Polars and others: `nightgate db export FOLDER`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nightgate.database.transactions import Database
from nightgate.database.views import VIEWS, Kind, kind_of
from nightgate.durable_files import replacing
from nightgate.errors import ConfigurationError, output_errors

ROWS_AT_ONCE = 20_000
"""Bounds the memory: some 100 MB for the widest view."""
_TYPES: dict[Kind, pa.DataType] = {
    "time": pa.timestamp("us", tz="UTC"),
    "date": pa.date32(),
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "bytes": pa.binary(),
    "json": pa.string(),
    "text": pa.string(),
}


def export(db: Database, folder: Path, pipeline: str | None = None, *, force: bool = False) -> dict[str, int]:
    """Write all views, one state of the database, to `folder`, or nothing; returns the rows of each.

    Args:
        pipeline: only its rows; None: all.
        force: replace an earlier export.

    Raises:
        ConfigurationError: `folder` exists, and `force` is not set or it holds other files than an export.
        StorageError: the disk is full, read-only or not ours.
        DatabaseError: the database cannot be used.
    """
    with output_errors(folder):
        if folder.exists():
            foreign = _foreign(folder)
            if foreign or not force:
                more = "" if foreign else ", or replace it with --force"
                raise ConfigurationError(
                    f"{folder} {foreign or 'exists already'}", next_step=f"name a folder that does not exist{more}"
                )
        with replacing(folder) as draft:
            # As a backup: rows that were refused are in it, with some of their text.
            draft.mkdir(mode=0o700)
            return db.read(
                lambda session: {
                    view: _write(session.connection(), view, draft / f"{view}.parquet", pipeline) for view in VIEWS
                }
            )


def _foreign(path: Path) -> str:
    """What at `path` no export wrote; '' if there is nothing else."""
    if not path.is_dir():
        return "is a file, not a folder"
    others = [one.name for one in path.iterdir() if not _is_ours(one)]
    return f"holds {others[0]}, which no export wrote" if others else ""


def _is_ours(path: Path) -> bool:
    is_of_view = path.suffix == ".parquet" and path.stem in VIEWS
    return is_of_view and path.is_file() and not path.is_symlink()


def _write(connection: Connection, view: str, path: Path, pipeline: str | None) -> int:
    is_whole = pipeline is None or view == "reading"
    rows = connection.execute(
        sa.text(f"SELECT * FROM {view}" + ("" if is_whole else " WHERE pipeline = :pipeline")),
        {} if is_whole else {"pipeline": pipeline},
        execution_options={"stream_results": True},
    )
    names, count = list(rows.keys()), 0
    schema = pa.schema([(name, _TYPES[kind_of(view, name)]) for name in names])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for chunk in rows.partitions(ROWS_AT_ONCE):
            # SQLite gives times and dates as text, and truth values as numbers.
            columns = zip(*chunk, strict=True)
            arrays = [pa.array(values).cast(field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            count += len(chunk)
    return count
