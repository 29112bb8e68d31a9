"""Nights that wait for approval on a real server: their process is gone, and the decision comes from elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psutil
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Crashed, Running

from nightgate.database.transactions import Database
from nightgate.pipeline_files import load_pipeline
from nightgate.runs import claim, lifecycle
from nightgate.runs.liveness import Owner
from nightgate.schedule import chosen_night
from tests.support.production import Production, as_sqlite, is_gone, kill, within

pytestmark = [pytest.mark.flow, pytest.mark.faults, pytest.mark.timeout(900)]

SECONDS = 30
"""Time for a waiting run to release its slots, and for a decided run to end."""

SECONDS_FOR_WORKER = 31
"""`reconcile` leaves a cancelled run to its worker for so long."""


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    # One each: the first candidate of a pipeline always passes the gate.
    pipelines = dict.fromkeys(("form", "command", "passed", "cancelled", "crashed"), "approval = true\n")
    with Production(tmp_path_factory.mktemp("approvals"), pipelines) as running:
        yield running


def waiting(production: Production, name: str, night: str = "2026-01-05") -> FlowRun:
    """A run of that night that waits for approval."""
    run = production.start(name, night=night, training={"epochs": 1})
    flow: list[psutil.Process] = []

    def suspended() -> bool:
        state = production.state(run)
        assert not state.is_final(), state
        if not flow and production.night(run).get("status") == "running":
            flow.append(production.process(run))
        return bool(state.name == "Suspended")

    within(120, suspended, f"the wait of {run.name}: {production.log('worker.log')[-5000:]}")
    within(SECONDS, lambda: is_gone(flow[0]), "the end of its process")
    within(SECONDS, lambda: not production.held(name), "its slots")
    assert production.night(run)["status"] == "waiting"
    return run


def submit(production: Production, run: FlowRun, decision: str, reason: str) -> None:
    """Submit the form behind Resume."""
    with production.client() as client:
        client.resume_flow_run(run.id, run_input={"decision": decision, "name": "anna", "reason": reason})


def approval(production: Production, run: FlowRun) -> dict[str, Any]:
    [row] = production.rows("SELECT * FROM approvals WHERE run_id = :id", id=production.night(run)["run_id"])
    return row


def test_an_approval_in_the_form_promotes_without_training_again(production: Production) -> None:
    run = waiting(production, "form")
    kill(production.worker)
    production.start_worker()
    submit(production, run, "approve", "looked at the slices")
    assert production.ended(run).name == "Promoted"
    night = production.night(run)
    assert (night["status"], night["attempts"]) == ("promoted", 1)
    stored = approval(production, run)
    assert (stored["decision"], stored["decided_by"], stored["reason"]) == ("approved", "anna", "looked at the slices")
    assert production.champion("form") == 1
    assert production.epochs(run) == [(1, 1)]
    assert [len(production.announced(name)) for name in ("waiting", "promoted")] == [1, 1]


def test_an_approval_on_the_command_line_while_the_server_is_down_ends_the_run_once_it_is_up(
    production: Production,
) -> None:
    run = waiting(production, "command")
    kill(production.server)
    done = production.nightgate("approve", "command", "--reason", "fine")
    assert done.returncode == 0, done.stderr
    assert "promoted: approved by" in done.stdout
    assert "nightgate reconcile" in done.stderr
    assert production.champion("command") == 1
    production.start_server()
    assert production.state(run).name == "Suspended"
    assert production.nightgate("reconcile").returncode == 0
    assert production.state(run).name == "Promoted"
    assert [one["pipeline"] for one in production.announced("promoted", 2)] == ["form", "command"]


@pytest.fixture(scope="module")
def superseded(production: Production) -> tuple[FlowRun, FlowRun]:
    """A night that waited when the next one began, and the next one, which waits now."""
    return waiting(production, "passed"), waiting(production, "passed", "2026-01-06")


def test_the_next_night_supersedes_one_that_waits_and_a_late_approval_ends_as_superseded(
    production: Production, superseded: tuple[FlowRun, FlowRun]
) -> None:
    run, following = superseded
    night = production.night(run)
    assert night["status"] == "superseded"
    assert production.night(following)["run_id"] in night["reason"]
    submit(production, run, "approve", "late")
    state = production.ended(run)
    assert state.name == "Superseded"
    assert night["reason"] in state.message
    assert production.champion("passed") is None
    assert approval(production, run)["decision"] == "superseded"


def test_reconcile_holds_a_night_that_was_not_approved_in_time(
    production: Production, superseded: tuple[FlowRun, FlowRun]
) -> None:
    _, run = superseded
    production.execute(
        "UPDATE approval SET deadline = :past WHERE run_id = :id",
        past=as_sqlite(datetime.now(UTC) - timedelta(minutes=1)),
        id=production.night(run)["run_id"],
    )
    assert production.reconcile().message == "passed 2026-01-06: held"
    state = production.state(run)
    assert (state.type.value, state.name) == ("COMPLETED", "Held")
    night = production.night(run)
    assert night["status"] == "held"
    assert production.champion("passed") is None
    assert approval(production, run)["decision"] == "timed_out"
    [event] = production.announced("held")
    assert event["next_step"]
    assert production.reconcile().is_completed()
    assert len(production.announced("held")) == 1


def test_reconcile_completes_a_run_that_has_ended_in_the_database_and_still_runs_in_prefect(
    production: Production, superseded: tuple[FlowRun, FlowRun]
) -> None:
    """Left by a process that dies between its last row and its last request to the server."""
    run, _ = superseded
    with production.client() as client:
        client.set_flow_run_state(run.id, Running(), force=True)
    production.nightgate("reconcile")
    assert production.state(run).name == "Running"  # it may be a retry that has not reached its night yet
    production.set_back(run, timedelta(minutes=6))
    production.nightgate("reconcile")
    assert production.state(run).name == "Superseded"


def test_reconcile_holds_a_waiting_night_whose_run_was_cancelled(production: Production) -> None:
    run = waiting(production, "cancelled")
    production.cancel(run)
    assert production.ended(run).name == "Cancelled"
    time.sleep(SECONDS_FOR_WORKER)
    assert production.nightgate("reconcile").returncode == 0
    assert production.night(run)["status"] == "held"
    assert approval(production, run)["decision"] == "rejected"
    assert production.state(run).name == "Cancelled"
    assert production.champion("cancelled") is None


def test_a_waiting_run_that_prefect_marked_as_crashed_waits_again_when_it_is_retried(production: Production) -> None:
    run = waiting(production, "crashed")
    with production.client() as client:
        client.set_flow_run_state(run.id, Crashed(message="no heartbeat"), force=True)
    production.retry(run)
    within(60, lambda: production.state(run).name == "Suspended", f"the form: {production.log('worker.log')[-5000:]}")
    assert production.night(run)["status"] == "waiting"
    # A decision counts although another night is rehearsed meanwhile.
    pipeline = load_pipeline(production.folder / "crashed.toml")
    with Database.open(production.home, production.url) as db:
        owner, night = Owner.here(), chosen_night(pipeline.schedule, date(2026, 1, 6))
        rehearsal = claim.open_run(db, pipeline, night, owner=owner, dry_run=True)
        submit(production, run, "reject", "a slice got worse")
        assert production.ended(run).name == "Held"
        lifecycle.finish_run(db, rehearsal.run_id, rehearsal.attempt, "held")
    row = production.night(run)
    assert (row["status"], row["attempts"]) == ("held", 1)
    assert production.champion("crashed") is None
