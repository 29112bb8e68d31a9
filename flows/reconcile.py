"""Reconciliation: fail runs of dead processes, expire approvals, record missed nights, finish what follows the end of
a run, make Prefect's states agree with the database, and publish pending events.

`nightgate serve` and our worker run it every few minutes, the deployment `reconcile/nightgate` for other workers, and
`nightgate reconcile` at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import anyio
import httpx
from prefect import Flow, flow, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Completed, Crashed, Failed

from flows.approval import decide_orphans, is_orphan, was_asked
from flows.events import announce_all, heartbeat, send, send_heartbeats
from flows.homes import check_home_of_run, nights_of, own, own_tag, pipeline_of
from flows.run_end import announce_crash, rename_run
from flows.run_form import show_values
from flows.server.checks import nights_of_home, waits_for
from flows.server.connection import problem_of
from nightgate.database.transactions import Database
from nightgate.errors import InternalError, NightgateError
from nightgate.home import find_home, open_home
from nightgate.night.closing import close_ended
from nightgate.operations import reconciliation
from nightgate.operations.status import used_pipelines
from nightgate.pipeline_files import load_pipeline, pipeline_files
from nightgate.prediction.predict import is_left
from nightgate.registry import approvals
from nightgate.runs.run_row import RunRow
from tasks.logs import failed, readable_logs

log = logging.getLogger("nightgate.flows")

LATE = timedelta(hours=1)
"""A night without a run counts as missed after this, unless Prefect has yet to start it."""
IDLE = "Idle"
"""State of a run that found nothing to reconcile."""
UNFINISHED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]
PAGE = 200
"""Most runs in one response of Prefect's."""
CANCEL_PATIENCE = timedelta(seconds=30)
"""A worker sees a cancel within seconds, and kills a run that has not ended 30 s later."""
CANCELLED_BY = "its run was cancelled in Prefect"
FINISH_PATIENCE = timedelta(minutes=5)
"""After its row has ended, a run has this long to write its report and end its flow."""
INTERVAL_SECONDS = 300.0
"""Between two regular calls. Suspended runs need a heartbeat at least every 900 s (`deployments.automations`): two may
be lost."""


@flow(name="reconcile", flow_run_name="reconcile")
def reconcile() -> State[Any]:
    """Reconcile rows, approvals and Prefect's states. It is safe at any time and may be repeated."""
    try:
        with readable_logs():
            check_home_of_run()
            done = reconcile_now()
            done.check()
    except NightgateError as error:
        return failed(error)
    if runtime.deployment.id is not None:
        _remove_idle_runs(UUID(runtime.deployment.id))
    ended = "; ".join(f"{one.pipeline} {one.night}: {one.status}" for one in done.ended)
    return Completed(message=ended) if ended else Completed(name=IDLE, message="nothing to reconcile")


async def reconcile_regularly(seconds: float = INTERVAL_SECONDS) -> None:
    """Reconcile within a process that runs for long anyway, beside all else that its event loop does, until cancelled.

    As a flow it would take a process of 200 MB each time, and 288 lines a day in the list of runs.
    """
    while True:
        await anyio.sleep(seconds)
        await anyio.to_thread.run_sync(_reconcile_once, abandon_on_cancel=True)


def _reconcile_once() -> None:
    try:
        if find_home() is not None:
            reconcile_now()
    except Exception as error:  # noqa: BLE001 - whatever it is must end neither this process nor the nights at work
        log.warning("not reconciled, it is tried again: %s", InternalError.of(error).reason)


def _remove_idle_runs(deployment_id: UUID) -> None:
    """Remove earlier runs of this flow that found nothing to do: one of them in the list of runs is enough."""
    try:
        with get_client(sync_client=True) as client:
            for run in client.read_flow_runs(
                deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [deployment_id]}}),
                flow_run_filter=FlowRunFilter.model_validate({"state": {"name": {"any_": [IDLE]}}}),
            ):
                client.delete_flow_run(run.id)
    except httpx.HTTPError as error:
        log.warning("earlier runs that did nothing stay in the list: %s", error)


@dataclass
class Done:
    """The runs that were ended or closed, and the parts that failed; a failed part does not stop the others."""

    ended: list[RunRow] = field(default_factory=list)
    closed: list[RunRow] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - reported at the end, after all other parts
            reason = InternalError.of(error).reason
            log.warning("%s could not be reconciled: %s", what, reason)
            self.failed.append(f"{what}: {reason}")

    def check(self) -> None:
        """Raise a `NightgateError` with every part that failed."""
        if self.failed:
            raise NightgateError(
                "could not be reconciled: " + "; ".join(self.failed),
                next_step="fix the cause; the next reconcile tries again, and all other parts are done",
            )


