"""Commands that read, on ten pipelines with two years of nights: time grows with the rows, not with their square."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pytest
import sqlalchemy as sa

import nightgate
from nightgate.analysis.comparison import compare
from nightgate.analysis.replay import judged_runs
from nightgate.database import schema
from nightgate.database.transactions import Database
from nightgate.operations import database_checks, integrity_checks
from nightgate.operations.status import status
from nightgate.registry.champions import resolve_version
from nightgate.reports.facts import gather
from tests.support.years import insert_nights

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.timeout(900)]

PIPELINES, NIGHTS = 10, 730
SECONDS = 2.0
"""Bound of every command at full size, the best of three: on two busy cores each took 1 s or less; `status` took 58 s
when it asked for the newest night of each night, and the check of the whole SQLite file takes 2 to 9 s."""
GROWTH = 30
"""Bound of the time at full size by that at a tenth: 10 where it is linear, 100 where it is quadratic."""
DEEP = "doctor --deep, integrity"
"""Reads every byte: only its growth is bounded."""
UNNOTICED = 0.5
"""Seconds below which the ratio says nothing."""


def commands(database: Database, name: str) -> dict[str, Callable[[], Any]]:
    def compared() -> Any:
        return compare(database, *(resolve_version(database, name, version) for version in ("1", "champion")))

    run = f"{name}-0010"
    return {
        "status": lambda: status(database),
        "history": lambda: nightgate.history(name),
        "history --since": lambda: nightgate.history(name, since=date(2026, 3, 10)),
        "history --epochs": lambda: nightgate.history(name, epochs=True),
        "history --epochs --since": lambda: nightgate.history(name, epochs=True, since=date(2026, 3, 2)),
        "history --slices": lambda: nightgate.history(name, slices=True),
        "history --slices --since": lambda: nightgate.history(name, slices=True, since=date(2026, 3, 2)),
        "history --run": lambda: nightgate.history(name, run=run, slices=True),
        "champion": lambda: nightgate.champion(name),
        "champion --at": lambda: nightgate.champion(name, datetime(2026, 3, 20, tzinfo=UTC)),
        "versions": lambda: nightgate.versions(name),
        "compare": compared,
        "gate replay": lambda: judged_runs(database, name),
        "the summary of a night": lambda: gather(database.home, run, snapshots=False),
        "doctor, database": database_checks.examine,
        "doctor, integrity": lambda: list(integrity_checks.examine()),
        DEEP: lambda: list(integrity_checks.examine(deep=True)),
    }


def measured(database: Database, name: str) -> dict[str, float]:
    """The best of three times of every command."""
    found = {}
    for command, read in commands(database, name).items():
        times = []
        for _ in range(3):
            begun = time.monotonic()
            assert read() is not None
            times.append(time.monotonic() - begun)
        found[command] = min(times)
    return found


def test_every_command_that_reads_is_linear_in_the_nights(database: Database) -> None:
    name, *_ = insert_nights(database, pipelines=PIPELINES, nights=NIGHTS // 10)
    tenth = measured(database, name)

    def clear(session: sa.orm.Session) -> None:
        for table in reversed(schema.METADATA.sorted_tables):
            if table.name != "setting":
                session.execute(table.delete())

    database.write(clear)
    insert_nights(database, pipelines=PIPELINES, nights=NIGHTS)
    assert len(nightgate.history(name)) == NIGHTS
    assert len(status(database)) == 2 * PIPELINES
    full = measured(database, name)
    shown = "\n".join(f"{command}: {tenth[command]:.3f} s, {full[command]:.3f} s" for command in full)
    print(f"\n{database.dialect}\n{shown}")
    slow = [command for command, seconds in full.items() if seconds > max(UNNOTICED, GROWTH * tenth[command])]
    assert slow == [], shown
    assert [command for command, seconds in full.items() if seconds > SECONDS and command != DEEP] == [], shown
