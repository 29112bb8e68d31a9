"""Column types that SQLite and PostgreSQL store alike, the base class of all tables, and keys and constraints."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator, TypeEngine


def as_text(moment: datetime) -> str:
    """A time (UTC) as stored by SQLite, of fixed width; `strftime` would write years before 1000 shorter."""
    return f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def clean(text: str) -> str:
    """Text without NUL, which PostgreSQL cannot store, and without lone surrogates, which neither engine can."""
    if text.isascii() and "\0" not in text:  # nearly every text of a night
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")


class UtcTime(TypeDecorator[datetime]):
    """An aware time: `timestamptz` on PostgreSQL, sortable text such as `2026-03-01T02:15:00.000000Z` on SQLite."""

    impl = sa.String(27)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(sa.DateTime(timezone=True))
        return dialect.type_descriptor(sa.String(27))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        assert value.tzinfo is not None, f"{value} has no timezone"
        moment = value.astimezone(UTC)
        return moment if dialect.name == "postgresql" else as_text(moment)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        del dialect
        if value is None:
            return None
        return (value if isinstance(value, datetime) else datetime.fromisoformat(value)).astimezone(UTC)


class Finite(TypeDecorator[float]):
    """A float that is finite or NULL: NaN and infinity never reach the database as numbers."""

    impl = sa.Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        del dialect
        return float(value) if value is not None and math.isfinite(value) else None


class CleanText(TypeDecorator[str]):
    """Text as `clean` leaves it."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        del dialect
        return None if value is None else clean(value)


class Base(DeclarativeBase):
    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcTime,
        float: Finite,
        str: CleanText,
        dict[str, Any]: sa.JSON,
        list[str]: sa.JSON,
    }


Key = Annotated[str, mapped_column(primary_key=True)]
NumberKey = Annotated[int, mapped_column(primary_key=True, autoincrement=False)]
Serial = Annotated[int, mapped_column(primary_key=True)]
"""A number that the database gives."""
WITHOUT_ROWID = {"sqlite_with_rowid": False}
"""For tables of short rows, whose key SQLite would store twice otherwise."""


class OfAttempt:
    """First key columns of tables whose rows belong to one attempt of a run."""

    run_id: Mapped[Key] = mapped_column(sort_order=-2)
    attempt: Mapped[NumberKey] = mapped_column(sort_order=-1)


def one_of(column: str, values: tuple[str, ...]) -> sa.CheckConstraint:
    """A check that `column` has one of `values`."""
    listed = ", ".join(f"'{value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=column)


def one_open(name: str, end: str) -> sa.Index:
    """A unique index that allows each pipeline one row whose `end` is NULL."""
    still_open = sa.text(f"{end} IS NULL")
    return sa.Index(name, "pipeline", unique=True, sqlite_where=still_open, postgresql_where=still_open)


def of(columns: str, target: str) -> sa.ForeignKeyConstraint:
    """A foreign key from `columns` to `target` ("table: column column") that protects the parent from deletion."""
    table, _, names = target.partition(": ")
    return sa.ForeignKeyConstraint(
        columns.split(), [f"{table}.{name}" for name in names.split()], ondelete="RESTRICT", onupdate="RESTRICT"
    )
