"""Faults of production: a week without a worker, missed nights, and processes that were declared dead and live on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Crashed

from nightgate.errors import DatabaseError
from tests.support.production import Production, as_sqlite, is_gone, kill, within

pytestmark = [pytest.mark.flow, pytest.mark.faults, pytest.mark.timeout(900)]

NIGHT = "2026-01-05"
SECONDS_TO_LEARN = 30
"""Limit within which a process that was declared dead ends: two of its heartbeats."""


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    pipelines = {"weekly": "", "training": "", "scoring": "", "retried": "", "crashed": ""}
    with Production(tmp_path_factory.mktemp("downtime"), pipelines) as running:
        yield running


# --- downtime ---


@pytest.fixture(scope="module")
def week(production: Production) -> list[FlowRun]:
    """Seven nights that came due while no worker was up, after they have ended; the last was three nights ago."""
    kill(production.worker)
    now = datetime.now(UTC)
    runs = production.schedule("weekly", now - timedelta(days=9), now - timedelta(days=2))
    assert [run.auto_scheduled for run in runs] == [True] * 7
    production.start_worker()
    for run in runs:
        production.ended(run, 300)
    return runs


def test_after_a_week_without_a_worker_exactly_the_newest_night_trains(
    production: Production, week: list[FlowRun]
) -> None:
    assert [production.state(run).name for run in week] == ["Superseded"] * 6 + ["Promoted"]
    assert {production.state(run).type.value for run in week} == {"COMPLETED"}
    rows = production.rows("SELECT * FROM nightly_runs WHERE pipeline = 'weekly' ORDER BY night")
    assert [row["status"] for row in rows] == ["superseded"] * 6 + ["promoted"]
    due = [run.expected_start_time.date() for run in week if run.expected_start_time]
    assert [str(row["night"])[:10] for row in rows] == [str(day) for day in due]
    assert all("newer night" in row["reason"] for row in rows[:6])
    assert len(production.rows("SELECT DISTINCT run_id FROM epoch_results WHERE run_id LIKE 'weekly-%'")) == 1
    assert production.held("weekly") == []


@pytest.mark.usefixtures("week")
def test_missed_nights_are_recorded_and_announced_once_by_reconcile(production: Production) -> None:
    first, second = production.reconcile(), production.reconcile()
    now = datetime.now(UTC)
    due = [datetime.combine(now.date() - timedelta(days=days), production.due_at, UTC) for days in (2, 1, 0)]
    nights = [str(one.date()) for one in due if now - timedelta(days=2) < one < now]
    assert len(nights) == 2
    assert first.message == "; ".join(f"weekly {night}: missed" for night in nights)
    assert "missed" not in second.message
    events = production.announced("missed", 2)
    assert [one["night"] for one in events] == nights
    assert all("nightgate run weekly --night" in one["next_step"] for one in events)


# --- declared dead, and alive ---


def untouched(production: Production, name: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of a pipeline's nights."""
    queries = {
        # Without the time of the event, which any process may publish.
        "runs": "SELECT run_id, status, verdict, reason, attempts, finished_at, model_version, test_f1 "
        "FROM nightly_runs WHERE pipeline = :name ORDER BY run_id",
        "epochs": "SELECT attempt, epoch, recorded_at FROM metric_history WHERE pipeline = :name ORDER BY epoch",
        "champions": "SELECT * FROM champion_timeline WHERE pipeline = :name ORDER BY model_version",
        "versions": "SELECT * FROM model_versions WHERE pipeline = :name ORDER BY version",
    }
    return {what: production.rows(query, name=name) for what, query in queries.items()}


def scoring(production: Production, run: FlowRun) -> tuple[psutil.Process, psutil.Process]:
    """Flow process and scoring process of a run, once it has trained."""
    flow, _ = production.training(run)

    def scores() -> psutil.Process | None:
        for child in flow.children():
            with suppress(psutil.NoSuchProcess):
                if child.cmdline()[-1].endswith("score.json"):
                    return child
        return None

    return flow, within(120, scores, "the scoring")


def stop(production: Production, process: psutil.Process) -> None:
    """Stop a process, but not while it holds SQLite's lock, which would block all others."""
    while True:
        kill(process, number=signal.SIGSTOP)
        try:
            production.execute("UPDATE setting SET value = value")
        except DatabaseError:
            kill(process, number=signal.SIGCONT)
            time.sleep(0.05)
        else:
            return


@pytest.mark.parametrize("name", ["training", "scoring"])
def test_a_process_that_was_declared_dead_neither_promotes_nor_writes_when_it_continues(
    production: Production, name: str
) -> None:
    run = production.start(name, night=NIGHT, training={"epochs": 12})
    flow, child = production.training(run) if name == "training" else scoring(production, run)
    stop(production, flow)
    # As if its last heartbeat were older than the lease of 120 s.
    production.execute(
        "UPDATE attempt SET heartbeat_at = :past, started_at = :past WHERE run_id = :id",
        past=as_sqlite(datetime.now(UTC) - timedelta(minutes=10)),
        id=production.night(run)["run_id"],
    )
    again = production.nightgate("run", name, "--night", NIGHT, "--set", "training.epochs=12", "--no-prefect")
    assert again.returncode == 0, again.stderr
    assert "attempt 1" in again.stderr
    before = untouched(production, name)
    [night] = before["runs"]
    assert (night["status"], night["attempts"]) == ("promoted", 2)
    kill(flow, number=signal.SIGCONT)
    within(SECONDS_TO_LEARN, lambda: is_gone(flow) and is_gone(child), "the end of a process that was given up")
    assert untouched(production, name) == before
    state = production.ended(run)
    assert state.name == "Failed"
    assert "attempt 1" in state.message
    assert "may no longer write" in state.message


def test_a_process_that_prefect_retried_ends_without_changing_its_successors_page(
    production: Production,
) -> None:
    run = production.start("retried", night=NIGHT, training={"epochs": 40})
    flow, child = production.training(run)
    stop(production, flow)
    with production.client() as client:
        client.set_flow_run_state(run.id, Crashed(message="no sign of life"), force=True)
    production.retry(run)
    later, _ = production.training(run, attempt=2)
    assert later.pid != flow.pid
    kill(flow, number=signal.SIGCONT)
    within(SECONDS_TO_LEARN, lambda: is_gone(flow) and is_gone(child), "the end of a process that was given up")
    state = production.ended(run)
    assert state.name == "Promoted"
    with production.client() as client:
        page = client.read_flow_run(run.id)
        history = client.read_flow_run_states(run.id)
    assert "promoted" in page.name
    assert [one.name for one in history].count("Running") == 2
    assert "Failed" not in [one.name for one in history]
    found = untouched(production, "retried")
    assert [row["epoch"] for row in found["epochs"]] == list(range(1, 41))
    assert len(found["champions"]) == 1


def test_a_live_run_that_prefect_calls_crashed_completes(
    production: Production,
) -> None:
    run = production.start("crashed", night=NIGHT, training={"epochs": 5})
    production.training(run)
    with production.client() as client:
        client.set_flow_run_state(run.id, Crashed(message="no sign of life"), force=True)
    within(120, lambda: production.night(run)["status"] == "promoted", "the end of the night")
    within(60, lambda: production.state(run).name == "Promoted", "the end of its run")
    assert production.night(run)["attempts"] == 1
