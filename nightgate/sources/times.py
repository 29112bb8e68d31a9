"""Times of rows as microseconds since 1970 (UTC), read column by column."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nightgate.sources.source_table import Problem, is_missing
from nightgate.sources.time_formats import EPOCH, LATEST, read_moment, why_no_time

NO_TIME = np.iinfo(np.int64).min
"""Stands for a time that is missing or cannot be read."""

_MICROSECOND = timedelta(microseconds=1)
_FIRST = (datetime(1, 1, 1, tzinfo=UTC) - EPOCH) // _MICROSECOND
_LAST = (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC) - EPOCH) // _MICROSECOND


def microseconds(moment: datetime) -> int:
    """An aware time as microseconds since 1970."""
    return (moment - EPOCH) // _MICROSECOND


def moment(time: int) -> datetime:
    """The opposite of `microseconds`."""
    return EPOCH + time * _MICROSECOND


def read_times(column: pa.Array, timezone: str, time_format: str = "") -> tuple[NDArray[np.int64], dict[int, Problem]]:
    """The times of a column, NO_TIME where there is none, and why, by row.

    Args:
        timezone: of times without one.
        time_format: as in `nightgate.config.data.Data`.
    """
    fast = _converted(column, timezone, time_format)
    if fast is None:
        return _one_by_one(column, ZoneInfo(timezone), time_format)
    times = fast.fill_null(NO_TIME).to_numpy(zero_copy_only=False)
    problems = {int(row): Problem("missing_time", "no time") for row in np.flatnonzero(times == NO_TIME)}
    for row in np.flatnonzero((times != NO_TIME) & ((times < _FIRST) | (times > _LAST))).tolist():
        times = times.copy() if not times.flags.writeable else times
        times[row] = NO_TIME
        problems[row] = _bad(column[row], time_format)
    return times, problems


def _converted(column: pa.Array, timezone: str, time_format: str) -> pa.Array | None:
    """The whole column at once, some 20 times faster; None where Arrow would read a value otherwise than Python."""
    kind = column.type
    try:
        if time_format in LATEST and not pa.types.is_temporal(kind):
            numbers = column.cast(pa.int64())
            if pc.any(pc.greater_equal(pc.abs(numbers), int(LATEST[time_format])), min_count=0).as_py():
                return None
            return pc.multiply(numbers, 10**6 if time_format == "epoch_s" else 10**3)
        if time_format and not pa.types.is_timestamp(kind):
            return None
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            text = pc.utf8_trim_whitespace(column)
            if not pc.all(pc.match_substring_regex(text, r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d"), min_count=0).as_py():
                return None
            zoned = pc.match_substring_regex(text, r"(Z|[+-]\d\d:\d\d)$")
            if pc.all(zoned, min_count=0).as_py():
                return text.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
            if pc.any(zoned).as_py():
                return None
            column = text.cast(pa.timestamp("us"))
        elif not pa.types.is_timestamp(kind):
            return None
        elif kind.unit != "us":
            column = column.cast(pa.timestamp("us", kind.tz), safe=kind.unit != "ns")
        if column.type.tz is None and timezone != "UTC":
            # Raises for an hour that daylight saving skips.
            column = pc.assume_timezone(column, timezone, ambiguous="earliest")
        return column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
    except pa.ArrowInvalid:
        return None


def _one_by_one(column: pa.Array, zone: ZoneInfo, time_format: str) -> tuple[NDArray[np.int64], dict[int, Problem]]:
    problems: dict[int, Problem] = {}

    def read() -> Iterator[int]:
        for row in range(len(column)):
            value: Any = None
            try:
                value = column[row].as_py()
                if is_missing(value):
                    problems[row] = Problem("missing_time", "no time")
                    yield NO_TIME
                    continue
                when = read_moment(value, time_format)
                # Converted to UTC first: a difference of two times in one zone ignores daylight saving.
                yield microseconds((when if when.tzinfo else when.replace(tzinfo=zone)).astimezone(UTC))
            except (ValueError, OverflowError):
                problems[row] = _bad(column[row], time_format)
                yield NO_TIME

    return np.fromiter(read(), np.int64, len(column)), problems


def _bad(value: pa.Scalar, time_format: str) -> Problem:
    try:
        shown = str(value.as_py())[:80]
    except (ValueError, OverflowError):
        shown = str(value.cast(pa.int64()).as_py())
    return Problem("bad_time", why_no_time(shown, time_format))
