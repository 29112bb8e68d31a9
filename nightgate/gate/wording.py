"""How the gate tells its numbers: enough digits to see a difference, and never one that is not there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from nightgate.gate.evidence import Side
from nightgate.metrics.bootstrap import FEWEST, Interval


def told_apart(first: float, second: float) -> tuple[str, str]:
    """Both numbers with four decimals, or as many more as it takes to see that they differ."""
    for digits in range(4, 18):
        texts = f"{first:.{digits}f}", f"{second:.{digits}f}"
        if texts[0] != texts[1] or first == second:
            return texts
    return repr(first), repr(second)


def signed(value: float) -> str:
    text = f"{value:+.4f}"
    # A gap that four decimals hide is told in scientific notation, never as +0.0000.
    return f"{value:+.1e}" if float(text) == 0 and value != 0 else text


def points(value: float) -> str:
    """A hundredth of F1 is a point."""
    text = f"{100 * value:.1f}"
    return "0.0" if text == "-0.0" else text


def percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def instant(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(sep=" ").replace("+00:00", " UTC")


def within(interval: Interval | None, confidence: float) -> str:
    """An F1's interval, to be put behind it."""
    return f" ({percent(confidence)} interval {interval})" if interval else ""


def between(interval: Interval | None, confidence: float) -> str:
    """The interval of a difference."""
    if interval is None:
        return f"fewer than {FEWEST} rows (or groups), so there is no interval"
    unclear = ", which includes 0" if interval.low <= 0 <= interval.high else ""
    return f"{percent(confidence)} interval {signed(interval.low)} to {signed(interval.high)}{unclear}"


def named(role: str, side: Side | None) -> str:
    """`the champion (version 3)`."""
    return f"the {role}" if side is None or side.version is None else f"the {role} (version {side.version})"


def listed(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first of them, and how many more there are."""
    more = len(names) - most
    return separator.join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def stored(value: float | None) -> float | None:
    """As a check may hold it: None instead of NaN or infinity."""
    return value if value is not None and math.isfinite(value) else None
