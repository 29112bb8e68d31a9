"""The `sql` source: a table or a query of any database that SQLAlchemy reaches, read in a read-only transaction.

A night reads all of it, or only what is behind the mark of the last night: rows whose `updated` (else `time`) is at
most `lag` before the newest that was read. The mark is stored with the snapshot that holds the rows, by which rows that
are read twice are recognised. One SELECT sees the table as of one moment, whatever is written meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import DataError as BadValueError
from sqlalchemy.pool import NullPool

from nightgate.config.data import Data
from nightgate.config.sources import SqlSource
from nightgate.config.values import duration
from nightgate.database_urls import read_url, safe_url, without_secrets
from nightgate.durable_files import user_path
from nightgate.errors import ConfigurationError, DataError, SourceUnavailableError
from nightgate.schedule import Night
from nightgate.sources.source import BATCH_ROWS, Part, Plan, RawBatch
from nightgate.sources.source_table import check_columns
from nightgate.sources.sql_mark import Mark, as_value, column_of, kind_of, newest_mark
from nightgate.sources.times import moment

_READ_ONLY = {
    "postgresql": "SET TRANSACTION READ ONLY",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
    "oracle": "SET TRANSACTION READ ONLY",
    "sqlite": "PRAGMA query_only = ON",
}
"""The first statement of a transaction. Elsewhere nothing but a SELECT is sent, and rolled back."""
_PACKAGES = {"psycopg": "nightgate[postgres]", "MySQLdb": "mysqlclient"}
"""What to install for a driver, where the package has another name."""
_FETCHED = 512
"""Rows at a time: of a thousand and more the garbage collector looks through all objects of the process, again and
again, which took a third of the time."""
_EXAMPLE = "postgresql://user:password@host/database"


class Sql:
    """A table or a query, as one part."""

    def __init__(self, settings: SqlSource, data: Data, columns: Sequence[str], night: Night) -> None:
        self._settings, self._data, self._columns, self._night = settings, data, columns, night
        self._name = _name(settings)
        self._bounds: dict[str, Any] = {}
        self._mark: Mark | None = None
        self._time_kind = ""
        self._swept = night.date.isoformat()

    def plan(self, before: Mapping[str, Any] | None) -> Plan:
        """One part: the rows behind the mark, or all of them.

        All are read where `sweep` asks for it, and where the mark does not tell what is new: the query or the column
        of the mark has changed, or the table's newest row is older than the mark.

        Raises:
            ConfigurationError, DataError: as of `look_at`.
        """
        look_at(self._settings, self._columns)
        if before and self._name in before["parts"]:
            self._go_on(before["after"], before.get("future", {}).get(self._name))
        return Plan((), (Part(self._name, "", complete=not self._bounds),))

    def read(self, part: Part) -> Iterator[RawBatch]:
        """The rows in the order in which the database gives them.

        Raises:
            ConfigurationError, DataError: as of `look_at`.
        """
        query = sa.select(*map(sa.column, self._columns)).select_from(_rows(self._settings))
        if self._bounds:
            # Without a type nothing is cast: the driver binds a value as the type that it gave.
            bounds = [
                sa.column(name) >= sa.bindparam(None, value, type_=sa.types.NullType())
                for name, value in self._bounds.items()
            ]
            query = query.where(sa.or_(*bounds, sa.column(column_of(self._data)).is_(None)))
        number = 0
        with (
            _connected(self._settings) as connection,
            connection.execution_options(yield_per=BATCH_ROWS).execute(query) as result,
        ):
            for columns in _batches(result, self._columns):
                self._advance(columns)
                num_rows = len(columns[self._columns[0]])
                ids = columns[self._data.id] if self._data.id else [None] * num_rows
                # An id finds a row again, its number does not.
                numbers = [str(place if name is None else name) for place, name in enumerate(ids, number + 1)]
                table = pa.table({name: _array(values) for name, values in columns.items()})
                yield RawBatch(table, part.name, pa.array(numbers))
                number += num_rows

    def after(self) -> dict[str, Any]:
        """The mark (None where every night reads all), what it belongs to, and the night of the last whole read."""
        mark = asdict(self._mark) if self._mark else None
        return {"of": self._meaning(), "mark": mark, "time_kind": self._time_kind, "swept": self._swept}

    def _go_on(self, after: Mapping[str, Any], future: int | None) -> None:
        """Set from where the columns are read, if only new rows need to be.

        Args:
            future: time (microseconds since 1970) from which on rows were not used yet, since their time had not come.
        """
        if not after.get("mark") or after["of"] != self._meaning() or self._sweep_is_due(after["swept"]):
            return
        mark, data = Mark(**after["mark"]), self._data
        kinds = {column_of(data): mark.kind}
        bounds = {column_of(data): mark.before(duration(data.lag), data)}
        if future is not None and data.time and data.time != column_of(data):
            kinds[data.time] = after["time_kind"]
            bounds[data.time] = as_value(after["time_kind"], moment(future), data)
        newest = sa.select(*(sa.func.max(sa.column(name)) for name in bounds)).select_from(_rows(self._settings))
        with _connected(self._settings) as connection:
            found = dict(zip(bounds, connection.execute(newest).one(), strict=True))
        # Else a column holds something else now, or the newest rows are gone: restored from a backup, for example.
        if all(kinds[name] == kind_of(found[name], data) != "" and found[name] >= bounds[name] for name in bounds):
            self._bounds, self._mark, self._swept = bounds, mark, after["swept"]
            self._time_kind = after["time_kind"]

    def _advance(self, columns: Mapping[str, Sequence[Any]]) -> None:
        data = self._data
        if self._has_marks():
            self._mark = newest_mark(columns[column_of(data)], self._mark, data, self._night.data_until)
            times = columns[data.time] if data.time else ()
            self._time_kind = self._time_kind or next(filter(None, (kind_of(time, data) for time in times)), "")

    def _has_marks(self) -> bool:
        data = self._data
        return bool(column_of(data)) and (data.sweep != 1 or bool(data.updated and data.deleted))

    def _sweep_is_due(self, swept: str) -> bool:
        data = self._data
        if not self._has_marks():
            return True
        if data.sweep == 0 or (data.updated and data.deleted):
            return False
        return (self._night.date - date.fromisoformat(swept)).days >= data.sweep

    def _meaning(self) -> str:
        data = self._data
        read = self._settings.table or _query(self._settings)
        facts = [read, *self._columns, column_of(data), data.time_format, data.timezone]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _batches(result: sa.CursorResult[Any], names: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """The values of `BATCH_ROWS` rows by column."""
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for rows in result.partitions(_FETCHED):
        for values, more in zip(columns.values(), zip(*rows, strict=True), strict=True):
            values += more
        if len(columns[names[0]]) >= BATCH_ROWS:
            yield columns
            columns = {name: [] for name in names}
    if columns[names[0]]:
        yield columns


def look_at(settings: SqlSource, columns: Sequence[str]) -> str:
    """Connect and look for the columns; what is read from where, in words.

    Raises:
        ConfigurationError: the variable with the URL is not set, or holds none.
        DataError: the database cannot be reached, or has no such table or column.
    """
    with _connected(settings) as connection:
        found = connection.execute(sa.select(sa.text("*")).select_from(_rows(settings)).where(sa.false())).keys()
        check_columns(columns, list(found), _name(settings))
    return f"{_name(settings)} of {safe_url(url_of(settings.url_env))}"


def _name(settings: SqlSource) -> str:
    return settings.table or Path(settings.query_file).name


def _rows(settings: SqlSource) -> sa.FromClause:
    if settings.table:
        schema, _, table = settings.table.rpartition(".")
        return sa.table(table, schema=schema or None)
    # Colons of casts and times are no parameters, and a comment may end the query.
    return sa.text(_query(settings).replace(":", r"\:") + "\n").columns().subquery("source")


def _query(settings: SqlSource) -> str:
    path = user_path(settings.query_file)
    try:
        query = path.read_text(encoding="utf-8").strip().rstrip(";").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(
            f"cannot read {settings.query_file}: {reason} (searched from {Path.cwd()})",
            next_step="check data.source.query_file; it is relative to the folder in which the command runs",
        ) from error
    if not query:
        raise DataError(f"{settings.query_file} is empty", next_step="write a SELECT into it")
    return query


def url_of(name: str, field: str = "data.source.url_env") -> URL:
    """The URL in the environment variable `name`, which a field of the pipeline file names.

    Raises:
        ConfigurationError: the variable is not set, or holds no URL.
    """
    given = os.environ.get(name, "")
    if not given:
        raise ConfigurationError(
            f"{field} names the environment variable {name}, which is not set",
            next_step=f"export {name}='{_EXAMPLE}' where the night runs",
        )
    try:
        url = read_url(given)
    # From None: the exception quotes the URL, with parts of the password.
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            f"{name} is not a URL of a database: {safe_url(given)}",
            next_step=f"write it as {_EXAMPLE}, with @ : / ? # % of a password as %40 %3A %2F %3F %23 %25",
        ) from None
    if url.drivername in {"postgres", "postgresql"}:
        url = url.set(drivername="postgresql+psycopg")
    return url


def engine_of(url: URL, variable: str, *, writes: bool = False) -> Engine:
    """An engine without a pool. Nothing is opened yet.

    Raises:
        ConfigurationError: the driver of the database is not installed.
    """
    try:
        return sa.create_engine(_target(url, "rwc" if writes else "ro"), poolclass=NullPool, hide_parameters=True)
    except (NoSuchModuleError, ImportError) as error:
        package = _PACKAGES.get(name, name) if (name := getattr(error, "name", None)) else ""
        missing = f"the driver {name} is not installed" if name else without_secrets(str(error), url)
        step = f"pip install '{package}'" if package else "install the package with this SQLAlchemy dialect"
        raise ConfigurationError(f"{variable} names a {url.drivername} database: {missing}", next_step=step) from None


def _target(url: URL, mode: str) -> URL:
    """The URL to connect with: SQLite's file is opened in `mode`, and an unreachable server is not waited for."""
    if url.drivername.startswith("sqlite") and url.database and not url.database.startswith((":memory:", "file:")):
        path = quote(str(user_path(url.database).absolute()))
        return url.set(database=f"file:{path}").update_query_dict({"mode": mode, "uri": "true"})
    if url.drivername == "postgresql+psycopg":
        defaults = {"connect_timeout": "10", "application_name": "nightgate"}
        return url.update_query_dict({key: value for key, value in defaults.items() if key not in url.query})
    return url


