"""Pipelines that are due together and share a slot, on a real server and worker: what waits, in which order, and what a
dead holder frees.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import psutil
import pytest
from prefect.client.schemas.objects import FlowRun

from nightgate import locks
from tests.support.production import Production, kill, within

pytestmark = [pytest.mark.flow, pytest.mark.faults, pytest.mark.timeout(900)]

NAMES = ("apples", "berries", "cherries", "urgent")
SECONDS_TO_PASS_ON = 10


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    pipelines = dict.fromkeys(("holder", *NAMES), "") | {"urgent": "\n[resources]\npriority = 5\n"}
    with Production(tmp_path_factory.mktemp("queue"), pipelines) as running:
        yield running


@dataclass(frozen=True)
class Due:
    """Four nights that were due while another one was at work, from their start to the end of the last one."""

    runs: dict[str, FlowRun]
    before: list[tuple[str, int]]
    """(pipeline, position) of all that waited."""
    processes: int
    """Of nights, while they waited."""
    after: list[tuple[str, int]]
    """The same after the server was killed and restarted."""
    killed: dict[str, Any]
    """The row of the holder, which was killed."""


@pytest.fixture(scope="module")
def due(production: Production) -> Due:
    holder = production.start("holder", night="2026-01-05", training={"epochs": 1000})
    flow, _ = production.training(holder)
    began = datetime.now(UTC) - timedelta(days=1)
    runs = {name: production.schedule(name, began, datetime.now(UTC))[-1] for name in NAMES}
    within(120, lambda: len(waiting(production)) == 4, f"four that wait: {production.log('worker.log')[-5000:]}")
    before, processes = waiting(production), nights_at_work(production)
    kill(production.server)
    production.start_server()
    within(60, lambda: len(waiting(production)) == 4, "four that wait after the restart")
    after = waiting(production)
    kill(flow)
    within(SECONDS_TO_PASS_ON, lambda: holders(production)[0].startswith("urgent"), "the next holder")
    for run in runs.values():
        production.ended(run, 300)
    within(60, lambda: production.night(holder)["status"] == "failed", "the row of the killed one")
    return Due(runs, before, processes, after, production.night(holder))


def waiting(production: Production) -> list[tuple[str, int]]:
    done = production.nightgate("status", "--format", "json")
    assert done.returncode == 0, done.stderr
    rows = [row for row in json.loads(done.stdout) if str(row["waits_for"]).startswith("slot")]
    return [(row["pipeline"], row["position"]) for row in rows]


def holders(production: Production) -> list[str]:
    return [place.holder for place in locks.queue(production.home, "slot-default") if not place.waits] or [""]


def nights_at_work(production: Production) -> int:
    assert production.worker is not None
    return len([one for one in psutil.Process(production.worker.pid).children() if one.status() != "zombie"])


def test_what_waits_has_no_process_but_one_of_each_priority(due: Due) -> None:
    assert due.before == [("urgent", 1), *((name, place) for name, place in due.before if name != "urgent")]
    assert sorted(place for _, place in due.before) == [1, 2, 3, 4]
    assert due.processes == 2  # the holder's, and that of the higher priority, which waits at the lock


def test_a_restart_of_the_server_keeps_the_queue(due: Due) -> None:
    assert due.after == due.before


def test_each_night_runs_once_one_after_the_other_the_highest_priority_first(production: Production, due: Due) -> None:
    assert (due.killed["status"], due.killed["error_type"]) == ("failed", "crashed")
    rows = production.rows("SELECT * FROM nightly_runs WHERE pipeline <> 'holder'")
    assert sorted(row["pipeline"] for row in rows) == sorted(NAMES)
    assert {(row["status"], row["attempts"]) for row in rows} == {("promoted", 1)}
    rows.sort(key=lambda row: row["finished_at"])
    assert rows[0]["pipeline"] == "urgent"
    for before, row in pairwise(rows):
        epochs = production.rows("SELECT recorded_at FROM metric_history WHERE run_id = :id", id=row["run_id"])
        assert min(one["recorded_at"] for one in epochs) > before["finished_at"]


@pytest.mark.usefixtures("due")
def test_operations_do_not_wait_and_reconcile_frees_the_place_of_a_night_that_died_with_its_worker(
    production: Production,
) -> None:
    run = production.start("holder", night="2026-01-06", training={"epochs": 1000})
    flow, training = production.training(run)
    kill(production.worker, training, flow)
    production.start_worker()
    after = production.start("apples", night="2026-01-05", training={"epochs": 1})
    assert production.state(run).name == "Running"
    assert holders(production) == [""]
    assert production.reconcile().is_completed()
    assert production.state(run).name == "Crashed"
    assert production.ended(after).type.value == "COMPLETED"
    assert production.night(after)["started_at"] > production.night(run)["finished_at"]
