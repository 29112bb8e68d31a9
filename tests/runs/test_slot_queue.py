"""The queue for a slot, on both engines: who goes first, what is stored, and that the dead hold nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
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
    """A run of pipeline `name` whose process lives: this one."""
    options.setdefault("owner", Owner.here())
    return claim.open_run(database, night_rows.pipeline(name), night_rows.night(), **options)


def asked(database: Database, run: RunRow, priority: int = 0) -> str:
    """What the run waits for after one look; '' when it holds the slot."""

    class WaitsError(Exception):
        pass

    def tell(why: str) -> None:
        raise WaitsError(why)

    try:
        slot_queue.acquire(database, run.run_id, run.attempt, "gpu", priority, on_wait=tell, seconds=0)
    except WaitsError as why:
        return str(why)
    return ""


def test_the_second_waits_until_the_first_has_ended(database: Database) -> None:
    first, second = run_of(database, "one"), run_of(database, "two")
    assert asked(database, first) == ""
    assert asked(database, second) == f"waiting for slot gpu: 0 ahead in the queue, held by one ({first.run_id})"
    finish_run(database, first.run_id, 1, "held")
    assert asked(database, second) == ""


def test_a_slot_is_kept_when_it_is_asked_for_again(database: Database) -> None:
    first, second = run_of(database, "one"), run_of(database, "two")
    assert [asked(database, first), asked(database, first)] == ["", ""]
    assert asked(database, second) != ""


def test_the_highest_priority_goes_first_and_among_equals_who_came_first(database: Database) -> None:
    holder = run_of(database, "holder")
    asked(database, holder)
    runs = {name: run_of(database, name) for name in ("early", "late", "urgent")}
    for name, run in runs.items():
        asked(database, run, 5 if name == "urgent" else 0)
    queue = slot_queue.queue(database)
    assert [(row.pipeline, row.position) for row in queue] == [("holder", 0), ("urgent", 1), ("early", 2), ("late", 3)]
    finish_run(database, holder.run_id, 1, "held")
    assert asked(database, runs["early"]) == "waiting for slot gpu: 1 ahead in the queue"
    assert asked(database, runs["urgent"], 5) == ""


def test_a_dead_holder_and_a_dead_waiter_are_passed_over(database: Database) -> None:
    dead_holder = run_of(database, "one", owner=night_rows.dead_owner())
    dead_waiter = run_of(database, "two", owner=night_rows.dead_owner())
    living = run_of(database, "three")
    # Both were alive when they asked: the look of a living process is what lets them go.
    for run in (dead_holder, dead_waiter):
        asked(database, run, 9)
    assert asked(database, living) == ""


def test_a_holder_elsewhere_that_gives_no_sign_of_life_is_passed_over(
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
    told = [asked(database, run_of(database, name)) for name in ("one", "two", "three")]
    assert told[:2] == ["", ""]
    assert told[2].startswith("waiting for slot gpu: 0 ahead in the queue, held by one (")


def test_a_run_that_was_ended_from_outside_stops_waiting(database: Database) -> None:
    first, second = run_of(database, "one"), run_of(database, "two")
    asked(database, first)
    asked(database, second)
    finish_run(database, second.run_id, 1, "cancelled")
    with pytest.raises(RegistryError, match="the run has ended as cancelled"):
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


def test_of_many_at_once_one_holds_the_slot_at_any_time(database: Database) -> None:
    """Five pipelines that are due together, each from a thread of its own: they take turns."""
    runs = [run_of(database, f"pipeline-{at}") for at in range(5)]
    inside: list[str] = []
    most: list[int] = []

    def work(run: RunRow) -> Callable[[], None]:
        def go() -> None:
            slot_queue.acquire(database, run.run_id, 1, "gpu", seconds=0.01)
            inside.append(run.run_id)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(run.run_id)
            finish_run(database, run.run_id, 1, "held")

        return go

    threads = [threading.Thread(target=work(run)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1] * 5
