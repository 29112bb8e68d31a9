"""Which night a run belongs to, and up to when it sees data.

A night is a date in the schedule's timezone, taken from the scheduled start and not from the clock at which a late
run begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim

from nightgate.config import Schedule
from nightgate.errors import ConfigurationError

Trigger = Literal["schedule", "manual", "backfill", "retry"]


@dataclass(frozen=True)
class Night:
    date: date
    trigger: Trigger
    data_until: datetime
    """Aware, UTC: the night sees rows with a time before this instant."""
    scheduled_for: datetime | None = None
    """Aware, UTC: the instant that the cron gave; None for a run by hand."""


def scheduled_night(schedule: Schedule, scheduled_for: datetime) -> Night:
    """The night of a run that a schedule started for the instant `scheduled_for` (aware)."""
    instant = scheduled_for.astimezone(UTC)
    return Night(scheduled_for.astimezone(ZoneInfo(schedule.timezone)).date(), "schedule", instant, instant)


def tonight(schedule: Schedule, now: datetime | None = None) -> Night:
    """The night of a run started by hand: it belongs to today and sees up to now."""
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    return Night(moment.astimezone(ZoneInfo(schedule.timezone)).date(), "manual", moment)


def chosen_night(schedule: Schedule, chosen: date, now: datetime | None = None) -> Night:
    """The night of `--night DATE`: it sees data up to the instant that the cron gives on that date.

    Raises:
        ConfigurationError: the cron does not fire on that date, or has not yet.
    """
    zone = ZoneInfo(schedule.timezone)
    midnight = datetime.combine(chosen, time(), tzinfo=zone)
    firing = next(CronSim(schedule.cron, midnight - timedelta(minutes=1)))
    if firing.date() != chosen:
        raise ConfigurationError(
            f"the schedule {schedule.cron!r} ({schedule.timezone}) has no night on {chosen}",
            next_step=f"choose a date on which it fires; the next after that one is {firing.date()}",
        )
    instant = firing.astimezone(UTC)
    if instant > (now or datetime.now(UTC)):
        raise ConfigurationError(
            f"the night of {chosen} begins at {instant:%Y-%m-%d %H:%M} UTC, which is still to come",
            next_step="leave --night out for a run by hand that sees up to now, or choose a date that has passed",
        )
    return Night(chosen, "backfill", instant, instant)
