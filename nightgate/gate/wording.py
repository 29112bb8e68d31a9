"""Formatting of numbers in the gate's reasons: enough digits to see every difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from nightgate.metrics.bootstrap import FEWEST, Interval


def distinct(first: float, second: float) -> tuple[str, str]:
    """Both numbers with four decimals, or as many more as it takes to show that they differ."""
    for digits in range(4, 18):
        texts = f"{first:.{digits}f}", f"{second:.{digits}f}"
        if texts[0] != texts[1] or first == second:
            return texts
    return repr(first), repr(second)


def signed(value: float) -> str:
    """The number with its sign and four decimals, or in scientific notation if they would all be 0."""
    text = f"{value:+.4f}"
    return f"{value:+.1e}" if float(text) == 0 and value != 0 else text


def points(value: float) -> str:
    """F1 in points, which are hundredths."""
    text = f"{100 * value:.1f}"
    return "0.0" if text == "-0.0" else text


def percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def of_margin(what: Literal["gain", "loss"], margin: float, shown: str, confidence: float, name: str = "margin") -> str:
    """Whether an interval excludes or shows a gain or loss of the margin: the same words for every comparison."""
    return f"a {what} of {margin:.4f} ({name}) or more is {shown} at {percent(confidence)} confidence"


def instant(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(sep=" ").replace("+00:00", " UTC")


def within(interval: Interval | None, confidence: float) -> str:
    """The interval of an F1 in brackets, to follow the number."""
    return f" ({percent(confidence)} interval {interval})" if interval else ""


def between(interval: Interval | None, confidence: float) -> str:
    """The interval of a difference, or why there is none."""
    if interval is None:
        return f"fewer than {FEWEST} rows (or groups), so there is no interval"
    unclear = ", which includes 0" if interval.low <= 0 <= interval.high else ""
    return f"{percent(confidence)} interval {signed(interval.low)} to {signed(interval.high)}{unclear}"


def listed(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first `most` names, and how many more there are."""
    more = len(names) - most
    return separator.join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def stored(value: float | None) -> float | None:
    """The value for the database: None instead of NaN or infinity."""
    return value if value is not None and math.isfinite(value) else None
