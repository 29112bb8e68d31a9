"""A night is a date in the schedule's timezone, with data up to its scheduled instant."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from nightgate.config.schedule import Schedule
from nightgate.errors import ConfigurationError
from nightgate.schedule import chosen_night, scheduled_night, tonight

BERLIN = Schedule(cron="30 0 * * *", timezone="Europe/Berlin")


def test_a_late_run_belongs_to_the_night_it_was_scheduled_for() -> None:
    night = scheduled_night(BERLIN, datetime(2026, 6, 1, 22, 30, tzinfo=UTC))
    assert night.date == date(2026, 6, 2)
    assert night.data_until == night.scheduled_for == datetime(2026, 6, 1, 22, 30, tzinfo=UTC)
    assert night.trigger == "schedule"


def test_a_manual_run_belongs_to_today_in_the_schedules_timezone_with_data_up_to_now() -> None:
    now = datetime(2026, 6, 1, 23, 0, tzinfo=UTC)
    night = tonight(BERLIN, now)
    assert (night.date, night.data_until, night.scheduled_for) == (date(2026, 6, 2), now, None)


@pytest.mark.parametrize(
    ("schedule", "night", "instant"),
    [
        (BERLIN, date(2026, 1, 5), datetime(2026, 1, 4, 23, 30, tzinfo=UTC)),
        (Schedule(cron="0 0 * * *"), date(2026, 1, 5), datetime(2026, 1, 5, tzinfo=UTC)),
        pytest.param(
            Schedule(cron="30 2 * * *", timezone="Europe/Berlin"),
            date(2026, 3, 29),
            datetime(2026, 3, 29, 0, 30, tzinfo=UTC),
            id="an hour that daylight saving skips",
        ),
        pytest.param(
            Schedule(cron="15 3 */2 * 1"),
            date(2026, 5, 27),
            datetime(2026, 5, 27, 3, 15, tzinfo=UTC),
            id="an odd day that is no Monday",
        ),
    ],
)
def test_a_chosen_night_uses_the_instant_that_the_cron_gives_on_its_date(
    schedule: Schedule, night: date, instant: datetime
) -> None:
    chosen = chosen_night(schedule, night, now=datetime(2026, 6, 1, tzinfo=UTC))
    assert (chosen.data_until, chosen.trigger) == (instant, "backfill")


def test_a_night_in_the_future_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="2026-06-02 22:30 UTC"):
        chosen_night(BERLIN, date(2026, 6, 3), now=datetime(2026, 6, 2, 12, tzinfo=UTC))


@pytest.mark.parametrize("night", [date.min, date.max])
@pytest.mark.parametrize("schedule", [BERLIN, Schedule(cron="")])
def test_the_first_and_the_last_date_are_no_nights(schedule: Schedule, night: date) -> None:
    with pytest.raises(ConfigurationError, match="no night"):
        chosen_night(schedule, night)


def test_a_date_on_which_the_cron_does_not_fire_is_refused_with_the_next_one() -> None:
    weekly = Schedule(cron="15 3 * * 1")
    with pytest.raises(ConfigurationError, match="2026-01-12"):
        chosen_night(weekly, date(2026, 1, 6), now=datetime(2026, 6, 1, tzinfo=UTC))
