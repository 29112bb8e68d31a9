"""When a cron fires, as Prefect's scheduler reads it: nights are exactly the runs that Prefect starts.

Prefect 3.8 carries a copy of croniter 6.0.0. It asks it for times of the clock on the wall, and then puts these into
the schedule's timezone. `tests/test_cron.py` compares both over changes of the clocks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from croniter import CroniterError, croniter  # type: ignore[import-untyped]  # it has no types

_EXAMPLE = "'15 3 * * *' is 03:15 every night"


def check_nightly(cron: str) -> str:
    """`cron` itself, if Prefect accepts it and it fires at most once on a date; '' for none.

    Raises:
        ValueError: what is wrong with it.
    """
    if not check_cron(cron):
        return cron
    minutes, hours, *_ = croniter.expand(cron)[0]
    if len(minutes) > 1 or len(hours) > 1 or "*" in (*minutes, *hours):
        first = next(wall_times(cron, datetime(2027, 1, 1)))
        raise ValueError(
            f"{cron!r} fires more than once on {first.date()}: there is one scheduled night per date; "
            "use one minute and one hour, such as '15 3 * * *'"
        )
    return cron


def check_cron(cron: str) -> str:
    """`cron` itself, if Prefect accepts it; '' for none.

    Raises:
        ValueError: what is wrong with it.
    """
    if cron and len(cron.split()) != 5:
        raise ValueError(f"{cron!r} is not a cron of five fields; {_EXAMPLE}, and '' none")
    if re.search(r"\b[rh]\b", cron, re.IGNORECASE):
        raise ValueError(f"{cron!r} fires at random times (R and H), which nights must not; {_EXAMPLE}")
    try:
        next(wall_times(cron, datetime(2027, 1, 1)), None)
    except CroniterError as error:
        raise ValueError(f"{cron!r} is not a cron that Prefect's scheduler reads: {error}; {_EXAMPLE}") from error
    return cron


def wall_times(cron: str, after: datetime) -> Iterator[datetime]:
    """Times of the clock on the wall (naive) at which `cron` fires, also those that a change of the clocks skips.

    None for ''.
    """
    if not cron:
        return
    # Both days given: either of them is enough, which is Prefect's default too.
    firings = croniter(cron, after.replace(microsecond=0), day_or=True)
    while True:
        yield firings.get_next(datetime)


def instants(cron: str, timezone: str, after: datetime) -> Iterator[datetime]:
    """Instants (UTC) later than `after` (aware) at which Prefect starts the runs of a schedule."""
    zone = ZoneInfo(timezone)
    for wall in wall_times(cron, after.astimezone(zone).replace(tzinfo=None)):
        instant = started_at(wall, zone)
        if instant > after:
            yield instant


def started_at(wall: datetime, zone: ZoneInfo) -> datetime:
    """The instant (UTC) at which Prefect starts a run that is due at a naive time of the clock on the wall."""
    first = wall.replace(tzinfo=zone).astimezone(UTC)
    # A time that comes twice starts the first time. One that is skipped starts earlier by as much as is skipped; on
    # Python 3.13 and newer, where Prefect computes with another library, later.
    return first if sys.version_info >= (3, 13) else min(first, wall.replace(tzinfo=zone, fold=1).astimezone(UTC))
