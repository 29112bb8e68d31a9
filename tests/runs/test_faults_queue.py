"""Five pipelines that are due in the same minute and share one slot, on PostgreSQL: one runs at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun

from nightgate.database.transactions import Database
from nightgate.pipeline_files import load_pipeline
from nightgate.runs import claim, slot_queue
from nightgate.runs.lifecycle import finish_run
from nightgate.runs.liveness import Owner
from nightgate.runs.run_row import RunRow
from nightgate.schedule import Night
from tests.conftest import PostgresServer
from tests.support.production import Production, kill, within

pytestmark = [pytest.mark.flow, pytest.mark.faults, pytest.mark.database, pytest.mark.timeout(900)]

NAMES = ("apples", "berries", "cherries", "dates", "urgent")
SECONDS_TO_PASS_ON = 10
"""Time for the slot of a killed holder to be granted to the next; waiting runs poll every 2 s."""


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Production]:
    pipelines = dict.fromkeys(("holder", *NAMES), "") | {"urgent": "\n[resources]\npriority = 5\n"}
    name = postgres.create()
    with Production(tmp_path_factory.mktemp("queue"), pipelines, url=postgres.url(name)) as running:
        yield running
    postgres.drop(name)


@dataclass(frozen=True)
class Due:
    """Five nights that were due at once, from their start to the end of the last one."""

    runs: dict[str, FlowRun]
    places_before: list[tuple[str, int]]
    """(pipeline, position) of all while they waited."""
    places_after: list[tuple[str, int]]
    """The same after the server was killed and restarted."""
    seconds_to_pass_on: float
    killed: dict[str, Any]
    """The row of the holder that was killed."""


@pytest.fixture(scope="module")
def due(production: Production) -> Due:
    with Database.open(production.home, production.url) as db:
        holder = hold(db, production)
        began = datetime.now(UTC) - timedelta(days=1)
        runs = {name: production.schedule(name, began, datetime.now(UTC))[-1] for name in NAMES}
        within(180, lambda: len(slot_queue.queue(db)) == 6, f"five that wait: {production.log('worker.log')[-5000:]}")
        before = places(db)
        kill(production.server)
        production.start_server()
        time.sleep(3)
        after = places(db)
        finish_run(db, holder.run_id, holder.attempt, "held", reason="its work is done")
        flow, _ = production.training(runs["urgent"])
        kill(flow)
        killed_at = time.monotonic()
        within(
            60, lambda: any(row.granted_at for row in slot_queue.queue(db) if row.pipeline != "urgent"), "the next one"
        )
        seconds = time.monotonic() - killed_at
        within(60, lambda: production.night(runs["urgent"])["status"] == "failed", "the row of the killed one")
        killed = production.night(runs["urgent"])
    production.ended(runs["urgent"])
    production.retry(runs["urgent"])
    for run in runs.values():
        within(240, lambda run=run: production.night(run)["status"] in {"promoted", "held"}, f"the end of {run.name}")
        production.ended(run)
    return Due(runs, before, after, seconds, killed)


def hold(db: Database, production: Production) -> RunRow:
    """A run of this process that holds the slot, so that all five have to wait."""
    pipeline = load_pipeline(production.folder / "holder.toml")
    night = Night(date(2026, 1, 5), "manual", datetime(2026, 1, 5, 12, tzinfo=UTC))
    opened = claim.open_run(db, pipeline, night, owner=Owner.here())
    slot_queue.acquire(db, opened.run_id, opened.attempt, pipeline.resources.slot)
    return opened


def places(db: Database) -> list[tuple[str, int]]:
    return [(row.pipeline, row.position) for row in slot_queue.queue(db)]


def requests(production: Production) -> list[dict[str, Any]]:
    """All requests for the slot, in the order of their grants."""
    return production.rows(
        "SELECT r.pipeline, s.run_id, s.attempt, s.priority, s.requested_at, s.granted_at, s.released_at "
        "FROM slot_request AS s JOIN run AS r ON r.run_id = s.run_id ORDER BY s.granted_at"
    )


def test_no_two_of_five_simultaneous_nights_run_at_the_same_time(production: Production, due: Due) -> None:
    found = requests(production)
    assert len(found) == len(due.runs) + 2  # the first holder, and the second attempt of the killed one
    for one, after in pairwise(found):
        assert one["released_at"] <= after["granted_at"]
    epochs = production.rows("SELECT run_id, attempt, recorded_at FROM metric_history")
    granted = {(one["run_id"], one["attempt"]): one for one in found}
    for epoch in epochs:
        one = granted[epoch["run_id"], epoch["attempt"]]
        assert one["granted_at"] <= epoch["recorded_at"] <= one["released_at"]
    assert len(epochs) >= 2 * len(due.runs)


def test_the_highest_priority_goes_first_then_the_oldest_request(production: Production, due: Due) -> None:
    assert due.places_before[0] == ("holder", 0)
    assert due.places_before[1] == ("urgent", 1)
    waiting = [one for one in requests(production) if one["pipeline"] not in {"holder", "urgent"}]
    assert waiting == sorted(waiting, key=lambda one: one["requested_at"])


def test_a_restart_of_the_server_keeps_the_queue(due: Due) -> None:
    assert due.places_after == due.places_before
    assert [position for _, position in due.places_before] == [0, 1, 2, 3, 4, 5]


def test_the_slot_of_a_killed_holder_is_granted_to_the_next_within_seconds(due: Due) -> None:
    assert due.seconds_to_pass_on < SECONDS_TO_PASS_ON
    assert (due.killed["status"], due.killed["error_type"]) == ("failed", "crashed")


def test_every_wait_is_stored_and_every_night_ends(production: Production, due: Due) -> None:
    rows = production.rows("SELECT * FROM nightly_runs WHERE pipeline <> 'holder'")
    assert sorted(row["pipeline"] for row in rows) == sorted(due.runs)
    assert {row["status"] for row in rows} == {"promoted"}
    assert {row["slot"] for row in rows} == {"default"}
    assert all(row["slot_wait_seconds"] > 1 for row in rows if row["attempts"] == 1)
    [urgent] = [row for row in rows if row["pipeline"] == "urgent"]
    assert urgent["attempts"] == 2
    assert [production.held(name) for name in NAMES] == [[]] * len(NAMES)
