"""`nightgate serve`: one process for a laptop, with a local Prefect server if none runs and every pipeline's schedule.

It serves what the catalog holds: the nights and the operations, such as `reconcile`. For production use a worker and a
server of their own (`nightgate deploy`): on SIGTERM this process ends its running night with it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_API_PORT,
    get_current_settings,
    temporary_settings,
)

from deployments import automations
from deployments.catalog import Deployment, catalog
from deployments.deploy import FLOW_ENVIRONMENT, existing, prefect_deployment
from flows.server_connection import answers, local_server, server_problem, started_server
from nightgate.config import Pipeline
from nightgate.errors import NightgateError, without_credentials

POLL_SECONDS = 2
"""Between a click on Run and its start; Prefect's own 10 s are for hundreds of machines."""


def serve_pipelines(pipelines: Sequence[Pipeline], on_ready: object = None) -> None:
    """Serve until a signal ends it, which cancels the running night. `on_ready(url)` is called once the server answers.

    Raises:
        NightgateError: the configured server does not answer or refuses us, or a local one does not start.
    """
    for ending in _endings():
        signal.signal(ending, signal.default_int_handler)
    configured = PREFECT_API_URL.value()
    for name, value in FLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with suppress(KeyboardInterrupt), _server() as url, temporary_settings({PREFECT_API_URL: f"{url}/api"}):
        if not configured:
            # A server that others share has an owner, who gives `python -m deployments.automations`.
            automations.install()
        if callable(on_ready):
            on_ready(url)
        asyncio.run(_serve(deployments_of(pipelines)))


def deployments_of(pipelines: Iterable[Pipeline]) -> list[RunnerDeployment]:
    """What is served for these pipelines; a schedule that a person paused stays paused."""
    with get_client(sync_client=True) as client:
        return [_served(one, existing(client, one.full_name)) for one in catalog(pipelines)]


def _served(one: Deployment, before: DeploymentResponse | None) -> RunnerDeployment:
    deployment = prefect_deployment(one, before)
    # Said, and not only left out: one that was deployed to a work pool before is taken from there.
    deployment.work_pool_name = None
    deployment.work_queue_name = None
    return deployment


def _endings() -> list[signal.Signals]:
    # A shell that starts us in the background lets us ignore SIGINT, which is no wish; under nohup SIGHUP is one.
    endings = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    return [ending for ending in endings if ending != signal.SIGHUP or signal.getsignal(ending) is not signal.SIG_IGN]


async def _serve(deployments: Sequence[RunnerDeployment]) -> None:
    runner = make_runner()
    for deployment in deployments:
        await runner.aadd_deployment(deployment)
    for ending in _endings():
        asyncio.get_running_loop().add_signal_handler(ending, runner.end)
    await runner.start()


def make_runner() -> _Runner:
    """What starts the runs, as often as somebody has set or else every two seconds."""
    # Not by the environment: Prefect reads it when it is imported, and a default set now would come too late.
    chosen = get_current_settings().runner
    seconds = chosen.poll_frequency if "poll_frequency" in chosen.model_fields_set else POLL_SECONDS
    # Schedules go on when this process ends: a night that nobody served is late, and not forgotten. Each deployment
    # runs once at a time, and nights that train queue for a slot: one more limit would only keep `reconcile` waiting.
    return _Runner(pause_on_shutdown=False, limit=None, query_seconds=seconds)


class _Runner(Runner):
    """Cancels its runs when it ends and waits for them. As Prefect 3.8 ends, they are killed and stay Running."""

    def end(self) -> None:
        if not self.started:  # not yet, or no more: a second Ctrl-C does not wait for the runs
            raise KeyboardInterrupt
        self._ending = asyncio.get_running_loop().create_task(self.astop())

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        """Prefect puts this in place of our handler of SIGTERM. The event loop is told of the signal all the same."""


@contextmanager
def _server() -> Iterator[str]:
    """The address of the configured server, or of a local one, started here if none runs."""
    configured = PREFECT_API_URL.value()
    url = (configured or f"{local_server()}/api").removesuffix("/api")
    if configured or answers(url):
        problem = server_problem(f"{url}/api")
        if problem is not None:
            raise NightgateError(
                f"the Prefect server at {without_credentials(url)}{'/api (PREFECT_API_URL)' if configured else ''} "
                f"{problem}",
                next_step="start it, or unset PREFECT_API_URL to let `nightgate serve` start a local one"
                if configured
                else "set it, or stop that server: `nightgate serve` starts one",
            )
        yield url
        return
    with ExitStack() as started:
        with _endings_wait():
            server = started.enter_context(started_server(PREFECT_SERVER_API_PORT.value()))
        server.wait_until_up(
            120,
            next_step=f"read {server.log}; if the port is taken, set PREFECT_SERVER_API_PORT to another one, or "
            "PREFECT_API_URL to a server of yours",
        )
        problem = server_problem(f"{url}/api")
        if problem is not None:
            raise NightgateError(f"the local Prefect server at {url} {problem}", next_step="set it, and serve again")
        yield url


@contextmanager
def _endings_wait() -> Iterator[None]:
    """A signal that comes within the block counts when it is left: a process that starts in it is known by then."""
    came: list[int] = []
    handlers = {ending: signal.signal(ending, lambda number, _: came.append(number)) for ending in _endings()}
    try:
        yield
    finally:
        for ending, handler in handlers.items():
            signal.signal(ending, handler)
    for number in came:
        signal.raise_signal(number)
