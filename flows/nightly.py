"""The night, as it reads: refresh, fine-tune, evaluate, judge, promote or hold.

Start it by hand with `nightgate run PIPELINE`, or serve it with its schedule by `nightgate serve`.
"""

from __future__ import annotations

from contextlib import closing
from datetime import date, datetime
from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.form import GateForm, TrainingForm, chosen_settings
from flows.logs import readable_logs
from nightgate.config import Pipeline
from nightgate.errors import NightgateError
from nightgate.nights import Night, chosen_night, scheduled_night, tonight
from nightgate.pipelines import load_by_name
from nightgate.steps import open_night
from nightgate.summary import flow_message
from tasks.night import (
    evaluate_epoch,
    fine_tune,
    judge,
    refresh_data,
    register_candidate,
    report,
    score_on_test,
    settle,
)


def run_night(pipeline: Pipeline, night: Night, *, force: bool = False, dry_run: bool = False) -> str:
    """One night from data to verdict. Returns what the UI shows: its status, reason and run id.

    Raises:
        NightgateError: what broke; the run's row says so already.
    """
    with open_night(pipeline, night, force=force, dry_run=dry_run, prefect_flow_run_id=runtime.flow_run.id) as run:
        if run.is_open:
            refresh_data(run)
            with closing(fine_tune(run)) as epochs:
                for epoch in epochs:
                    evaluate_epoch(run, epoch)
            score_on_test(run)
            judge(run)
            register_candidate(run)
            settle(run)
            report(run)
    return flow_message(run.run_id, run.status, run.reason)


def _run_name() -> str:
    """Pipeline and night, as far as they are known before the file is read."""
    parameters = runtime.flow_run.parameters
    return f"{parameters['pipeline']} {parameters.get('night') or 'tonight'}"


@flow(name="nightly", flow_run_name=_run_name)
def nightly(
    pipeline: str,
    night: date | None = None,
    force: bool = False,
    dry_run: bool = False,
    training: TrainingForm | None = None,
    gate: GateForm | None = None,
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
        chosen = _which_night(configuration, night)
    except NightgateError as error:
        return Failed(message=str(error))
    return _in_words(configuration, chosen, force, dry_run)


@flow(name="nightly", flow_run_name="{pipeline.name} {night.date}")
def nightly_by_hand(pipeline: Pipeline, night: Night, force: bool = False, dry_run: bool = False) -> State[Any]:
    """The same night for `nightgate run`, which has read the file and its `--set` already."""
    return _in_words(pipeline, night, force, dry_run)


def _in_words(pipeline: Pipeline, night: Night, force: bool, dry_run: bool) -> State[Any]:
    """Held is a normal night: the flow completes. Red is for what broke, told in words and not as a traceback."""
    try:
        with readable_logs():
            told = run_night(pipeline, night, force=force, dry_run=dry_run)
    except NightgateError as error:
        return Failed(message=str(error))
    return Completed(name=told.partition(":")[0].capitalize(), message=told)


def _which_night(pipeline: Pipeline, night: date | None) -> Night:
    if night is not None:
        return chosen_night(pipeline.schedule, night)
    if "auto-scheduled" in (runtime.flow_run.tags or []):
        # Prefect's times are pendulum's, which lose their timezone when a duration is taken from them in stdlib's UTC.
        return scheduled_night(
            pipeline.schedule, datetime.fromisoformat(runtime.flow_run.scheduled_start_time.isoformat())
        )
    return tonight(pipeline.schedule)
