"""The night, as it reads: refresh, fine-tune, evaluate, judge, promote or hold.

Start it by hand with `nightgate run PIPELINE`, or serve it with its schedule by `nightgate serve`.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing
from datetime import date, datetime
from typing import Any
from uuid import UUID

from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, TerminationSignal
from prefect.states import Completed

from flows.approval import decide_when_resumed
from flows.closed_console import survive_closed_console
from flows.events import announce_ends, announce_stall, announce_unclaimed
from flows.reconcile import due_nights, newer_is_due, reconcile_after_crash
from flows.run_form import (
    AS_IN_FILE_GATE,
    AS_IN_FILE_TRAINING,
    ChosenNight,
    GateForm,
    PipelineName,
    TrainingForm,
    chosen_settings,
)
from nightgate.config import Pipeline
from nightgate.database.transactions import Database, prepare
from nightgate.errors import InternalError, NightgateError
from nightgate.home import open_home
from nightgate.night.run import NightRun, open_night
from nightgate.night.steps import score_epoch
from nightgate.pipeline_files import load_by_name
from nightgate.reports import terminal_summary
from nightgate.runs import claim, lifecycle
from nightgate.schedule import Night, chosen_night, scheduled_night, tonight
from tasks.logs import failed, readable_logs
from tasks.night import (
    fine_tune,
    judge,
    record_epoch,
    refresh_data,
    register_candidate,
    report,
    score_on_test,
    settle,
    skip_without_news,
    take_slot,
    try_serving,
)

log = logging.getLogger("nightgate.flows")

SECONDS_BETWEEN_LOOKS = 10.0
"""While a run that was started by hand is waited for."""


def run_night(
    pipeline: Pipeline,
    night: Night,
    *,
    force: bool = False,
    dry_run: bool = False,
    due: frozenset[datetime] = frozenset(),
) -> str:
    """One night from data to verdict. Returns what the UI shows: its status, reason and run id.

    Args:
        due: instants of the nights that Prefect has yet to start or to end, this one's among them. Late runs start
            oldest first when a worker comes back: all but the newest step back.

    Raises:
        NightgateError: what broke; the run's row says so already.
    """
    flow_run_id = runtime.flow_run.id
    run = None
    try:
        with open_night(
            pipeline,
            night,
            force=force,
            dry_run=dry_run,
            prefect_flow_run_id=flow_run_id,
            overtaken=newer_is_due(due, night.scheduled_for) if night.scheduled_for else "",
            still_due=due,
            on_end=report,
        ) as run:
            if run.is_open:
                run.on_stall = lambda why: announce_stall(pipeline.name, night.date, run.run_id, why, flow_run_id)
                take_slot(run)
                refresh_data(run)
                if not skip_without_news(run, force=force):
                    with closing(fine_tune(run)) as epochs:
                        for epoch in epochs:
                            record_epoch(run, score_epoch(run, epoch))
                    score_on_test(run)
                    try_serving(run)
                    judge(run)
                    register_candidate(run)
                    settle(run)
    except Exception as error:
        if run is None:
            announce_unclaimed(pipeline.name, night.date, error, flow_run_id)
        elif isinstance(error, NightgateError) and _given_up(run, flow_run_id):
            # Name and state of the Prefect run are no longer ours to set.
            raise Abort(f"attempt {run.attempt} of run {run.run_id} was given up") from None
        raise
    except TerminationSignal:
        # To a night whose row has ended it comes too late, and costs the report at most.
        ended = run.status if run is not None and run.status != "running" else "cancelled"
        _rename(f"{pipeline.name} {night.date}: {ended}")
        raise
    finally:
        _announce()
    return _after_approval(run, flow_run_id) if run.status == "waiting" else _told(run)


def _given_up(run: NightRun, flow_run_id: str) -> bool:
    """Whether this process was taken for dead, or cancelled, and the same Prefect run was started again or ended."""
    try:
        with Database.open(run.home) as db:
            now = lifecycle.outcome(db, run.run_id)
    except NightgateError:
        return False  # nobody knows: what broke the run is to be told, and not this
    moved_on = now.attempt > run.attempt or (now.status != "running" and now.reason != run.reason)
    return moved_on and now.prefect_flow_run_id == flow_run_id


def _after_approval(run: NightRun, flow_run_id: str) -> str:
    """Suspend a run that waits for a person until somebody decides.

    Without a deployment nothing could resume it: it ends here, and `nightgate approve` decides.
    """
    with Database.open(run.home) as db:
        waits_for_us = lifecycle.outcome(db, run.run_id).prefect_flow_run_id == flow_run_id
    if runtime.deployment.id is None or not waits_for_us:
        return _told(run)
    _told(run)
    decide_when_resumed(run.run_id)
    with Database.open(run.home) as db:
        decided = lifecycle.outcome(db, run.run_id)
    run.status, run.reason = decided.status, decided.reason
    report(run)
    _announce()
    return _told(run)


def _run_name() -> str:
    """Pipeline and night, as far as they are known before the file is read."""
    parameters = runtime.flow_run.parameters
    return f"{parameters['pipeline']} {parameters.get('night') or 'tonight'}"


@flow(
    name="nightly",
    flow_run_name=_run_name,
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
) -> State[Any]:
    """One night of a pipeline: the deployment's flow, with the form of the UI.

    Args:
        pipeline: Name of the pipeline. A name, never a path: what can be named is set where the flow is served.
        night: A past night; it sees data up to the instant that the cron gave. Empty: the scheduled one, or today.
        force: Open a new run for a night that has ended.
        dry_run: Do everything but promote.
        training: How to fine-tune, for this run only. Empty fields: as in the pipeline file.
        gate: What a candidate must show, for this run only. Empty fields: as in the pipeline file.
    """
    try:
        configuration = load_by_name(pipeline, chosen_settings(training, gate))
        chosen = _begun() or _which_night(configuration, night)
    except Exception as error:  # noqa: BLE001 - whatever it is, somebody has to hear that there is no night
        announce_unclaimed(pipeline, night, error, runtime.flow_run.id)
        return _broken(error)
    return _in_words(configuration, chosen, force, dry_run, _due())


@flow(name="nightly", flow_run_name="{pipeline.name} {night.date}")
def nightly_by_hand(pipeline: Pipeline, night: Night, force: bool = False, dry_run: bool = False) -> State[Any]:
    """The same night for `nightgate run`, which has read the file and its `--set` already."""
    return _in_words(pipeline, night, force, dry_run)


def _in_words(
    pipeline: Pipeline,
    night: Night,
    force: bool,
    dry_run: bool,
    due: frozenset[datetime] = frozenset(),
) -> State[Any]:
    """Held is a normal night: the flow completes. Red is for what broke, told in words and not as a traceback."""
    _rename(f"{pipeline.name} {night.date}")
    try:
        survive_closed_console()
        with readable_logs():
            told = run_night(pipeline, night, force=force, dry_run=dry_run, due=due)
    except Exception as error:  # noqa: BLE001 - Prefect would show the text of others with their secrets
        _rename(f"{pipeline.name} {night.date}: failed")
        return _broken(error)
    return Completed(name=told.partition(":")[0].capitalize(), message=told)


def _broken(error: Exception) -> State[Any]:
    """Failed, in words; what is a fault of ours with its traceback in the log."""
    if not isinstance(error, NightgateError):
        with readable_logs():
            log.error("a fault of Nightgate", exc_info=error)
    return failed(InternalError.of(error))


def _begun() -> Night | None:
    """A run that is tried again, or resumed, belongs to the night that it began with."""
    home = open_home()
    prepare(home)
    with Database.open(home) as db:
        return claim.night_of(db, runtime.flow_run.id)


def _which_night(pipeline: Pipeline, night: date | None) -> Night:
    if night is not None:
        return chosen_night(pipeline.schedule, night)
    if not _is_scheduled():
        return tonight(pipeline.schedule)
    # Prefect's times are pendulum's, which lose their timezone when a duration is taken from them in stdlib's UTC.
    due = datetime.fromisoformat(runtime.flow_run.scheduled_start_time.isoformat())
    scheduled = scheduled_night(pipeline.schedule, due)
    let_finish(pipeline.name, scheduled.date)
    return scheduled


def let_finish(pipeline_name: str, night: date) -> None:
    """Wait for a rehearsal or an old night that somebody has started: the scheduled night would step back, and nobody
    would run it.
    """
    told = ""
    with Database.open(open_home()) as db:
        while other := claim.by_hand_at_work(db, pipeline_name, night):
            if other != told:
                log.warning("%s is at work: the night of %s begins when it has ended", other, night)
            told = other
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _is_scheduled() -> bool:
    return "auto-scheduled" in (runtime.flow_run.tags or [])


def _due() -> frozenset[datetime]:
    if not _is_scheduled() or runtime.deployment.id is None:
        return frozenset()
    return due_nights(UUID(runtime.deployment.id))


def _told(run: NightRun) -> str:
    """The end of the night as the UI shows it; the run's name says it too."""
    verdict = run.status
    if run.status in {"promoted", "held", "waiting"}:
        try:
            with Database.open(run.home) as db:
                f1 = lifecycle.outcome(db, run.run_id).test_f1
            verdict += f", F1 {f1:.4f}" if f1 is not None else ""
        except NightgateError as error:
            log.warning("the run's name does not say its F1: %s", error.reason)
    _rename(f"{run.pipeline.name} {run.night.date}: {verdict}")
    return terminal_summary.flow_message(run.run_id, run.status, run.reason)


def _rename(name: str) -> None:
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(runtime.flow_run.id), name=name)
    except Exception as error:  # noqa: BLE001 - a server that is away must not cost a night for the sake of its name
        log.warning("the run could not be named %r: %s", name, error)


def _announce() -> None:
    try:
        with Database.open(open_home()) as db:
            announce_ends(db)
    except NightgateError as error:
        # The night has ended as it has: the next run, or `reconcile`, tells it.
        log.warning("the end of the night is not announced yet: %s", error.reason)
