"""Put right what no run can put right itself: rows of dead processes, approvals that nobody gave, nights that never
started, links to champions of before, Prefect's states that say something else than the ledger, and ends that were not
announced.

It is scheduled every few minutes (deployment `reconcile/nightgate`); `nightgate reconcile` does the same by hand.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow, flow
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
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Crashed, Failed

from flows.events import announce_ends
from flows.signs import vouch_for_waiting
from nightgate.database.transactions import Database
from nightgate.errors import InternalError, NightgateError
from nightgate.home import open_home
from nightgate.operations import reconciliation
from nightgate.operations.status import used_pipelines
from nightgate.pipeline_files import load_pipeline, pipeline_files
from nightgate.registry import approvals, champion_link
from nightgate.runs.run_row import RunRow
from tasks.logs import failed, readable_logs

log = logging.getLogger("nightgate.flows")

LATE = timedelta(hours=1)
"""After which a night that has no run counts as missed, unless Prefect still means to start it."""
UNFINISHED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]
PAGE = 200
"""Runs that Prefect gives in one answer."""
TO_BE_HEARD = timedelta(seconds=30)
"""A worker hears of a cancel within seconds, and kills the run 30 s later if that does not end by itself."""
SETTLED_LONG_AGO = timedelta(minutes=5)
"""A run writes its report and ends its flow after its row has ended: so long it may take."""


@flow(name="reconcile", flow_run_name="reconcile")
def reconcile() -> State[Any]:
    """Settle rows, approvals and Prefect's states against each other. Safe at any time, and as often as one likes."""
    try:
        with readable_logs():
            done = reconcile_now()
            done.check()
    except NightgateError as error:
        return failed(error)
    told = "; ".join(f"{one.pipeline} {one.night}: {one.status}" for one in done.settled)
    return Completed(message=told or "nothing to settle")


@dataclass
class Done:
    """What was settled, and what could not be: one part that fails keeps no other from being done."""

    settled: list[RunRow] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - told at the end, after all else is done
            told = InternalError.of(error).reason
            log.warning("%s could not be put right: %s", what, told)
            self.failed.append(f"{what}: {told}")

    def check(self) -> None:
        """Raise what has failed, in words."""
        if self.failed:
            raise NightgateError(
                "could not be put right: " + "; ".join(self.failed),
                next_step="mend that; all else is done, and the next reconcile tries it again",
            )


def reconcile_now() -> Done:
    """Put everything right that can be. Without a server only what the ledger knows by itself is put right."""
    done, home = Done(), open_home()
    with Database.open(home) as db:
        for name in sorted(used_pipelines(db)):
            with done.part(f"runs of {name}"):
                done.settled += reconciliation.settle_running(db, name)
            with done.part(f"link to the champion of {name}"):
                if wrong := champion_link.update(db, name):
                    log.info("repaired: %s", wrong)
        with done.part("approvals"):
            done.settled += approvals.hold_overdue(db)
        with get_client(sync_client=True) as client:
            if client.api_healthcheck() is None:
                _with_server(db, client, done)
    for one in done.settled:
        if (home.runs / one.run_id).is_dir():
            from nightgate.reports import report

            report.publish_if_possible(home, one.run_id)
        log.info("settled: %s %s is %s: %s", one.pipeline, one.night, one.status, one.reason)
    return done


def _with_server(db: Database, client: SyncPrefectClient, done: Done) -> None:
    for pipeline in _pipelines():
        with done.part(f"missed nights of {pipeline.name}"):
            # What nobody was to start is not missed; nor is it known without a server.
            deployment_id = _scheduled_by(client, pipeline.name)
            if deployment_id is None:
                reconciliation.record_pause(db, pipeline.name, datetime.now(UTC))
            else:
                due = _due(client, deployment_id)
                done.settled += reconciliation.record_missed(db, pipeline, datetime.now(UTC) - LATE, still_due=due)
    with done.part("cancelled runs"):
        done.settled += obey_cancels(db, client)
    with done.part("states of Prefect's runs"):
        agree(db, client)
    with done.part("events of nights that have ended"):
        announce_ends(db)
    with done.part("runs that wait for a person"):
        vouch_for_waiting(db)


def agree(db: Database, client: SyncPrefectClient) -> None:
    """Bring the states of Prefect's runs in line with the ledger, which is the truth about nights that have ended."""
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
            if run.state is not None and _contradicts(run.state, end):
                with done.part(run.name):
                    client.set_flow_run_state(run.id, _state_of(end), force=True)
                    log.info("%s: Prefect said %s, the ledger says %s", run.name, run.state.name, end.status)
    done.check()


