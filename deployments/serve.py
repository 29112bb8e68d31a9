"""`nightgate serve`: one process for a laptop, with a local Prefect server if none runs and every pipeline's schedule.

For production use a worker and a server of their own: on SIGTERM this process ends its running night with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.types.entrypoint import EntrypointType

from flows.nightly import nightly
from flows.server import LOCAL_SERVER, answers, server_problem
from nightgate.config import Pipeline
from nightgate.errors import NightgateError
from nightgate.home import open_home


def deployment_of(pipeline: Pipeline) -> RunnerDeployment:
    """The deployment of a pipeline: its cron in its timezone, one run at a time."""
    deployment = nightly.to_deployment(
        name=pipeline.name,
        description=f"Nightly retraining of {pipeline.name}. Custom run shows what can be changed for one run.",
        schedule=Cron(pipeline.schedule.cron, timezone=pipeline.schedule.timezone),
        parameters={"pipeline": pipeline.name},
        tags=["nightgate", pipeline.name],
        concurrency_limit=ConcurrencyLimitConfig(limit=1),
        # By path, flows/ would lie on sys.path and its modules could hide libraries.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    assert isinstance(deployment, RunnerDeployment)  # a coroutine only inside an event loop
    return deployment


def serve_pipelines(pipelines: Sequence[Pipeline], on_ready: object = None) -> None:
    """Serve until interrupted. `on_ready(url)` is called once the server answers."""
    os.environ.setdefault("PREFECT_RUNNER_POLL_FREQUENCY", "2")
    with _server() as url, temporary_settings({PREFECT_API_URL: f"{url}/api"}):
        if callable(on_ready):
            on_ready(url)
        # Schedules go on when this process ends: a night that nobody served is late, and not forgotten.
        serve(
            *[deployment_of(pipeline) for pipeline in pipelines], pause_on_shutdown=False, print_starting_message=False
        )


@contextmanager
def _server() -> Iterator[str]:
    """The address of the configured server, or of a local one, started here if none runs."""
    configured = PREFECT_API_URL.value()
    if configured:
        problem = server_problem(configured)
        if problem is None:
            yield configured.removesuffix("/api")
            return
        raise NightgateError(
            f"the Prefect server at {configured} (PREFECT_API_URL) does not answer: {problem}",
            next_step="start it, or unset PREFECT_API_URL to let `nightgate serve` start a local one",
        )
    if answers(LOCAL_SERVER):
        yield LOCAL_SERVER
        return
    log_path = open_home().root / "prefect-server.log"
    host, port = LOCAL_SERVER.removeprefix("http://").split(":")
    with Path(log_path).open("ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", port],
            stdout=log,
            stderr=log,
            env={**os.environ, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"},
        )
    try:
        deadline = time.monotonic() + 120
        while not answers(LOCAL_SERVER):
            if server.poll() is not None or time.monotonic() > deadline:
                raise NightgateError(
                    f"the local Prefect server did not come up at {LOCAL_SERVER}",
                    next_step=f"read {log_path}; if the port is taken, set PREFECT_API_URL to a server of yours",
                )
            time.sleep(0.5)
        yield LOCAL_SERVER
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
