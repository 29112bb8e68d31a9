"""How a report says numbers, times and states: the same everywhere in it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

from nightgate.reports.document import Mark, Tone

T = TypeVar("T")

_STATUS: dict[str, Tone] = {
    "promoted": "good",
    "held": "warn",
    "waiting": "warn",
    "failed": "bad",
    "missed": "bad",
    "cancelled": "warn",
}
_OUTCOME: dict[str, Tone] = {"passed": "good", "failed": "bad", "underpowered": "warn", "warning": "warn"}


def status_mark(status: str) -> Mark:
    return Mark(status, _STATUS.get(status, "calm"))


def outcome_mark(outcome: str) -> Mark:
    return Mark(outcome.replace("_", " "), _OUTCOME.get(outcome, "calm"))


def score(value: float | None) -> str:
    """Four decimals, as everywhere in Nightgate."""
    return "n/a" if value is None else f"{value:.4f}"


def gap(value: float | None) -> str:
    return "n/a" if value is None else f"{value:+.4f}"


def number(value: int | None) -> str:
    return "n/a" if value is None else f"{value:,}"


def percent(share: float) -> str:
    return f"{share:.1%}"


def rows(count: int | None) -> str:
    return "n/a" if count is None else f"{count:,} row{'' if count == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """Such as '2 min 6 s': the two largest units."""
    if seconds is None:
        return "n/a"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def moment(at: datetime | None) -> str:
    return "n/a" if at is None else f"{at:%Y-%m-%d %H:%M} UTC"


def first_of(values: Sequence[T], limit: int, what: str) -> tuple[Sequence[T], str]:
    """The first `limit` values, and a sentence about those that are left out."""
    if len(values) <= limit:
        return values, ""
    return values[:limit], f"The first {limit} of {len(values):,} {what}."