@contextmanager
def _connected(settings: SqlSource) -> Iterator[Connection]:
    """A connection in a read-only transaction. Errors of the driver become DataErrors without credentials."""
    url = url_of(settings.url_env)
    engine = engine_of(url, settings.url_env)
    try:
        with engine.connect() as connection:
            if first := _READ_ONLY.get(engine.dialect.name):
                connection.exec_driver_sql(first)
            yield connection
    except SQLAlchemyError as error:
        # From None: a driver's own text may quote the connection string.
        raise _explained(error, url, settings) from None


def _explained(error: SQLAlchemyError, url: URL, settings: SqlSource) -> DataError:
    what = f"data.source.table {settings.table}" if settings.table else settings.query_file
    detail = without_secrets(str(error.orig if isinstance(error, DBAPIError) else error), url)
    message = f"{what} of {safe_url(url)} cannot be read: {detail}"
    if may_pass(error, detail):
        step = f"check that its server runs and that {settings.url_env} names it, then run the same command again"
        return SourceUnavailableError(message, next_step=step)
    if isinstance(error, BadValueError):
        return DataError(message, next_step="cast that column to text in a query, and name its file in query_file")
    step = f"correct data.source, or the URL and its user's rights in {settings.url_env}"
    return DataError(message, next_step=step)


def may_pass(error: SQLAlchemyError, detail: str) -> bool:
    """Whether another try makes sense: SQLite has one class for all errors, servers use it for refusals too."""
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return "locked" in detail
    return not re.search("authentication failed|denied|does not exist|unknown", detail, re.IGNORECASE)


def _array(values: Sequence[Any]) -> pa.Array:
    """The values as Arrow; as text where Arrow has no type for them, or one that depends on the other rows."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1 and not kinds & {Decimal, UUID}:
        with suppress(pa.ArrowException, OverflowError):
            return pa.array(values)
    return pa.array([None if value is None else str(value) for value in values], pa.string())
