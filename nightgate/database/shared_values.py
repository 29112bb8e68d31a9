"""Values that many rows share, stored once: slices with their values, and JSON such as a configuration.

Each call is a part of the caller's transaction. Concurrent transactions may add the same value: one of them waits.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date
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
_DOCUMENT = sa.select(_table(Document).c.document_id).where(_table(Document).c.digest == sa.bindparam("digest"))


def add_rows(session: Session, table: type[Base], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that are new."""
    if len(rows) > 1 and session.get_bind().dialect.name == "postgresql":
        session.execute(_adding(_table(table), tuple(rows[0])), {"rows": _json_of(rows)})
    elif rows:
        session.execute(sa.insert(_table(table)), rows)


@cache
def _adding(table: sa.Table, names: tuple[str, ...]) -> sa.TextClause:
    """Of rows as JSON: the driver takes three times as long for a statement with parameters for each."""
    columns = ", ".join(f'"{name}"' for name in names)
    return sa.text(
        f"INSERT INTO {table.name} ({columns}) SELECT {columns} "
        f"FROM json_populate_recordset(CAST(NULL AS {table.name}), CAST(:rows AS json))"
    )


def _json_of(rows: Sequence[Mapping[str, Any]]) -> str:
    text = json.dumps(rows, default=_plain)
    if any(odd in text for odd in ("NaN", "Infinity", "\\u")):
        text = json.dumps([{name: _cleaned(value) for name, value in row.items()} for row in rows], default=_plain)
    return text


def _plain(value: object) -> str:
    """Bytes, a date or a time as PostgreSQL reads it from JSON."""
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    assert isinstance(value, date), f"{value!r} is of no column's type"
    return value.isoformat()


def _cleaned(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return clean(value) if isinstance(value, str) else value


def merge_rows(
    session: Session, table: type[Base], rows: Sequence[Mapping[str, Any]], on_conflict: str = "DO NOTHING"
) -> int:
    """Insert rows of which some may exist; returns how many were inserted or changed.

    Args:
        on_conflict: what to do about those, in SQL that both engines know.
    """
    if not rows:
        return 0
    merged = session.execute(_merging(_table(table), tuple(rows[0]), on_conflict), rows)
    return int(merged.rowcount)  # type: ignore[attr-defined]


@cache
def _merging(table: sa.Table, names: tuple[str, ...], on_conflict: str) -> sa.TextClause:
    """As text, because SQLAlchemy compiles an ON CONFLICT of its own every time."""
    columns, values = ", ".join(f'"{name}"' for name in names), ", ".join(f":{name}" for name in names)
    statement = sa.text(f"INSERT INTO {table.name} ({columns}) VALUES ({values}) ON CONFLICT {on_conflict}")
    return statement.bindparams(*(sa.bindparam(name, type_=table.c[name].type) for name in names))


def update_row(session: Session, table: type[Base], values: Mapping[str, Any], **key: Any) -> None:
    """Change columns of the row with this key."""
    session.execute(
        _updating(_table(table), tuple(key), tuple(values)),
        {f"key_{name}": value for name, value in key.items()} | dict(values),
    )


@cache
def _updating(table: sa.Table, key: tuple[str, ...], names: tuple[str, ...]) -> sa.Update:
    return (
        sa.update(table)
        .where(*(table.c[name] == sa.bindparam(f"key_{name}") for name in key))
        .values({name: sa.bindparam(name) for name in names})
    )


def is_recorded(session: Session, table: type[Base], **place: Any) -> bool:
    """Whether the table has a row at a place."""
    return bool(session.scalar(_recorded(_table(table), tuple(place)), place))


@cache
def _recorded(table: sa.Table, names: tuple[str, ...]) -> sa.Select[tuple[bool]]:
    return sa.select(sa.exists().where(*(table.c[name] == sa.bindparam(name) for name in names)))


def slice_ids(session: Session, pairs: Collection[SlicePair]) -> dict[SlicePair, int]:
    """The number of each slice and value; those that are new get one."""
    stored = {pair: (clean(pair[0]), clean(pair[1])) for pair in pairs}
    known: dict[SlicePair, int] = session.info.setdefault("known", {})

    def look() -> list[SlicePair]:
        """Look up those that this process has not yet seen; returns those that are new."""
        if names := sorted({name for name, _ in set(stored.values()) - known.keys()}):
            found = session.execute(_SLICES, {"names": names})
            known.update({(name, value): number for name, value, number in found})
        # In order, so that two transactions never wait for each other.
        return sorted(set(stored.values()) - known.keys())

    if new := look():
        merge_rows(session, SliceName, [{"slice_name": name, "slice_value": value} for name, value in new])
        look()
    return {pair: known[key] for pair, key in stored.items()}


def document_id(
    session: Session, content: Mapping[str, Any], given: Callable[[], Mapping[str, Any]] | None = None
) -> int:
    """The number of the stored JSON that equals `content`; if it is new, it gets one.

    Args:
        given: its values that are not defaults; None: all of them.
    """
    digest = {"digest": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]}
    known = session.scalar(_DOCUMENT, digest)
    if known is None:
        merge_rows(session, Document, [digest | {"content": content}])
        known = session.scalars(_DOCUMENT, digest).one()
        own = values_of(given() if given else content)
        rows = [
            {"document_id": known, "name": name, "value": value, "is_default": name not in own}
            for name, value in values_of(content).items()
        ]
        merge_rows(session, DocumentValue, rows)
    return int(known)


def values_of(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The values of nested JSON, each as JSON, by names such as `training.learning_rate`."""
    found: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            found |= values_of(value, f"{prefix}{key}.")
        else:
            found[clean(f"{prefix}{key}")] = json.dumps(value, ensure_ascii=False)
    return found
