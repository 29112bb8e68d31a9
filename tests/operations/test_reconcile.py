"""`reconcile` on a real server: which states of Prefect it changes by the database, and which nights are missed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.input.run_input import keyset_from_paused_state
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import (
    AwaitingRetry,
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Paused,
    Pending,
    Running,
    Suspended,
)
from sqlalchemy.orm import Session

from flows.approval import Approval
from flows.events import announce
from flows.reconcile import (
    IDLE,
    Done,
    _remove_idle_runs,
    agree,
    obey_cancels,
    reconcile_after_crash,
    reconcile_now,
    reconcile_regularly,
)
from nightgate.database.schema import Run
from nightgate.database.transactions import Database
from nightgate.errors import NightgateError
from nightgate.operations import reconciliation
from nightgate.operations.status import last_due
from nightgate.pipeline_files import load_by_name
from nightgate.prediction.predict import _scratch
from nightgate.registry import approvals
from nightgate.runs import lifecycle
from nightgate.runs.liveness import Owner
from nightgate.runs.run_row import RunRow
from nightgate.schedule import scheduled_night
from tests.conftest import free_port
from tests.support import night_rows
from tests.support.prefect_api import events

pytestmark = [pytest.mark.flow, pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)]

AT_ONCE, LATER = timedelta(minutes=5), timedelta()
"""Time that a run has to report its end itself: some is left, or none."""


@pytest.fixture
def api(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as client:
        yield client


@flow(name="nightly")
def stand_in() -> None:
    """A flow with the name of the nights, which is never run."""


def run_of_prefect(api: SyncPrefectClient, state: State[Any]) -> FlowRun:
    """A run of a deployment: one without cannot be suspended."""
    deployment_id = api.create_deployment(api.create_flow(stand_in), name="reconciled")
    run = api.create_flow_run_from_deployment(deployment_id, state=Pending())
    for one in (Running(), state):
        api.set_flow_run_state(run.id, one, force=True)
    return run


def ended(database: Database, run: FlowRun, status: str, error_type: str | None = None) -> RunRow:
    """The ended night of a Prefect run."""
    night = night_rows.open_run(
        database, night_rows.pipeline(), night_rows.night(), prefect_flow_run_id=str(run.id), force=True
    )

    def end(session: Session) -> None:
        lifecycle.end(session, session.get_one(Run, night.run_id), status, datetime.now(UTC), "why", error_type)

    database.write(end)
    return night


def test_an_approval_is_carried_out_though_its_deployment_was_removed(
    api: SyncPrefectClient, database: Database
) -> None:
    """The file's `cron = ""` removes the deployment of the night, without which no resumed run starts."""
    resumed = []
    for day, answer in enumerate(({"decision": "approve", "name": "Ada", "reason": "it reads well"}, None)):
        run = run_of_prefect(api, Running())
        night, _ = night_rows.judged_version(database, day, prefect_flow_run_id=str(run.id))
        night_rows.await_approval(database, night)
        state = Suspended(pause_key=f"approval-{night.run_id}")
        state.state_details.run_input_keyset = keyset = keyset_from_paused_state(state)
        Approval.save(keyset, run.id)
        api.set_flow_run_state(run.id, state, force=True)
        assert run.deployment_id is not None
        api.delete_deployment(run.deployment_id)
        if answer is not None:
            api.resume_flow_run(run.id, answer)
        resumed.append((run, night))
    reconcile_now().check()
    (approved, night), (still, other) = resumed
    assert night_rows.one(database, night.run_id)["reason"] == "approved by Ada: it reads well"
    assert [api.read_flow_run(run.id).state_name for run in (approved, still)] == ["Promoted", "Suspended"]
    # The same where the form was filled in and a command decided before.
    api.resume_flow_run(still.id, {"decision": "approve", "name": "Ada", "reason": "it reads well"})
    approvals.reject(database, other.run_id, by="bob", reason="worse on boots")
    assert after_reconcile(api, database, still).name == "Held"


def after_reconcile(api: SyncPrefectClient, database: Database, run: FlowRun) -> State[Any]:
    agree(database, api)
    state: State[Any] | None = api.read_flow_run(run.id).state
    assert state is not None
    return state


