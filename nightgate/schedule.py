"""Which night a run belongs to, and up to which instant it reads data.

A night is a date in the schedule's timezone: that of the scheduled start, even if the run begins late.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from nightgate.config.schedule import Schedule
from nightgate.cron import instants
from nightgate.errors import ConfigurationError

Trigger = Literal["schedule", "manual", "backfill", "retry"]


@dataclass(frozen=True)
class Night:
    date: date
    trigger: Trigger
    data_until: datetime
    """Aware, UTC: the night reads rows of before this instant; rows without times are read as they are then."""
    scheduled_for: datetime | None = None
    """Aware, UTC: the instant of the cron; None for a manual run."""


def scheduled_night(schedule: Schedule, scheduled_for: datetime) -> Night:
    """The night of a run that was scheduled for the instant `scheduled_for` (aware)."""
    instant = scheduled_for.astimezone(UTC)
    return Night(scheduled_for.astimezone(ZoneInfo(schedule.timezone)).date(), "schedule", instant, instant)


def without_time(night: Night, now: datetime | None = None) -> Night:
    """The night over rows that have no time: it sees them as they are now, whatever its instant."""
    return replace(night, data_until=(now or datetime.now(UTC)).astimezone(UTC))


def tonight(schedule: Schedule, now: datetime | None = None) -> Night:
    """The night of a manual run: today's date, with data up to now."""
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    return Night(moment.astimezone(ZoneInfo(schedule.timezone)).date(), "manual", moment)


def chosen_night(schedule: Schedule, chosen: date, now: datetime | None = None) -> Night:
    """The night of `--night DATE`, with data up to the instant at which the cron fires on that date; without a cron
    up to the end of the date.

    Raises:
        ConfigurationError: the cron does not fire on that date, or has not yet.
    """
    present = (now or datetime.now(UTC)).astimezone(UTC)
    if not 1900 < chosen.year <= present.year + 1:  # instants beside the first and last years cannot be computed
        raise ConfigurationError(f"there was no night of {chosen}", next_step="choose a past date")
    zone = ZoneInfo(schedule.timezone)
    midnight = datetime.combine(chosen, time(), tzinfo=zone)
    found, instant = chosen, (midnight + timedelta(days=1)).astimezone(UTC)
    if schedule.cron:
        instant = next(instants(schedule.cron, schedule.timezone, midnight.astimezone(UTC) - timedelta(seconds=1)))
        found = instant.astimezone(zone).date()
    if found != chosen:
        raise ConfigurationError(
            f"the schedule {schedule.cron!r} ({schedule.timezone}) has no night on {chosen}",
            next_step=f"choose a date on which it fires; the next one is {found}",
        )
    if instant > present:
        raise ConfigurationError(
            f"the night of {chosen} begins at {instant:%Y-%m-%d %H:%M} UTC, which is in the future",
            next_step="omit --night for a manual run with data up to now, or choose a past date",
        )
    return Night(chosen, "backfill", instant, instant)
