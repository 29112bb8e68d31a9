"""The queue for a slot, on both engines: its order, its stored waits, and the release of dead runs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.runs import claim, slot_queue
from nightgate.runs.lifecycle import finish_run
from nightgate.runs.liveness import Owner
from nightgate.runs.run_row import RunRow
from tests.support import night_rows


def run_of(database: Database, name: str, **options: Any) -> RunRow:
    """A run of pipeline `name` by this process."""
    options.setdefault("owner", Owner.here())
    return claim.open_run(database, night_rows.pipeline(name), night_rows.night(), **options)


def asked(database: Database, run: RunRow, priority: int = 0) -> str:
    """What the run waits for after one poll; '' if it holds the slot."""

    class WaitsError(Exception):
        pass

    def stop(why: str) -> None:
        raise WaitsError(why)

    try:
        slot_queue.acquire(database, run.run_id, run.attempt, "gpu", priority, on_wait=stop, seconds=0)
    except WaitsError as why:
        return str(why)
    return ""


def test_the_second_waits_until_the_first_has_ended(database: Database) -> None:
    first, second = run_of(database, "one"), run_of(database, "two")
    assert [asked(database, first), asked(database, first)] == ["", ""]
    assert first.run_id in asked(database, second)
    finish_run(database, first.run_id, 1, "held")
    assert asked(database, second) == ""


def test_the_highest_priority_goes_first_then_the_oldest_request(database: Database) -> None:
    holder = run_of(database, "holder")
    asked(database, holder)
    runs = {name: run_of(database, name) for name in ("early", "late", "urgent")}
    for name, run in runs.items():
        asked(database, run, 5 if name == "urgent" else 0)
    queue = slot_queue.queue(database)
    assert [(row.pipeline, row.position) for row in queue] == [("holder", 0), ("urgent", 1), ("early", 2), ("late", 3)]
    finish_run(database, holder.run_id, 1, "held")
    assert "1 ahead" in asked(database, runs["early"])
    assert asked(database, runs["urgent"], 5) == ""


def test_requests_of_dead_runs_are_released(database: Database) -> None:
    dead_holder = run_of(database, "one", owner=night_rows.dead_owner())
    dead_waiter = run_of(database, "two", owner=night_rows.dead_owner())
    living = run_of(database, "three")
    # A run never counts itself as dead: the poll of a live process releases these.
    for run in (dead_holder, dead_waiter):
        asked(database, run, 9)
    assert asked(database, living) == ""


def test_the_slot_of_a_holder_on_another_machine_without_heartbeat_is_released(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = run_of(database, "one", owner=replace(Owner.here(), host="worker-7"))
    living = run_of(database, "two")
    asked(database, elsewhere)
    assert asked(database, living) != ""
    monkeypatch.setattr("nightgate.runs.liveness.LEASE", -night_rows.ONE_DAY)
    assert asked(database, living) == ""


def test_a_limit_lets_more_than_one_hold_the_slot(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTGATE_SLOT_LIMITS", "gpu = 2, other=1")
    waits = [asked(database, run_of(database, name)) for name in ("one", "two", "three")]
    assert waits[:2] == ["", ""]
    assert "one (" in waits[2]


def test_a_run_that_was_ended_meanwhile_stops_waiting(database: Database) -> None:
    first, second = run_of(database, "one"), run_of(database, "two")
    asked(database, first)
    asked(database, second)
    finish_run(database, second.run_id, 1, "cancelled")
    with pytest.raises(RegistryError, match="cancelled"):
        asked(database, second)
    assert [row.pipeline for row in slot_queue.queue(database)] == ["one"]


def test_the_wait_is_stored(database: Database) -> None:
    first, second = run_of(database, "one"), run_of(database, "two")
    asked(database, first)
    asked(database, second)
    query = "SELECT pipeline, slot, slot_wait_seconds FROM nightly_runs ORDER BY pipeline"
    assert database.frame(query)["slot_wait_seconds"].isna().tolist() == [False, True]
    time.sleep(0.05)
    finish_run(database, first.run_id, 1, "held")
    asked(database, second)
    found = database.frame(query).to_dict("records")
    assert [row["slot"] for row in found] == ["gpu", "gpu"]
    assert found[0]["slot_wait_seconds"] < 0.05 <= found[1]["slot_wait_seconds"] < 5


def test_one_of_five_simultaneous_runs_holds_the_slot_at_any_time(database: Database) -> None:
    runs = [run_of(database, f"pipeline-{at}") for at in range(5)]
    inside: list[str] = []
    most: list[int] = []

    def work(run: RunRow) -> None:
        slot_queue.acquire(database, run.run_id, 1, "gpu", seconds=0.01)
        inside.append(run.run_id)
        most.append(len(inside))
        time.sleep(0.02)
        inside.remove(run.run_id)
        finish_run(database, run.run_id, 1, "held")

    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(work, runs, timeout=30))
    assert most == [1] * 5
