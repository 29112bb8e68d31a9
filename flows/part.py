"""One part of a night as a flow run: its name, tags, state and, where it fails, its event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.events import announce_unclaimed
from flows.homes import check_home_of_run
from flows.run_end import broken, rename_run
from nightgate.config.pipeline import Pipeline
from nightgate.pipeline_files import load_by_name
from tasks.logs import readable_logs


def run_part(part: str, pipeline: str, work: Callable[[Pipeline], str]) -> State[Any]:
    """Run a part for a pipeline; what `work` returns in a few words is in the run's name and message."""
    try:
        check_home_of_run()
        with readable_logs():
            done = work(load_by_name(pipeline))
    except Exception as error:  # noqa: BLE001 - Prefect would show a traceback, and secrets in errors of other packages
        rename_run(f"{pipeline} {part}: failed", pipeline)
        announce_unclaimed(pipeline, None, error, runtime.flow_run.id)
        return broken(error)
    rename_run(f"{pipeline} {part}: {done}", pipeline)
    return Completed(message=done)