def reconcile_now() -> Done:
    """Reconcile everything that can be; without a Prefect server that accepts us, database and home alone."""
    done = Done()
    with Database.open(open_home()) as db:
        for name in sorted(used_pipelines(db)):
            with done.part(f"runs of {name}"):
                done.ended += reconciliation.finish_dead_runs(db, name)
        with done.part("approvals"):
            done.ended += approvals.hold_overdue(db)
        with get_client(sync_client=True) as client:
            has_server = problem_of(client) is None
            if has_server:
                _end_by_server(db, client, done)
            for name in sorted(used_pipelines(db)):
                with done.part(f"ends of {name}"):
                    done.closed += close_ended(db, name)
            if has_server:
                _report_to_server(db, client, done)
    for one in done.ended:
        log.info("reconciled: %s %s is %s: %s", one.pipeline, one.night, one.status, one.reason)
    return done


def _end_by_server(db: Database, client: SyncPrefectClient, done: Done) -> None:
    """Record nights that were missed and runs that were cancelled, both of which the server knows."""
    with done.part("missed nights"):
        # The first of each pipeline is that with this home's tag.
        nights = {pipeline_of(one): one for one in reversed(own(nights_of(client), own_tag()))}
        for pipeline in _pipelines():
            with done.part(f"missed nights of {pipeline.name}"):
                # A night is missed only where an active schedule should have started it, which the server knows.
                deployment = nights.get(pipeline.name)
                if deployment is None or deployment.paused or not any(one.active for one in deployment.schedules):
                    reconciliation.record_pause(db, pipeline.name, datetime.now(UTC))
                else:
                    due = _due(client, deployment.id)
                    done.ended += reconciliation.record_missed(db, pipeline, datetime.now(UTC) - LATE, still_due=due)
            if deployment is not None:
                with done.part(f"form of {pipeline.name}"):
                    show_values(client, deployment, pipeline)
    with done.part("decisions of forms"):
        done.ended += decide_orphans(db, client)
    with done.part("cancelled runs"):
        done.ended += obey_cancels(db, client)


def _report_to_server(db: Database, client: SyncPrefectClient, done: Done) -> None:
    """Publish how runs ended, and heartbeats for those that wait."""
    with done.part("states of Prefect's runs"):
        agree(db, client)
    with done.part("events of nights that have ended"):
        announce_all(db)
    with done.part("heartbeats of suspended runs"):
        send_heartbeats(db)
    with done.part("heartbeats of runs that wait for a slot"):
        # Those are no reason to report that a night does not start.
        for one in nights_of_home(client, only_late=True)[0]:
            for run in one.late if waits_for(one) else ():
                send(heartbeat(run.id))


def agree(db: Database, client: SyncPrefectClient) -> None:
    """Set the states of Prefect's runs by the database, which decides how a night ended."""
    ends = {UUID(end.prefect_flow_run_id): end for end in reconciliation.ended_lately(db)}
    ids = list(ends)
    done = Done()
    for first in range(0, len(ids), PAGE):
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                id=FlowRunFilterId(any_=ids[first : first + PAGE]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(not_any_=[StateType.COMPLETED])),
            )
        )
        for run in runs:
            end = ends[run.id]
            if run.state is None:
                continue
            if _contradicts(run.state, end) or (run.state.is_scheduled() and is_orphan(client, run)):
                with done.part(run.name):
                    client.set_flow_run_state(run.id, _state_of(end), force=True)
                    log.info("%s: its state was %s, and the database says %s", run.name, run.state.name, end.status)
    done.check()


def obey_cancels(db: Database, client: SyncPrefectClient) -> list[RunRow]:
    """End cancelled runs that no worker ends: their worker is gone, or they are suspended.

    A cancel before the form for an approval was opened ended the night's prediction and decides nothing.

    A process of theirs that still lives learns it from the database at its next heartbeat.
    """
    known = {UUID(one.prefect_flow_run_id): one for one in reconciliation.unfinished(db) if one.prefect_flow_run_id}
    if not known:
        return []
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            id=FlowRunFilterId(any_=list(known)),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CANCELLING, StateType.CANCELLED])),
        )
    )
    waiting = [run for run in runs if run.state and datetime.now(UTC) - run.state.timestamp > CANCEL_PATIENCE]
    ended = [
        reconciliation.cancel(db, known[run.id], CANCELLED_BY, deployed=run.deployment_id is not None)
        for run in waiting
        if known[run.id].status != "waiting" or was_asked(client, run.id, known[run.id].run_id)
    ]
    return [one for one in ended if one is not None]


