"""`[schedule]`: when nights start, what lets them train, and when their parts start on their own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nightgate.config.values import Cron, Duration, NightlyCron, Section, Timezone


class PartSchedule(Section):
    """When a part of a night starts on its own."""

    cron: Cron = ""
    """As the cron of nights, but any number of times a date; '': only by hand and by automations."""


class Schedule(Section):
    """When nights start, at most once per date, and for which reasons they train."""

    cron: NightlyCron = "15 3 * * *"
    """Five fields: minute, hour, day of month, month, day of week. Where both days are given, either is enough. '':
    nights start by hand and by automations only."""
    timezone: Timezone = "UTC"
    """Timezone of all crons; a night is a date in it."""
    min_new_rows: int = Field(default=1, ge=1, le=1_000_000_000)
    """Rows that are new, corrected or removed since the last training, and let a scheduled night train."""
    max_champion_age: Duration = ""
    """Age of the champion, from its night to this one, that lets a scheduled night train; '' for none."""
    train_on: tuple[Literal["drift", "champion_dropped"], ...] = ()
    """Alarms of the champion's evaluation that let a scheduled night train, and that start a night."""
    max_skips: int = Field(default=6, ge=0, le=1000)
    """Scheduled nights in a row that are skipped while nothing is new: data, configuration, code, models; the next one
    trains anyway. 0: none is skipped."""
    refresh: PartSchedule = PartSchedule()
    """Take in rows, besides the refresh of each night."""
    evaluate: PartSchedule = PartSchedule()
    """Evaluate the champion on rows that came since it was chosen, besides each night."""
    predict: PartSchedule = PartSchedule()
    """Predict rows with the champion, in place of doing it at the end of each night."""
