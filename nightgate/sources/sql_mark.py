"""The high-water mark of a SQL table: how far it was read, as an instant and as a value of the column."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from nightgate.config.data import Data
from nightgate.errors import DataError
from nightgate.sources.source_table import is_missing
from nightgate.sources.time_formats import EPOCH

_EPOCHS = {"epoch_s": 1, "epoch_ms": 1000}
_ISO = re.compile(r"\d{4}-\d\d-\d\d(?:([T ])\d\d:\d\d(?::\d\d(?:\.\d+)?)?(Z|[+-]00:?00)?)?", re.ASCII)
"""Times as text that sort by time: ISO 8601 in one zone."""
_AS_ZERO = bytes.maketrans(b"123456789", b"000000000")


@dataclass(frozen=True)
class Mark:
    """The newest time that was read from a column, never after the night's `data_until`: rows beyond it come again."""

    kind: str
    """What the column holds: `instant`, `timestamp` (without a zone), `date`, `number`, or `text` with its shape."""
    at: str
    """ISO 8601, UTC."""

    def before(self, lag: timedelta | None, data: Data) -> Any:
        """The time `lag` before the mark, as a value to compare the column with."""
        return as_value(self.kind, datetime.fromisoformat(self.at) - (lag or timedelta()), data)


def newest_mark(values: Collection[Any], earlier: Mark | None, data: Data, until: datetime) -> Mark | None:
    """The mark once these values were read too; it never goes back.

    Raises:
        DataError: they do not tell which row is newer.
    """
    marks = _of_one_shape(values, data) or [(kind, value) for value in values if (kind := kind_of(value, data))]
    kinds = {kind for kind, _ in marks} | ({earlier.kind} if earlier else set())
    if len(kinds) > 1:
        raise _unordered(f"times as {' and '.join(sorted(kinds))}, which cannot be compared", data)
    if not marks:
        if not earlier and (strange := [value for value in values if not is_missing(value)]):
            raise _unordered(f"{str(strange[0])[:40]!r}, which does not tell which row is newer", data)
        return earlier
    kind, newest = marks[0][0], max(value for _, value in marks)
    # A time in the far future must not make later rows look old.
    at = until.astimezone(UTC) if newest >= as_value(kind, until, data) else _as_instant(kind, newest, data)
    return Mark(kind, max(at.isoformat(timespec="microseconds"), earlier.at if earlier else ""))


def _of_one_shape(values: Collection[Any], data: Data) -> list[tuple[str, Any]]:
    """The kind of texts that differ in digits alone, and the newest: in a tenth of the time; else nothing."""
    if all(type(value) is str for value in values):
        shapes = "\0".join(values).encode(errors="replace").translate(_AS_ZERO).split(b"\0")
        if len(shapes) == len(values) and len(set(shapes)) == 1 and (kind := kind_of(shapes[0].decode(), data)):
            return [(kind, max(values))]
    return []


def column_of(data: Data) -> str:
    """The column whose newest value is the mark: `updated`, else `time`; '' if there is neither."""
    return data.updated or data.time or ""


def kind_of(value: Any, data: Data) -> str:
    """How a value tells its time; '' for one that tells none: a missing one, or a text that is not ISO 8601."""
    if isinstance(value, datetime):
        return "instant" if value.tzinfo else "timestamp"
    if isinstance(value, date):
        return "date"
    if isinstance(value, str) and not data.time_format:
        shape = _ISO.fullmatch(value)
        return f"text {shape[1] or '-'}{'Z' if shape[2] else ''}" if shape else ""
    counts = isinstance(value, int | float | Decimal) and not isinstance(value, bool) and value == value
    return "number" if counts and data.time_format in _EPOCHS else ""


def _unordered(found: str, data: Data) -> DataError:
    return DataError(
        f"column {column_of(data)!r} holds {found}",
        next_step="convert it to a timestamp in a query (data.source.query_file), or set data.time_format to 'epoch_s' "
        "or 'epoch_ms' if it counts from 1970",
    )


def _as_instant(kind: str, value: Any, data: Data) -> datetime:
    if kind == "number":
        return EPOCH + timedelta(seconds=float(value) / _EPOCHS[data.time_format])
    if kind == "date":
        value = datetime(value.year, value.month, value.day)
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    assert isinstance(moment, datetime)
    return (moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(data.timezone))).astimezone(UTC)


def as_value(kind: str, at: datetime, data: Data) -> Any:
    """An instant as a value of this kind; None where the kind is unknown."""
    if not kind:
        return None
    if kind == "number":
        return int(at.timestamp() * _EPOCHS[data.time_format])
    if kind == "instant":
        return at.astimezone(UTC)
    zoned = at.astimezone(UTC if kind.endswith("Z") else ZoneInfo(data.timezone)).replace(tzinfo=None)
    if kind == "timestamp":
        return zoned
    if kind == "date":
        return zoned.date()
    # To the minute: a prefix sorts before every text that goes on, with seconds and a zone or without.
    return zoned.date().isoformat() if kind == "text -" else zoned.isoformat(kind[5], timespec="minutes")
