"""The history of a fleet, `write_fleet(db, YEAR)`: nights of `benchmarks.fleet_nights`, and copies of them in SQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from benchmarks.fleet_facts import WRITTEN, Size
from benchmarks.fleet_nights import Writer, few_resamples
from nightgate.database.schema import METADATA
from nightgate.database.transactions import Database

T = TypeVar("T")


def write_fleet(db: Database, size: Size) -> list[str]:
    """Write the nights of a fleet into an empty database; returns the names of its pipelines."""
    names = list(WRITTEN[: size.written])
    with _OneTransaction.of(db) as one, few_resamples():
        for name in names:
            Writer(one, name, size).write()
    return names + add_copies(db, size)


def add_copies(db: Database, size: Size) -> list[str]:
    """Copy the pipelines that are written until there are as many as asked for; returns the names of the copies."""
    names = []
    for number in range(size.written, size.pipelines):
        source = WRITTEN[number % size.written]
        names.append(f"{source}-{number:02}")
        db.write(lambda session, source=source, name=names[-1]: _copy(session, source, name))
    db.write(_count_on)
    return names


class _OneTransaction(Database):
    """Transactions of the ledger's functions in a single one: a tenth of the time where nights are many."""

    @classmethod
    @contextmanager
    def of(cls, db: Database) -> Iterator[Self]:
        one = cls(db.home, db._url)
        with closing(one), Session(one._writer, expire_on_commit=False) as one._session, one._session.begin():
            yield one

    def _transaction(self, engine: Engine, work: Callable[[Session], T]) -> T:
        del engine
        found = work(self._session)
        self._session.flush()
        self._session.expunge_all()
        return found


# --- copies ---

_OWN = ("pipeline", "run_id", "model_run_id", "promotion_id", "anchor_id", "freeze_id", "refresh_id")
"""Columns of text that begin with a pipeline's name, or get it in front."""
_COUNTED = {"attempt_id": "attempt", "evaluation_id": "champion_evaluation"}
"""Columns of numbers, by the table that counts them."""


def _copy(session: Session, source: str, name: str) -> None:
    """Copy all rows of a pipeline to one with another name."""
    own_runs = "SELECT run_id FROM run WHERE pipeline = :source"
    chosen = {
        "pipeline": "pipeline = :source",
        "run_id": f"run_id IN ({own_runs})",
        "attempt_id": f"attempt_id IN (SELECT attempt_id FROM attempt WHERE run_id IN ({own_runs}))",
        "evaluation_id": "evaluation_id IN (SELECT evaluation_id FROM champion_evaluation WHERE pipeline = :source)",
    }
    numbers = {
        column: session.scalar(sa.text(f"SELECT MAX({column}) FROM {table}"))
        for column, table in _COUNTED.items()
        if column in METADATA.tables[table].columns
    }
    for table in METADATA.sorted_tables:
        columns = [column.name for column in table.columns]
        of = next((condition for column, condition in chosen.items() if column in columns), None)
        if of is None:
            continue  # shared by all pipelines
        values = ", ".join(_copied(column, numbers) for column in columns)
        names = ", ".join(f'"{column}"' for column in columns)
        statement = f"INSERT INTO {table.name} ({names}) SELECT {values} FROM {table.name} WHERE {of}"
        session.execute(sa.text(statement), {"source": source, "name": name})


def _copied(column: str, numbers: Mapping[str, int]) -> str:
    if column in numbers:
        return f"{column} + {numbers[column]}"
    if column in _OWN:
        return f"CAST(:name AS TEXT) || REPLACE({column}, CAST(:source AS TEXT), '')"
    return f'"{column}"'


def move_rows(source: Database, target: Database) -> None:
    """Insert all rows of a database into an empty one, which may be of another engine."""
    # Opening it has written which home it belongs to.
    target.write(lambda session: session.execute(sa.delete(METADATA.tables["setting"])))
    for table in METADATA.sorted_tables:
        # A test set after its base.
        query = sa.select(table).order_by(table.c.base_id.is_not(None)) if "base_id" in table.c else sa.select(table)
        found = source.read(lambda session, query=query: session.execute(query).mappings().all())
        if found:
            rows = [dict(row) for row in found]
            target.write(lambda session, table=table, rows=rows: session.execute(sa.insert(table), rows))
    target.write(_count_on)


def _count_on(session: Session) -> None:
    """Let PostgreSQL's counters go on behind numbers that were inserted as they are."""
    if session.get_bind().dialect.name == "postgresql":
        for column, table in (_COUNTED | {"slice_id": "slice", "document_id": "document"}).items():
            counter = f"pg_get_serial_sequence('{table}', '{column}')"
            session.execute(sa.text(f"SELECT setval({counter}, (SELECT MAX({column}) FROM {table}))"))
