"""Predictions in a table of a database, written in one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from nightgate.config.predict import SqlTable
from nightgate.database_urls import safe_url, without_secrets
from nightgate.errors import DataError, SourceUnavailableError
from nightgate.prediction.rows import KEYS, PRECISION, keys_of
from nightgate.sources.sql import engine_of, may_pass, url_of

CHUNK = 8192
_TYPES = {pa.string(): sa.Text, pa.float64(): sa.Double, pa.int64(): sa.Integer}


class PredictionTable:
    """The predictions of one pipeline in a table, which is created if missing. It may have other columns besides.

    One of an earlier version has no precision, which was fp32: it gets the column, with NULL in its rows.
    """

    def __init__(self, settings: SqlTable, schema: pa.Schema, pipeline: str) -> None:
        self._settings, self.schema = settings, schema
        self.name = f"table {settings.table}"
        self._url = url_of(settings.url_env, "predict.output.url_env")
        self._engine = engine_of(self._url, settings.url_env, writes=True)
        folder, _, name = settings.table.rpartition(".")
        columns = (
            sa.Column(field.name, _TYPES.get(field.type, sa.DateTime(timezone=True)), nullable=True) for field in schema
        )
        self._table = sa.Table(name, sa.MetaData(schema=folder or None), *columns)
        self._is_prediction = self._table.c.predicted_at.is_not(None)
        # NULL where the column was added to a table of before, which had one pipeline.
        of_pipeline = sa.or_(self._table.c.pipeline == pipeline, self._table.c.pipeline.is_(None))
        self._is_ours = sa.and_(self._is_prediction, of_pipeline)

    def check(self, *, adds: bool) -> None:
        """Refuse a table that lacks a column or has rows that are no predictions, a label too long for a column's name,
        and a database that is out of reach.

        Raises:
            DataError: as said.
        """
        del adds  # its columns are the same
        # PostgreSQL cuts longer names, and two labels may begin alike.
        longest = 63 if self._engine.dialect.name == "postgresql" else None
        if longest and (long := [name for name in self.schema.names if len(name.encode()) > longest]):
            raise DataError(
                f"PostgreSQL has no column names of more than {longest} bytes, as these of labels: {', '.join(long)}",
                next_step="shorten these labels in [data] labels, or write the predictions to a file",
            )
        with self._connected() as connection:
            inspector = sa.inspect(connection)
            if not inspector.has_table(self._table.name, self._table.schema):
                return
            found = [column["name"] for column in inspector.get_columns(self._table.name, self._table.schema)]
            if missing := [name for name in self.schema.names if name not in {*found, PRECISION}]:
                raise DataError(
                    f"{self.name} has no column {', '.join(missing)}, which these predictions have; it has "
                    f"{', '.join(found)}",
                    next_step="name another table, or, if it holds predictions alone, add these columns to it",
                )
            others = sa.select(sa.literal(1)).select_from(self._table).where(~self._is_prediction).limit(1)
            if connection.scalar(others):
                raise DataError(
                    f"{self.name} has rows that are no predictions: their predicted_at is NULL",
                    next_step="name another table, or remove these rows",
                )

    def held(self) -> Iterator[list[str]]:
        """The keys (`keys_of`) of the rows that it has, some at a time."""
        query = sa.select(*(self._table.c[name] for name in KEYS)).where(self._is_ours)
        with self._connected() as connection:
            if not sa.inspect(connection).has_table(self._table.name, self._table.schema):
                return
            for rows in connection.execution_options(yield_per=CHUNK).execute(query).partitions():
                yield keys_of(rows)

    def write(self, parts: Iterator[pa.Table], *, adds: bool) -> None:
        """Add the predictions, or replace all that the table has of this pipeline by them.

        Raises:
            DataError: the database cannot be reached or refuses them; the table is as it was.
        """
        with self._connected() as connection:
            self._table.create(connection, checkfirst=True)
            found = sa.inspect(connection).get_columns(self._table.name, self._table.schema)
            if PRECISION not in (column["name"] for column in found):
                of_version = sa.Column(PRECISION, sa.Text, nullable=True)
                alter = Operations(MigrationContext.configure(connection))
                alter.add_column(self._table.name, of_version, schema=self._table.schema)
            if not adds:
                connection.execute(self._table.delete().where(self._is_ours))
            for part in parts:
                connection.execute(self._table.insert(), part.to_pylist())

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A transaction. Errors of the driver become DataErrors without credentials."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            detail = without_secrets(str(error.orig if isinstance(error, DBAPIError) else error), self._url)
            message, variable = f"{self.name} of {safe_url(self._url)} cannot be used: {detail}", self._settings.url_env
            again = "then run the same command again: batches that are done are kept"
            # From None: a driver's own text may quote the connection string.
            if may_pass(error, detail):
                step = f"check that its server runs and that {variable} names it, {again}"
                raise SourceUnavailableError(message, next_step=step) from None
            step = f"correct predict.output, or the URL and its user's rights in {variable}, {again}"
            raise DataError(message, next_step=step) from None
