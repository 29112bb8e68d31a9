"""Values that many rows share, stored once: slices with their values, and JSON such as a configuration.

Each call is a part of the caller's transaction. Concurrent transactions may add the same value: one of them waits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.column_types import Base, clean
from nightgate.database.metric_schema import SliceName
from nightgate.database.schema import Document, DocumentValue

SlicePair = tuple[str, str]
"""Name and value of a slice."""


def _table(of: type[Base]) -> sa.Table:
    """The table itself: the ORM's queries and INSERTs of it take two to four times as long."""
    return cast("sa.Table", of.__table__)


_NAMES = _table(SliceName).c
_SLICES = sa.select(_NAMES.slice_name, _NAMES.slice_value, _NAMES.slice_id).where(
    _NAMES.slice_name.in_(sa.bindparam("names", expanding=True))
)


def add_rows(session: Session, table: type[Base], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that are new."""
    if rows:
        session.execute(sa.insert(_table(table)), rows)


def merge_rows(
    session: Session, table: type[Base], rows: Sequence[Mapping[str, Any]], on_conflict: str = "DO NOTHING"
) -> None:
    """Insert rows of which some may exist.

    Args:
        on_conflict: what to do about those, in SQL that both engines know.
    """
    if rows:
        session.execute(_merging(_table(table), tuple(rows[0]), on_conflict), rows)


@cache
def _merging(table: sa.Table, names: tuple[str, ...], on_conflict: str) -> sa.TextClause:
    """As text, because SQLAlchemy compiles an ON CONFLICT of its own every time."""
    columns, values = ", ".join(f'"{name}"' for name in names), ", ".join(f":{name}" for name in names)
    statement = sa.text(f"INSERT INTO {table.name} ({columns}) VALUES ({values}) ON CONFLICT {on_conflict}")
    return statement.bindparams(*(sa.bindparam(name, type_=table.c[name].type) for name in names))


def is_recorded(session: Session, table: type[Base], **place: Any) -> bool:
    """Whether the table has a row at a place."""
    return bool(session.scalar(_recorded(_table(table), tuple(place)), place))


@cache
def _recorded(table: sa.Table, names: tuple[str, ...]) -> sa.Select[tuple[bool]]:
    return sa.select(sa.exists().where(*(table.c[name] == sa.bindparam(name) for name in names)))


def slice_ids(session: Session, pairs: Collection[SlicePair]) -> dict[SlicePair, int]:
    """The number of each slice and value; those that are new get one."""
    stored = {pair: (clean(pair[0]), clean(pair[1])) for pair in pairs}
    names = sorted({name for name, _ in stored.values()})

    def known() -> dict[SlicePair, int]:
        return {(name, value): number for name, value, number in session.execute(_SLICES, {"names": names})}

    found = known()
    # In order, so that two transactions never wait for each other.
    if new := sorted(set(stored.values()) - found.keys()):
        rows = [{"slice_name": name, "slice_value": value} for name, value in new]
        merge_rows(session, SliceName, rows)
        found = known()
    return {pair: found[key] for pair, key in stored.items()}


def document_id(session: Session, content: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> int:
    """The number of the stored JSON that equals `content`; if it is new, it gets one.

    Args:
        given: its values that are not defaults; None: all of them.
    """
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    query = sa.select(Document.document_id).filter_by(digest=digest)
    known = session.scalar(query)
    if known is None:
        merge_rows(session, Document, [{"digest": digest, "content": content}])
        known = session.scalars(query).one()
        own = values_of(content if given is None else given)
        rows = [
            {"document_id": known, "name": name, "value": value, "is_default": name not in own}
            for name, value in values_of(content).items()
        ]
        merge_rows(session, DocumentValue, rows)
    return known


def values_of(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The values of nested JSON, each as JSON, by names such as `training.learning_rate`."""
    found: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            found |= values_of(value, f"{prefix}{key}.")
        else:
            found[clean(f"{prefix}{key}")] = json.dumps(value, ensure_ascii=False)
    return found