def obey_cancels(db: Database, client: SyncPrefectClient) -> list[RunRow]:
    """End the runs that a person cancelled and that nobody told so: their worker is gone, or they wait for a person.

    Their process, if it lives, learns it from the ledger at its next sign of life.
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
    unheard = [run for run in runs if run.state and datetime.now(UTC) - run.state.timestamp > TO_BE_HEARD]
    by = "its run was cancelled in Prefect"
    ended = [reconciliation.cancel(db, known[run.id], by, deployed=run.deployment_id is not None) for run in unheard]
    return [one for one in ended if one is not None]


def due_nights(deployment_id: UUID) -> frozenset[datetime]:
    """Instants (UTC) of a deployment's scheduled nights that Prefect has yet to start or to end; none where no server
    answers.
    """
    try:
        with get_client(sync_client=True) as client:
            return _due(client, deployment_id)
    except httpx.HTTPError as error:
        # The ledger looks for newer nights as well: a stale one can still move no champion backwards.
        log.warning("whether a newer night is due is not known: %s", error)
        return frozenset()


def newer_is_due(due: frozenset[datetime], scheduled_for: datetime) -> str:
    """Why a scheduled run is not worth starting: a later one of its deployment is due by now. '' where none is."""
    newest = max(due, default=scheduled_for)
    if newest < scheduled_for + timedelta(seconds=1):
        return ""
    return f"a newer night is due since {newest:%Y-%m-%d %H:%M} UTC and runs instead"


def settle_after_crash(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook of Prefect's in the runner or worker, once a process of ours has died: its row is settled within seconds."""
    del flow, state
    try:
        with Database.open(open_home()) as db:
            reconciliation.settle_running(db, str(flow_run.parameters.get("pipeline")))
            announce_ends(db)
    except Exception as error:  # noqa: BLE001 - a worker elsewhere may not reach the ledger: the next reconcile does it
        log.warning("run %s is not settled yet, reconcile does it: %s", flow_run.name, error)


def _pipelines() -> Iterator[Any]:
    for path in pipeline_files().values():
        try:
            yield load_pipeline(path)
        except NightgateError as error:
            log.warning("%s: %s", path, error.reason)


def _scheduled_by(client: SyncPrefectClient, pipeline: str) -> UUID | None:
    """The deployment by which the server starts the nights of a pipeline; None where nobody deployed it, or somebody
    has paused it.
    """
    try:
        deployment = client.read_deployment_by_name(f"nightly/{pipeline}")
    except ObjectNotFound:
        return None
    starts = not deployment.paused and any(one.active for one in deployment.schedules)
    return deployment.id if starts else None


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
        return False  # somebody has asked for a retry
    if state.is_running() and state.timestamp > end.finished_at:
        # A retry that has not claimed its night yet, as far as it may still come to that.
        return bool(datetime.now(UTC) - state.timestamp > SETTLED_LONG_AGO)
    if state.is_cancelled():
        return end.status == "promoted"  # it came too late, and nobody may believe that the champion stayed
    if state.is_final():
        # Given up by Prefect while it lived, and it came to its end all the same; or it ended, and could not say so.
        return (state.is_crashed() or state.is_failed()) and end.status not in {"failed", "cancelled"}
    if state.is_paused() and end.status == "cancelled":
        return False  # a person paused it, and may resume it
    is_old = datetime.now(UTC) - end.finished_at > SETTLED_LONG_AGO
    was_cancelled = state.is_cancelling() and end.status == "cancelled"
    return state.is_paused() or is_old or was_cancelled or end.error_type == "crashed"


def _state_of(end: reconciliation.EndedAttempt) -> State[Any]:
    message = f"{end.status}: {end.reason} [{end.run_id}]"
    if end.status == "cancelled":
        return Cancelled(message=message)
    if end.status == "failed":
        return Crashed(message=message) if end.error_type == "crashed" else Failed(message=message)
    return Completed(name=end.status.capitalize(), message=message)


def settle_flow_runs(ended: Sequence[RunRow]) -> str:
    """After a decision by hand: end the suspended runs of these nights. A sentence where the server cannot be told."""
    if not any(one.prefect_flow_run_id for one in ended):
        return ""
    with get_client(sync_client=True) as client:
        if client.api_healthcheck() is not None:
            return "the Prefect server does not answer: its run is ended by the next `nightgate reconcile`"
        with Database.open(open_home()) as db:
            announce_ends(db)
            agree(db, client)
    return ""