def due_nights(deployment_id: UUID) -> frozenset[datetime]:
    """Instants (UTC) of a deployment's scheduled nights that are due and have not ended; none if no server answers."""
    try:
        with get_client(sync_client=True) as client:
            return _due(client, deployment_id)
    except httpx.HTTPError as error:
        # The database looks for newer nights too: an old night cannot replace the champion of a newer one.
        log.warning("it is not known whether a newer night is due: %s", error)
        return frozenset()


def newer_is_due(due: frozenset[datetime], scheduled_for: datetime) -> str:
    """Why a scheduled run need not start: a later one of its deployment is due. '' if none is."""
    newest = max(due, default=scheduled_for)
    if newest < scheduled_for + timedelta(seconds=1):
        return ""
    return f"a newer night is due since {newest:%Y-%m-%d %H:%M} UTC and runs instead"


def reconcile_after_crash(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Prefect hook, called in runner or worker after a run's process has died: end the run's row within seconds."""
    try:
        with Database.open(open_home()) as db:
            name = str(flow_run.parameters.get("pipeline"))
            was_at_night = str(flow_run.id) in {run.prefect_flow_run_id for run in reconciliation.unfinished(db)}
            if state.is_cancelling() or state.is_cancelled():
                # A process that had to be killed could not record why it ended: Python loses an exception that a
                # signal's handler raises while it frees an object.
                for run in reconciliation.unfinished(db):
                    if run.prefect_flow_run_id == str(flow_run.id) and run.status == "running":
                        reconciliation.cancel(db, run, CANCELLED_BY, deployed=flow_run.deployment_id is not None)
                        rename_run(f"{run.pipeline} {run.night}: cancelled", run.pipeline, "cancelled", run=flow_run)
            reconciliation.finish_dead_runs(db, name)
            close_ended(db, name)
            announce_all(db)
            if state.is_crashed() and not was_at_night and is_left(db.home, name):
                announce_crash(flow, flow_run, state)  # at the predictions that follow a night
    except Exception as error:  # noqa: BLE001 - a worker may not reach the database; the next reconcile does it
        log.warning("the row of run %s was not ended, the next reconcile does it: %s", flow_run.name, error)


def _pipelines() -> Iterator[Any]:
    for path in pipeline_files().values():
        try:
            yield load_pipeline(path)
        except NightgateError as error:
            log.warning("%s: %s", path, error.reason)


def _due(client: SyncPrefectClient, deployment_id: UUID) -> frozenset[datetime]:
    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [deployment_id]}}),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)),
            expected_start_time=FlowRunFilterExpectedStartTime.model_validate({"before_": datetime.now(UTC)}),
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
    )
    return frozenset(
        datetime.fromisoformat(run.expected_start_time.isoformat()).astimezone(UTC)
        for run in runs
        if run.auto_scheduled and run.expected_start_time
    )


def _contradicts(state: State[Any], end: reconciliation.EndedAttempt) -> bool:
    if state.is_scheduled() or state.is_pending():
        return False  # a retry was requested
    if state.is_running() and state.timestamp > end.finished_at:
        # A retry that may not have claimed its night yet.
        return bool(datetime.now(UTC) - state.timestamp > FINISH_PATIENCE)
    if state.is_cancelled():
        # Too late where the night had ended. A candidate that waited is held by its cancel, and so ends after it.
        had_ended = end.status not in {"cancelled", "failed"} and end.finished_at < state.timestamp
        return had_ended or end.status == "promoted"
    if state.is_final():
        # Prefect took a living run for dead, or a run that ended could not report it.
        return (state.is_crashed() or state.is_failed()) and end.status != "failed"
    if state.is_paused() and end.status == "cancelled":
        return False  # paused in the UI, where it may be resumed
    is_old = datetime.now(UTC) - end.finished_at > FINISH_PATIENCE
    was_cancelled = state.is_cancelling() and end.status == "cancelled"
    return state.is_paused() or is_old or was_cancelled or end.error_type == "crashed"


def _state_of(end: reconciliation.EndedAttempt) -> State[Any]:
    message = f"{end.status}: {end.reason} [{end.run_id}]"
    if end.status == "cancelled":
        return Cancelled(message=message)
    if end.status == "failed":
        return Crashed(message=message) if end.error_type == "crashed" else Failed(message=message)
    return Completed(name=end.status.capitalize(), message=message)


def end_flow_runs() -> str:
    """Publish how runs ended, and end their flow runs: those that are suspended have no process to do so.

    Returns why it is not done yet, '' if it is.
    """
    with get_client(sync_client=True) as client:
        if problem := problem_of(client):
            return f"the Prefect server {problem}\n  then: `nightgate reconcile` ends the flow run"
        with Database.open(open_home()) as db:
            announce_all(db)
            agree(db, client)
    return ""
