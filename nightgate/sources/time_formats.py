"""Times of rows as the source writes them: ISO 8601, a format of `strptime`, or seconds or milliseconds since 1970."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Any

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"epoch_s": "seconds", "epoch_ms": "milliseconds"}
LATEST = {"epoch_s": 1e11, "epoch_ms": 1e14}
"""The year 5138: beyond it, the unit is another."""
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")


def read_moment(value: Any, time_format: str = "") -> datetime:
    """A value that is not missing as a time, which is naive where the value names no timezone.

    Args:
        time_format: as in `nightgate.config.data.Data`; times of a database or of Parquet need none.

    Raises:
        ValueError, OverflowError: it is no time of that format, or outside of the years 1 to 9999.
    """
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    text = str(value).strip()
    if time_format in _UNITS:
        number = float(text) if isinstance(value, str) else float(value)
        if not abs(number) < LATEST[time_format]:
            raise ValueError(text)
        return EPOCH + timedelta(**{_UNITS[time_format]: number})
    if time_format:
        return datetime.strptime(text, time_format)
    # Python would read some epoch times as basic ISO 8601: 1704101234567 as a day of the year 1704.
    if not isinstance(value, str) or (_NUMBER.fullmatch(text) and len(text) != 8):
        raise ValueError(text)
    return datetime.fromisoformat(text)


def why_no_time(shown: str, time_format: str = "") -> str:
    """What is wrong with a value, and the format that it looks like."""
    if time_format in _UNITS:
        return f"{shown!r} is not a number of {_UNITS[time_format]} since 1970"
    if time_format:
        return f"{shown!r} is not a time as in time_format = {time_format!r}"
    digits = len(shown.split(".")[0].lstrip("+-")) if _NUMBER.fullmatch(shown) else 0
    unit = {9: "epoch_s", 10: "epoch_s", 12: "epoch_ms", 13: "epoch_ms"}.get(digits)
    hint = f'time_format = "{unit}" reads it' if unit else 'data.time_format can name another, such as "%d-%m-%Y %H:%M"'
    return f"{shown!r} is not an ISO 8601 time such as 2026-01-31T03:15:00Z; {hint}"
