"""Dates and times as people write them, on the command line and in Python."""

from __future__ import annotations

from datetime import UTC, date, datetime

from nightgate.errors import ConfigurationError


def date_of(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(
            f"{text!r} is not a date", next_step="write it as YYYY-MM-DD, such as 2026-01-05"
        ) from error


def moment_of(text: str) -> datetime:
    """Parse a time and convert it to UTC; without an offset it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(
            f"{text!r} is not a time", next_step="write it as 2026-01-05T03:15 or 2026-01-05T03:15+01:00"
        ) from error
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError as error:
        raise ConfigurationError(
            f"{text!r} is outside the years 1 to 9999 in UTC", next_step="write a time within them"
        ) from error
