"""A cron means what Prefect's scheduler makes of it, over changes of the clocks too; what it refuses is refused."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice, product, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.server.schemas.schedules import CronSchedule
from pydantic import ValidationError

from nightgate.config.schedule import Schedule
from nightgate.cron import instants

SINCE = datetime(2027, 9, 1, 12, tzinfo=UTC)
UNTIL = datetime(2028, 5, 15, tzinfo=UTC)
"""With the 29th of February, and every zone's two changes of the clocks."""

TIMES = ("30 2", "0 0", "59 1")
DAYS = (
    "* * *",
    "*/2 * 1",
    "1-7 * 1",
    "13 * FRI",
    "*/3 * */2",
    "? * ?",
    "? * 1-5",
    "* * sun",
    "* * 7",
    "* * mon#2",
    "* * L5",
    "L * *",
    "1,15 * *",
    "31 * *",
    "29 2 *",
    "1 jan,jul *",
    "* 9-12/2,3,4 *",
)
ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "America/Santiago",  # skips 00:00
    "America/Havana",  # skips 00:00, repeats 00:30
    "Australia/Lord_Howe",  # by half an hour
    "Africa/Casablanca",  # behind in Ramadan
    "UTC",
)


def prefect(cron: str, zone: str, since: datetime = SINCE, until: datetime = UNTIL) -> list[datetime]:
    dates = asyncio.run(CronSchedule(cron=cron, timezone=zone).get_dates(start=since, end=until))
    return [datetime.fromisoformat(date.isoformat()).astimezone(UTC) for date in dates]


def ours(cron: str, zone: str, since: datetime = SINCE, until: datetime = UNTIL) -> list[datetime]:
    return list(takewhile(lambda at: at <= until, instants(cron, zone, since - timedelta(seconds=1))))


@pytest.mark.parametrize(
    ("cron", "zone"),
    [(f"{time} {days}", zone) for (days, time), zone in zip(product(DAYS, TIMES), cycle(ZONES), strict=False)],
)
def test_nights_are_due_when_prefect_starts_them(cron: str, zone: str) -> None:
    assert ours(Schedule(cron=cron, timezone=zone).cron, zone) == prefect(cron, zone)


def test_both_days_given_either_is_enough() -> None:
    since = datetime(2026, 10, 1, tzinfo=UTC)
    found = ours("15 3 */2 * 1", "UTC", since, since + timedelta(days=62))
    assert found == prefect("15 3 */2 * 1", "UTC", since, since + timedelta(days=62))
    assert len(found) == 37
    assert all(at.day % 2 or at.isoweekday() == 1 for at in found)


@pytest.mark.parametrize(("cron", "zone"), [("30 2 * * *", "Europe/Berlin"), ("30 0 * * *", "America/Havana")])
def test_after_every_night_comes_the_next_one(cron: str, zone: str) -> None:
    nights = ours(cron, zone)
    assert [next(instants(cron, zone, at)) for at in nights[:-1]] == nights[1:]
    assert [next(instants(cron, zone, at - timedelta(microseconds=1))) for at in nights] == nights


@pytest.mark.parametrize(
    "cron",
    [
        *("0 3 * * 5L", "0 3 15W * *", "61 3 * * *", "0 24 * * *", "0 3 32 * *", "0 3 * 13 *", "*/0 3 * * *"),
        *("0 3 -1 * *", "0 3 * * mon#6", "a b c d e", "H 3 * * *", "R 3 * * *", "0 H(1-3) * * *", " "),
    ],
)
def test_what_prefect_refuses_is_refused_when_the_file_is_read(cron: str) -> None:
    with pytest.raises(ValidationError):
        CronSchedule(cron=cron)
    with pytest.raises(ValidationError, match="03:15 every night"):
        Schedule(cron=cron)


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("0 3 30 2 *", "failed to find"),  # Prefect accepts it, and its scheduler fails on it
        ("R(0-30) 3 * * *", "random"),  # another instant at each reading
        ("0 0 3 * * *", "five fields"),
        ("@daily", "five fields"),
        ("0-0 3 * * *", "more than once"),  # croniter reads it as every minute, and so does Prefect
        ("0 3,4 * * *", "more than once"),
        ("*/59 3 * * *", "more than once"),
    ],
)
def test_what_gives_no_night_or_two_on_a_date_is_refused(cron: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Schedule(cron=cron)


FIELD = st.text("0123456789*/,-?#LHRW", min_size=1, max_size=5) | st.sampled_from(["*", "mon", "JAN-MAR", "1#2", "L"])


@given(st.lists(FIELD, min_size=3, max_size=3).map(" ".join))
def test_whatever_is_accepted_has_the_nights_of_prefect_and_the_rest_is_an_error_in_words(days: str) -> None:
    cron = f"15 3 {days}"
    try:
        Schedule(cron=cron)
    except ValidationError:
        return
    found = list(islice(instants(cron, "Europe/Berlin", SINCE), 3))
    assert found == prefect(cron, "Europe/Berlin", until=found[-1])