@pytest.mark.parametrize(
    ("state", "status", "error_type", "patience", "becomes"),
    [
        (Running(), "promoted", None, LATER, "Promoted"),
        (Cancelling(), "held", None, LATER, "Held"),
        (Cancelling(), "cancelled", "cancelled", AT_ONCE, "Cancelled"),
        (Suspended(), "superseded", None, AT_ONCE, "Superseded"),
        (Suspended(), "held", None, AT_ONCE, "Held"),
        (Running(), "failed", "crashed", AT_ONCE, "Crashed"),
        (Running(), "failed", "data", LATER, "Failed"),
        (Running(), "cancelled", "cancelled", LATER, "Cancelled"),
        (Crashed(), "promoted", None, AT_ONCE, "Promoted"),
        (Failed(), "held", None, AT_ONCE, "Held"),
        (Cancelled(), "promoted", None, AT_ONCE, "Promoted"),
        (Crashed(), "cancelled", "cancelled", AT_ONCE, "Cancelled"),
    ],
    ids=lambda value: value.name if isinstance(value, State) else str(value),
)
def test_a_state_that_contradicts_the_database_is_changed(
    state: State[Any],
    status: str,
    error_type: str | None,
    patience: timedelta,
    becomes: str,
    api: SyncPrefectClient,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flows.reconcile.FINISH_PATIENCE", patience)
    run = run_of_prefect(api, state)
    night = ended(database, run, status, error_type)
    found = after_reconcile(api, database, run)
    assert found.name == becomes
    assert found.message == f"{status}: why [{night.run_id}]"


@pytest.mark.parametrize(
    ("state", "status", "error_type", "patience"),
    [
        pytest.param(Running(), "promoted", None, AT_ONCE, id="it is about to say so itself"),
        pytest.param(Cancelled(), "held", None, LATER, id="a candidate that waited was rejected by the cancel"),
        pytest.param(Crashed(), "failed", "crashed", LATER, id="both say that it broke"),
        pytest.param(Paused(), "cancelled", "cancelled", LATER, id="a person paused it and may resume it"),
        pytest.param(AwaitingRetry(), "failed", "crashed", LATER, id="a retry was requested"),
        pytest.param(Pending(), "failed", "crashed", LATER, id="a retry is about to begin"),
    ],
)
def test_a_state_that_does_not_contradict_the_database_stays(
    state: State[Any],
    status: str,
    error_type: str | None,
    patience: timedelta,
    api: SyncPrefectClient,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flows.reconcile.FINISH_PATIENCE", patience)
    run = run_of_prefect(api, state)
    ended(database, run, status, error_type)
    assert after_reconcile(api, database, run).name == state.name


@pytest.mark.parametrize(("status", "becomes"), [("held", "Held"), ("skipped", "Skipped"), ("failed", "Cancelled")])
def test_a_night_that_had_ended_when_it_was_cancelled_stays_what_it_was(
    status: str, becomes: str, api: SyncPrefectClient, database: Database
) -> None:
    run = run_of_prefect(api, Running())
    ended(database, run, status)
    api.set_flow_run_state(run.id, Cancelled(), force=True)  # while its last step predicts
    assert after_reconcile(api, database, run).name == becomes


def test_a_running_retry_with_a_row_of_its_own_is_not_ended(
    api: SyncPrefectClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.reconcile.FINISH_PATIENCE", LATER)
    run = run_of_prefect(api, Running())
    before = ended(database, run, "failed", "data")
    again = night_rows.open_run(
        database,
        night_rows.pipeline(learning_rate=1e-5),
        night_rows.night(),
        prefect_flow_run_id=str(run.id),
        owner=Owner.here(),
    )
    assert (again.run_id != before.run_id, again.status) == (True, "running")
    assert after_reconcile(api, database, run).name == "Running"


@pytest.mark.parametrize("status", ["failed", "cancelled", "held"])
def test_a_retry_that_has_not_claimed_its_night_yet_is_left_alone(
    api: SyncPrefectClient, database: Database, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    run = run_of_prefect(api, Running())
    ended(database, run, status, "crashed" if status == "failed" else None)
    api.set_flow_run_state(run.id, Running(), force=True)
    assert after_reconcile(api, database, run).name == "Running"
    monkeypatch.setattr("flows.reconcile.FINISH_PATIENCE", timedelta())
    assert after_reconcile(api, database, run).name != "Running", "it never came to that"


def test_a_flow_run_whose_night_another_one_has_resumed_is_ended_too(
    api: SyncPrefectClient, database: Database
) -> None:
    lost = run_of_prefect(api, Running())
    night = night_rows.open_run(
        database, night_rows.pipeline(), night_rows.night(), prefect_flow_run_id=str(lost.id), force=True
    )
    # Its process is dead, and a command resumes the night before the server knows.
    again = night_rows.open_run(database, night_rows.pipeline(), night_rows.night(), owner=Owner.here())
    assert (again.run_id, again.attempt) == (night.run_id, 2)
    assert after_reconcile(api, database, lost).name == "Crashed"


SCHEDULE = """
name = "nightly-shop"
[data]
source = { kind = "sample" }
labels = ["bad", "good"]
[schedule]
cron = "15 3 * * *"
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Database) -> str:
    """A pipeline that ran on its schedule four nights ago, and not since; gives its name."""
    (tmp_path / "nightly-shop.toml").write_text(SCHEDULE, encoding="utf-8")
    monkeypatch.setenv("NIGHTGATE_PIPELINES", str(tmp_path))
    pipeline = load_by_name("nightly-shop")
    due = last_due(pipeline, datetime.now(UTC) - timedelta(days=3))
    assert due is not None
    run = night_rows.open_run(database, pipeline, scheduled_night(pipeline.schedule, due))
    lifecycle.finish_run(database, run.run_id, run.attempt, "skipped")
    return "nightly-shop"


@pytest.mark.parametrize("deployed", [True, False])
def test_a_cancelled_run_that_does_not_react_has_the_command_that_resumes_it(
    api: SyncPrefectClient, database: Database, monkeypatch: pytest.MonkeyPatch, deployed: bool
) -> None:
    run = run_of_prefect(api, Cancelling()) if deployed else api.create_flow_run(stand_in, state=Cancelling())
    night = night_rows.open_run(
        database, night_rows.pipeline(), night_rows.night(), prefect_flow_run_id=str(run.id), owner=Owner.here()
    )
    assert obey_cancels(database, api) == [], "it may still react"
    monkeypatch.setattr("flows.reconcile.CANCEL_PATIENCE", timedelta())
    [ended] = obey_cancels(database, api)
    assert (ended.run_id, ended.status) == (night.run_id, "cancelled")
    [step] = database.frame("SELECT next_step FROM run")["next_step"]
    assert (f"`prefect flow-run retry {run.id}`" if deployed else "`nightgate run reviews --night 2026-03-01`") in step


def test_a_cancel_holds_a_candidate_whose_approval_was_asked_for_and_not_one_whose_night_still_predicts(
    api: SyncPrefectClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.reconcile.CANCEL_PATIENCE", timedelta())
    ends = {}
    for day, asked in enumerate((True, False)):
        run = run_of_prefect(api, Running())
        night, _ = night_rows.judged_version(database, day, prefect_flow_run_id=str(run.id))
        night_rows.await_approval(database, night)
        # Pause in the UI leaves another key.
        key = f"approval-{night.run_id}" if asked else None
        api.set_flow_run_state(run.id, Suspended(pause_key=key), force=True)
        api.set_flow_run_state(run.id, Cancelled(), force=True)
        obey_cancels(database, api)
        ends[asked] = night_rows.one(database, night.run_id)["status"]
    assert ends == {True: "held", False: "waiting"}
    [still] = approvals.open_approvals(database)
    assert approvals.approve(database, still.run_id, by="ada", reason="it reads well").status == "promoted"
    assert after_reconcile(api, database, run).name == "Promoted"


@pytest.mark.parametrize(("state", "status"), [(Cancelling(), "cancelled"), (Crashed(), "failed")])
def test_a_process_that_died_before_it_said_why_was_cancelled_if_prefect_cancels_its_run(
    api: SyncPrefectClient, database: Database, state: State[Any], status: str
) -> None:
    run = run_of_prefect(api, state)
    night = night_rows.open_run(database, night_rows.pipeline(), night_rows.night(), prefect_flow_run_id=str(run.id))
    run.parameters = {"pipeline": night_rows.pipeline().name}
    reconcile_after_crash(stand_in, run, state)
    assert night_rows.one(database, night.run_id)["status"] == status
    if status == "cancelled":
        assert api.read_flow_run(run.id).name == f"{night.pipeline} {night.night}: cancelled"


@pytest.mark.parametrize("is_left", [True, False])
def test_a_process_that_died_at_the_predictions_behind_its_night_is_reported(
    api: SyncPrefectClient, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_left: bool
) -> None:
    name = f"predicts-{'left' if is_left else 'whole'}"
    section = '[predict]\nsource = { kind = "sample" }\noutput = "predictions.csv"\n'
    (tmp_path / f"{name}.toml").write_text(SCHEDULE.replace("nightly-shop", name) + section, encoding="utf-8")
    monkeypatch.setenv("NIGHTGATE_PIPELINES", str(tmp_path))
    output = load_by_name(name).predict.output
    assert output is not None
    if is_left:
        _scratch(database.home, name, output).mkdir(parents=True)
    run = run_of_prefect(api, Crashed())
    ended(database, run, "held")
    run.parameters = {"pipeline": name}
    reconcile_after_crash(stand_in, run, Crashed())
    announce("frozen", name, {}, None)  # the server stores it after the one that is looked for
    events(str(api.api_url), "nightgate.frozen", name)
    about = {"event": {"name": ["nightgate.failed"]}, "resource": {"id": [f"nightgate.pipeline.{name}"]}}
    found = api.request("POST", "/events/filter", json={"filter": about}).json()["events"]
    assert [str(run.id) in one["payload"]["next_step"] for one in found] == [True] * is_left


def missed(done: Done, pipeline: str) -> int:
    return len([one for one in done.ended if (one.pipeline, one.status) == (pipeline, "missed")])


@pytest.fixture
def deployment_id(api: SyncPrefectClient, shop: str) -> Iterator[UUID]:
    """The deployment of the shop's nights."""
    schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron="15 3 * * *", timezone="UTC"), active=True)
    made = api.create_deployment(api.create_flow(stand_in), name=shop, schedules=[schedule])
    yield made
    with suppress(ObjectNotFound):
        api.delete_deployment(made)


@pytest.mark.usefixtures("deployment_id")
def test_nights_of_a_deployment_are_missed_only_once_its_server_answers(shop: str) -> None:
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        assert missed(reconcile_now(), shop) == 0, "the server does not answer"
    assert missed(reconcile_now(), shop) >= 2
    assert missed(reconcile_now(), shop) == 0, "once"


def test_nights_of_a_pause_are_not_missed_then_or_later(
    api: SyncPrefectClient, database: Database, deployment_id: UUID, shop: str
) -> None:
    api.pause_deployment(deployment_id)
    assert missed(reconcile_now(), shop) == 0
    api.resume_deployment(deployment_id)
    assert missed(reconcile_now(), shop) == 0, "they were not to start"
    in_two_days = datetime.now(UTC) + timedelta(days=2)
    assert len(reconciliation.record_missed(database, load_by_name(shop), in_two_days)) == 2, "those after it were"


def test_a_pipeline_that_is_not_deployed_misses_nothing(api: SyncPrefectClient, deployment_id: UUID, shop: str) -> None:
    api.delete_deployment(deployment_id)
    assert missed(reconcile_now(), shop) == 0


def test_a_process_that_runs_for_long_reconciles_every_few_moments(
    api: SyncPrefectClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTGATE_HOME", str(database.home.root))
    night = ended(database, (run := run_of_prefect(api, Running())), "failed", "crashed")

    def state() -> State[Any] | None:
        return api.read_flow_run(run.id).state

    async def other_work() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reconcile_regularly, 0.1)
            with anyio.fail_after(20):
                while (found := state()) is None or not found.is_crashed():
                    await anyio.sleep(0.1)
            tasks.cancel_scope.cancel()

    anyio.run(other_work)
    found = state()
    assert found is not None
    assert night.run_id in str(found.message)


@pytest.mark.usefixtures("database")
def test_of_the_runs_that_found_nothing_to_reconcile_the_last_one_stays_in_the_list(api: SyncPrefectClient) -> None:
    deployment_id = api.create_deployment(api.create_flow(stand_in), name="idle")
    states = (Completed(name=IDLE), Completed(name=IDLE), Completed(message="small 2026-01-05: failed"), Running())
    runs = [api.create_flow_run_from_deployment(deployment_id) for _ in states]
    for run, state in zip(runs, states, strict=True):
        api.set_flow_run_state(run.id, state, force=True)
    _remove_idle_runs(deployment_id)
    ours = DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id]))
    assert {run.id for run in api.read_flow_runs(deployment_filter=ours)} == {run.id for run in runs[2:]}


def test_a_failure_is_named_at_the_end_and_does_not_stop_the_rest(api: SyncPrefectClient, database: Database) -> None:
    del api
    # No id of a Prefect run: states can not be compared, and the event of this end can not be made.
    night = night_rows.open_run(database, night_rows.pipeline("odd"), night_rows.night(), prefect_flow_run_id="odd")
    lifecycle.finish_run(database, night.run_id, night.attempt, "held")
    dead = night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
    done = reconcile_now()
    assert [one.run_id for one in done.ended] == [dead.run_id]
    with pytest.raises(NightgateError, match="ValueError"):
        done.check()
    announced = database.frame("SELECT run_id FROM run WHERE announced_at IS NOT NULL")["run_id"]
    assert list(announced) == [dead.run_id]
