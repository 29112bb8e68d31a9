"""Nights that wait for a person on a real server: the process is gone, and the word comes from anywhere, or never."""

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
"""Within which a run that waits holds nothing any more, and one that was decided has ended."""

SECONDS_TO_BE_HEARD = 31
"""For so long `reconcile` leaves a cancel to the worker."""


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    # One each: the first candidate of a pipeline always passes the gate.
    pipelines = dict.fromkeys(("form", "command", "passed", "cancelled", "crashed"), "approval = true\n")
    with Production(tmp_path_factory.mktemp("approvals"), pipelines) as running:
        yield running


def waiting(production: Production, name: str, night: str = "2026-01-05") -> FlowRun:
    """A run of that night that has come to wait for a person."""
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


def say(production: Production, run: FlowRun, decision: str, reason: str) -> None:
    """What the form behind Resume sends."""
    with production.client() as client:
        client.resume_flow_run(run.id, run_input={"decision": decision, "name": "anna", "reason": reason})


def approval(production: Production, run: FlowRun) -> dict[str, Any]:
    [row] = production.rows("SELECT * FROM approvals WHERE run_id = :id", id=production.night(run)["run_id"])
    return row


def test_a_form_that_is_filled_in_promotes_and_nothing_is_trained_again(production: Production) -> None:
    run = waiting(production, "form")
    kill(production.worker)
    production.start_worker()
    say(production, run, "approve", "looked at the slices")
    assert production.ended(run).name == "Promoted"
    night = production.night(run)
    assert (night["status"], night["attempts"]) == ("promoted", 1)
    assert night["reason"] == "approved by anna: looked at the slices"
    said = approval(production, run)
    assert (said["decision"], said["decided_by"], said["reason"]) == ("approved", "anna", "looked at the slices")
    assert production.champion("form") == 1
    assert production.epochs(run) == [(1, 1)]
    assert [len(production.announced(name)) for name in ("waiting", "promoted")] == [1, 1]


def test_an_approval_on_the_command_line_while_the_server_is_away_ends_its_run_once_it_is_back(
    production: Production,
) -> None:
    run = waiting(production, "command")
    kill(production.server)
    done = production.nightgate("approve", "command", "--reason", "fine")
    assert done.returncode == 0, done.stderr
    assert "promoted: approved by" in done.stdout
    assert "its run is ended by the next `nightgate reconcile`" in done.stderr
    assert production.champion("command") == 1
    production.start_server()
    assert production.state(run).name == "Suspended"
    assert production.nightgate("reconcile").returncode == 0
    assert production.state(run).name == "Promoted"
    assert [one["pipeline"] for one in production.announced("promoted", 2)] == ["form", "command"]


@pytest.fixture(scope="module")
def passed_by(production: Production) -> tuple[FlowRun, FlowRun]:
    """A night that waited when the next one began, and that next one, which waits now."""
    return waiting(production, "passed"), waiting(production, "passed", "2026-01-06")


def test_a_night_that_waits_is_superseded_by_the_next_and_a_late_approval_says_so(
    production: Production, passed_by: tuple[FlowRun, FlowRun]
) -> None:
    run, following = passed_by
    night = production.night(run)
    assert night["status"] == "superseded"
    assert (
        f"nobody approved it before the night of 2026-01-06 began (run {production.night(following)['run_id']})"
        in (night["reason"])
    )
    say(production, run, "approve", "late")
    state = production.ended(run)
    assert state.name == "Superseded"
    assert night["reason"] in state.message
    assert production.champion("passed") is None
    assert approval(production, run)["decision"] == "superseded"


def test_a_night_that_nobody_approved_in_time_is_held_by_reconcile(
    production: Production, passed_by: tuple[FlowRun, FlowRun]
) -> None:
    _, run = passed_by
    production.execute(
        "UPDATE approval SET deadline = :past WHERE run_id = :id",
        past=as_sqlite(datetime.now(UTC) - timedelta(minutes=1)),
        id=production.night(run)["run_id"],
    )
    settled = production.reconcile()
    assert settled.message == "passed 2026-01-06: held"
    state = production.state(run)
    assert (state.type.value, state.name) == ("COMPLETED", "Held")
    night = production.night(run)
    assert night["status"] == "held"
    assert "nobody approved it by" in night["reason"]
    assert production.champion("passed") is None
    assert approval(production, run)["decision"] == "timed_out"
    [event] = production.announced("held")
    assert event["next_step"]
    assert production.reconcile().message == "nothing to settle"
    assert len(production.announced("held")) == 1


def test_a_run_that_has_ended_in_the_ledger_and_runs_for_ever_in_prefect_is_completed_by_reconcile(
    production: Production, passed_by: tuple[FlowRun, FlowRun]
) -> None:
    """As a process leaves it that dies between its last row and its last word to the server."""
    run, _ = passed_by
    with production.client() as client:
        client.set_flow_run_state(run.id, Running(), force=True)
    production.nightgate("reconcile")
    assert production.state(run).name == "Running"  # it may be a retry that has not come to its night yet
    production.set_back(run, timedelta(minutes=6))
    production.nightgate("reconcile")
    assert production.state(run).name == "Superseded"


def test_a_night_that_waits_is_held_by_reconcile_once_its_run_was_cancelled(production: Production) -> None:
    run = waiting(production, "cancelled")
    production.cancel(run)
    assert production.ended(run).name == "Cancelled"
    time.sleep(SECONDS_TO_BE_HEARD)
    assert production.nightgate("reconcile").returncode == 0
    night = production.night(run)
    assert (night["status"], night["reason"]) == ("held", "rejected by cancel: its run was cancelled in Prefect")
    assert production.state(run).name == "Cancelled"
    assert production.champion("cancelled") is None


def test_a_run_that_prefect_took_for_dead_while_it_waited_asks_again_when_it_is_retried(production: Production) -> None:
    run = waiting(production, "crashed")
    with production.client() as client:
        client.set_flow_run_state(run.id, Crashed(message="no sign of life"), force=True)
    production.retry(run)
    within(60, lambda: production.state(run).name == "Suspended", f"the form: {production.log('worker.log')[-5000:]}")
    assert production.night(run)["status"] == "waiting"
    # Somebody rehearses another night meanwhile: a person's word counts all the same.
    pipeline = load_pipeline(production.folder / "crashed.toml")
    with Database.open(production.home, production.url) as db:
        owner, night = Owner.here(), chosen_night(pipeline.schedule, date(2026, 1, 6))
        rehearsal = claim.open_run(db, pipeline, night, owner=owner, dry_run=True)
        say(production, run, "reject", "a slice got worse")
        assert production.ended(run).name == "Held"
        lifecycle.finish_run(db, rehearsal.run_id, rehearsal.attempt, "held")
    row = production.night(run)
    assert (row["status"], row["attempts"]) == ("held", 1)
    assert row["reason"] == "rejected by anna: a slice got worse"
    assert production.champion("crashed") is None
