"""Simultaneous promotions from several processes and threads with pooled connections: exactly one wins."""

from __future__ import annotations

import itertools
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from nightgate.database import schema
from nightgate.database.column_types import Base
from nightgate.database.gate_schema import Anchor, Freeze
from nightgate.database.transactions import Database
from nightgate.registry import champion_link
from tests.support import night_rows

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def competitors(processes: int, versions_each: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes that are ready to race; the environment names home and database."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.competitors", str(first), str(first + versions_each - 1)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in range(1, processes * versions_each, versions_each)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def race(processes: list[subprocess.Popen[str]], expected: int | None) -> list[str]:
    """The outcome of every promotion of one round."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{expected or 0}\n")
        process.stdin.flush()
    return [answer for process in processes if process.stdout for answer in process.stdout.readline().split()]


def run_rounds(database: Database, rounds: int, processes: int, versions_each: int) -> None:
    for day in range(processes * versions_each):
        night_rows.held_version(database, day)
    champions: list[int] = []
    with competitors(processes, versions_each) as started:
        for _ in range(rounds):
            expected = champions[-1] if champions else None
            answers = race(started, expected)
            [won] = [answer for answer in answers if answer.startswith("won:")]
            others = sorted(answer for answer in answers if answer != won)
            assert others == ["champion"] * bool(expected) + ["lost"] * (len(answers) - 1 - bool(expected))
            champions.append(int(won.removeprefix("won:")))
            assert night_rows.champion(database).version == champions[-1]
    # Every win is stored, each in place of the one before, without a gap or an overlap.
    promotions = night_rows.promotions(database)
    assert [one.version for one in promotions] == champions
    assert [one.promoted_by for one in promotions] == [f"competitor {version}" for version in champions]
    assert all(earlier.valid_to == later.valid_from for earlier, later in itertools.pairwise(promotions))
    replaced = database.frame("SELECT replaced_version FROM promotions ORDER BY promoted_at")["replaced_version"]
    assert replaced.iloc[1:].tolist() == champions[:-1]
    assert night_rows.anchor(database).version == champions[0]
    assert champion_link.disagreement(database, database.home, "reviews") == ""


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_exactly_one_of_simultaneous_promotions_by_several_processes_wins(database: Database) -> None:
    run_rounds(database, rounds=3, processes=3, versions_each=8)


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("home")
def test_exactly_one_of_200_simultaneous_promotions_wins_in_every_round(database: Database) -> None:
    run_rounds(database, rounds=20, processes=8, versions_each=25)


# --- constraints of the database ---


@pytest.mark.parametrize(
    ("table", "key", "values", "start"),
    [
        (schema.Promotion, "promotion_id", {"version": 1, "kind": "promote", "promoted_by": "a script"}, "valid_from"),
        (Anchor, "anchor_id", {"version": 1, "moved_by": "a script"}, "valid_from"),
        (Freeze, "freeze_id", {"frozen_by": "a script"}, "frozen_at"),
    ],
)
def test_the_database_refuses_a_second_open_row(
    database: Database, table: type[Base], key: str, values: dict[str, Any], start: str
) -> None:
    night_rows.held_version(database)

    def add(session: Session) -> None:
        fresh = {key: uuid.uuid4().hex, start: datetime.now(UTC)}
        session.add(table(pipeline="reviews", reason="raw", **values, **fresh))

    def close_and_open(session: Session) -> None:
        for one in session.query(table):
            setattr(one, "ended_at" if table is Freeze else "valid_to", datetime.now(UTC))
        session.flush()
        add(session)

    database.write(add)
    with pytest.raises(IntegrityError):
        database.write(add)
    database.write(close_and_open)
