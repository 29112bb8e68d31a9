"""The end of a flow run in the UI: its name, tags, state and message."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from uuid import UUID

from prefect import Flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed

from flows.events import announce_unclaimed
from flows.homes import check_home_of_run
from nightgate.config.pipeline import Pipeline
from nightgate.database.schema import STATUSES
from nightgate.database.transactions import prepare
from nightgate.errors import CrashedError, InternalError, NightgateError
from nightgate.home import open_home
from nightgate.pipeline_files import load_by_name
from nightgate.reports import terminal_summary
from nightgate.runs.run_row import RunRow
from tasks.logs import failed, readable_logs

log = logging.getLogger("nightgate.flows")


def rename_run(name: str, pipeline: str, status: str = "", *, run: FlowRun | None = None) -> None:
    """Give this flow run, or another `run`, a name, and tags by which the list of runs can be filtered: its pipeline
    and status.

    A server that is away costs these only.
    """
    run_id, tags = (runtime.flow_run.id, runtime.flow_run.tags) if run is None else (run.id, run.tags)
    try:
        with get_client(sync_client=True) as client:
            # A run that waited, or that is retried, has another status now.
            new = {*(tags or ())} - {*STATUSES} | {*filter(None, (pipeline, status))}
            client.update_flow_run(UUID(str(run_id)), name=name, tags=sorted(new))
    except Exception as error:  # noqa: BLE001 - a name must not fail a night
        log.warning("the run could not be named %r: %s", name, error)


def set_state(state: State[Any]) -> None:
    """Set the state of this flow run; where the server is away, `reconcile` does it."""
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(runtime.flow_run.id), state, force=True)
    except Exception as error:  # noqa: BLE001 - as above
        log.warning("the run could not be set to %s: %s", state.name, error)


def name_by_status(row: RunRow) -> None:
    """Name this flow run by pipeline, night, status and F1."""
    f1 = f", F1 {row.test_f1:.4f}" if row.test_f1 is not None and row.status in {"promoted", "held", "waiting"} else ""
    rename_run(f"{row.pipeline} {row.night}: {row.status}{f1}", row.pipeline, row.status)


def completed(row: RunRow) -> State[Any]:
    """The state of a night that ended, by the name of its status: a held night is a normal one."""
    name_by_status(row)
    message = terminal_summary.flow_message(row.run_id, row.status, row.reason)
    return Completed(name=row.status.capitalize(), message=message)


def broken(error: Exception) -> State[Any]:
    """The state of a night that broke. Only an error that is a bug of this package has its traceback in the log."""
    if not isinstance(error, NightgateError):
        with readable_logs():
            log.error("a bug in Nightgate", exc_info=error)
    return failed(InternalError.of(error))


def announce_crash(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Prefect hook, called in runner or worker after a part's process has died, which could publish nothing."""
    del state
    name = str(flow_run.parameters.get("pipeline"))
    step = f"see why in the log of its run, then Retry, or `prefect flow-run retry {flow_run.id}`"
    error = CrashedError(f"the process of {flow.name} ended unexpectedly", next_step=step)
    announce_unclaimed(name, None, error, str(flow_run.id))


def run_part(part: str, pipeline: str, work: Callable[[Pipeline], str]) -> State[Any]:
    """Run a part for a pipeline; what `work` returns in a few words is in the run's name and message."""
    try:
        check_home_of_run()
        prepare(open_home())  # it may be the first run of all
        with readable_logs():
            done = work(load_by_name(pipeline))
    except Exception as error:  # noqa: BLE001 - Prefect would show a traceback, and secrets in errors of other packages
        rename_run(f"{pipeline} {part}: failed", pipeline)
        announce_unclaimed(pipeline, None, error, runtime.flow_run.id)
        return broken(error)
    rename_run(f"{pipeline} {part}: {done}", pipeline)
    return Completed(message=done)
