"""The nightly flow: claim a night, run its steps as Prefect tasks, wait for an approval where one is asked for.

Start it with `nightgate run PIPELINE`, or on its schedule with `nightgate serve`. The steps are in order in
`nightgate.night.night`.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, TerminationSignal
from prefect.states import Cancelled

from flows.approval import decide_when_resumed
from flows.closed_console import survive_closed_console
from flows.events import StartingAlarm, announce_own_ends, announce_stall, announce_unclaimed
from flows.homes import check_home_of_run
from flows.reconcile import newer_is_due, reconcile_after_crash
from flows.run_end import broken, completed, name_by_status, rename_run, set_state
from flows.run_form import (
    AS_IN_FILE_GATE,
    AS_IN_FILE_TRAINING,
    AllowedChecks,
    ChosenNight,
    FreeText,
    GateForm,
    PipelineName,
    TrainingForm,
    chosen_settings,
    show_values_from_now_on,
)
from flows.which_night import night_of_this_run, nights_due
from nightgate.config.checks import NONE_ALLOWED, Allowed
from nightgate.config.pipeline import Pipeline
from nightgate.database.transactions import Database
from nightgate.errors import NightgateError
from nightgate.logs import without_secrets
from nightgate.night.closing import close_ended
from nightgate.night.night import predict_after, run_steps
from nightgate.night.run import NightRun, open_night
from nightgate.pipeline_files import load_by_name
from nightgate.runs.run_row import RunRow, read_run
from nightgate.schedule import Night
from tasks.logs import readable_logs
from tasks.night import STEPS

log = logging.getLogger("nightgate.flows")


def _run_name() -> str:
    """Pipeline and night, as far as they are known before the pipeline file is read."""
    parameters = runtime.flow_run.parameters
    return f"{parameters['pipeline']} {parameters.get('night') or 'tonight'}"


@flow(
    name="nightly",
    flow_run_name=_run_name,
    persist_result=False,
    on_crashed=[reconcile_after_crash],
    on_cancellation=[reconcile_after_crash],
)
def nightly(
    # Without a default, Quick run in the UI would ask for all parameters.
    pipeline: PipelineName = "",
    night: ChosenNight = None,
    force: bool = False,
    dry_run: bool = False,
    training: TrainingForm = AS_IN_FILE_TRAINING,
    gate: GateForm = AS_IN_FILE_GATE,
    allow_failed_checks: AllowedChecks = (),
    reason: FreeText = "",
    alarm: StartingAlarm = "",
) -> State[Any]:
    """One night of a pipeline: the deployment's flow, with the form of the UI.

    Args:
        pipeline: Name of the pipeline. A name, never a path: what can be named is set where the flow is served.
        night: A past night; it sees data up to the time the schedule fired. Empty: the scheduled one, or today.
        force: Open a new run for a night that has ended.
        dry_run: Do everything but promote.
        training: How to fine-tune, for this run only. Empty fields: as in the pipeline file.
        gate: What a candidate must show, for this run only. Empty fields: as in the pipeline file.
        allow_failed_checks: Data checks that may fail tonight.
        reason: Why they may; stored with this run's id.
        alarm: Set by the automation that starts a night on an alarm. It trains, unless nothing is new since the last
            training, also when the night has ended.
    """
    try:
        check_home_of_run()
        configuration = load_by_name(pipeline, chosen_settings(training, gate))
        chosen = night_of_this_run(configuration, night)
        allowed = Allowed.named(allow_failed_checks, f"Prefect run {runtime.flow_run.id}", reason)
        if runtime.deployment.id is not None:
            show_values_from_now_on(load_by_name(pipeline))
    except Exception as error:  # noqa: BLE001 - whatever it is, an event has to say that there is no night
        announce_unclaimed(pipeline, night, error, runtime.flow_run.id)
        return broken(error)
    return _run(configuration, chosen, force, dry_run, allowed, nights_due(), alarm)


@flow(name="nightly", flow_run_name="{pipeline.name} {night.date}", persist_result=False)
def nightly_from_file(
    pipeline: Pipeline, night: Night, force: bool = False, dry_run: bool = False, allowed: Allowed = NONE_ALLOWED
) -> State[Any]:
    """The same night for `nightgate run`, which has read the file and its `--set` already."""
    return _run(pipeline, night, force, dry_run, allowed, frozenset())


def _run(
    pipeline: Pipeline,
    night: Night,
    force: bool,
    dry_run: bool,
    allowed: Allowed,
    due: frozenset[datetime],
    alarm: str = "",
) -> State[Any]:
    rename_run(f"{pipeline.name} {night.date}", pipeline.name)
    try:
        survive_closed_console()
        with readable_logs():
            row = run_night(pipeline, night, force=force, dry_run=dry_run, allowed=allowed, due=due, alarm=alarm)
            return completed(row)
    except (KeyboardInterrupt, TerminationSignal) as stop:
        # Raised, Prefect would say that the run has crashed.
        state: State[Any] = Cancelled(
            message="; ".join(getattr(stop, "__notes__", ["stopped before its night was claimed"]))
        )
        if runtime.deployment.id is None:
            return state
        # Of a run that is stopped with its server too, a returned state would end in a traceback.
        set_state(state)
        raise Abort("stopped") from None
    except Exception as error:  # noqa: BLE001 - Prefect would show a traceback, and secrets in errors of other packages
        rename_run(f"{pipeline.name} {night.date}: failed", pipeline.name, "failed")
        return broken(error)


def run_night(
    pipeline: Pipeline,
    night: Night,
    *,
    force: bool,
    dry_run: bool,
    allowed: Allowed,
    due: frozenset[datetime],
    alarm: str = "",
) -> RunRow:
    """One night from its claim to its end, which is announced as an event.

    Args:
        due: Instants of the nights that Prefect has yet to start or to end, this one's among them. Late runs start
            oldest first when a worker comes back: all but the newest are superseded.

    Raises:
        NightgateError: What broke; the run's row says so too.
    """
    flow_run_id = runtime.flow_run.id
    run = None
    try:
        with open_night(
            pipeline,
            night,
            force=force,
            dry_run=dry_run,
            alarm=alarm,
            allowed=allowed,
            prefect_flow_run_id=flow_run_id,
            overtaken=newer_is_due(due, night.scheduled_for) if night.scheduled_for else "",
            still_due=due,
            on_stall=lambda run, why: announce_stall(pipeline.name, night.date, run.run_id, why, flow_run_id),
        ) as run:
            row = run.ended or run_steps(run, STEPS)
    except Exception as error:
        if run is None:
            announce_unclaimed(pipeline.name, night.date, error, flow_run_id)
        elif isinstance(error, NightgateError) and _was_given_up(run, error, flow_run_id):
            # Name and state of the Prefect run belong to the newer attempt.
            raise Abort(f"attempt {run.attempt} of run {run.run_id} was given up") from None
        raise
    except (KeyboardInterrupt, TerminationSignal):
        row_now = _read(run) if run else None
        if row_now and row_now.ended and row_now.status != "cancelled":
            return row_now  # it had ended just before the signal
        rename_run(f"{pipeline.name} {night.date}: cancelled", pipeline.name, "cancelled")
        raise
    finally:
        announce_own_ends()
    if pipeline.predict.source is not None:
        name_by_status(row)
    try:
        if failure := predict_after(run, row, STEPS):
            announce_unclaimed(pipeline.name, None, failure, flow_run_id)
    except (KeyboardInterrupt, TerminationSignal) as stop:
        if row.status == "waiting" or runtime.deployment.id is None:
            raise
        # A worker may set the run Cancelled all the same: `reconcile` then sets it as the night has ended.
        log.warning("%s", "; ".join(stop.__notes__))
        return row
    if row.status == "waiting" and row.prefect_flow_run_id == flow_run_id and runtime.deployment.id is not None:
        return _wait_for_decision(run, row)
    return row


def _wait_for_decision(run: NightRun, row: RunRow) -> RunRow:
    """Suspend this run until its candidate is approved or rejected. Without a deployment nothing could resume it."""
    name_by_status(row)
    decide_when_resumed(row.run_id)
    with Database.open(run.home) as db:
        close_ended(db, row.pipeline, run.pipeline)
        row = read_run(db, row.run_id)
    announce_own_ends()
    return row


def _was_given_up(run: NightRun, error: NightgateError, flow_run_id: str) -> bool:
    """Whether the same Prefect run was started again, or ended from outside, while this process still worked."""
    row = _read(run)
    if row is None or row.prefect_flow_run_id != flow_run_id:
        return False
    return row.attempt > run.attempt or (row.ended and row.reason != without_secrets(error.reason))


def _read(run: NightRun) -> RunRow | None:
    """The run's row; None where the database is away, which must not hide why the run stopped."""
    try:
        with Database.open(run.home) as db:
            return read_run(db, run.run_id)
    except NightgateError:
        return None
