"""`[schedule]`: when nights start."""

from __future__ import annotations

from pydantic import Field

from nightgate.config.values import Cron, Section, Timezone


class Schedule(Section):
    """When nights start: at most once per date."""

    cron: Cron = "15 3 * * *"
    """Five fields: minute, hour, day of month, month, day of week. Where both days are given, either is enough."""
    timezone: Timezone = "UTC"
    """Timezone of the cron; a night is a date in it."""
    max_skips: int = Field(default=6, ge=0, le=1000)
    """Scheduled nights in a row that are skipped while nothing is new: data, configuration, code, models; the next one
    runs anyway. 0: none is skipped."""
