"""`nightgate serve`: schedules, worker and, if none runs, a Prefect server in one process, for one machine.

It serves the catalog: the nights and the operations, such as `reconcile`. SIGTERM ends the running night too.
Production has a server and workers of their own (`nightgate deploy`).
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
"""Longest wait between a click on Run and its start. Prefect's default of 10 s is for many machines."""


def serve_pipelines(pipelines: Sequence[Pipeline], on_ready: object = None) -> None:
    """Serve until a signal, which cancels the running night. `on_ready(url)` is called once the server answers.

    Raises:
        NightgateError: The configured server does not answer or refuses the credentials, or a local one does not start.
    """
    for ending in _ending_signals():
        signal.signal(ending, signal.default_int_handler)
    configured = PREFECT_API_URL.value()
    for name, value in FLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with suppress(KeyboardInterrupt), _server() as url, temporary_settings({PREFECT_API_URL: f"{url}/api"}):
        if not configured:
            # On a configured server its owner runs `python -m deployments.automations`.
            automations.install()
        if callable(on_ready):
            on_ready(url)
        asyncio.run(_serve(deployments_of(pipelines)))


def deployments_of(pipelines: Iterable[Pipeline]) -> list[RunnerDeployment]:
    """The deployments for these pipelines; a paused schedule stays paused."""
    with get_client(sync_client=True) as client:
        return [_served(one, existing(client, one.full_name)) for one in catalog(pipelines)]


def _served(one: Deployment, before: DeploymentResponse | None) -> RunnerDeployment:
    deployment = prefect_deployment(one, before)
    # Set explicitly, to take a deployment out of the work pool of an earlier `nightgate deploy`.
    deployment.work_pool_name = None
    deployment.work_queue_name = None
    return deployment


def _ending_signals() -> list[signal.Signals]:
    # A shell lets background processes ignore SIGINT, which is overridden; what nohup does to SIGHUP is kept.
    endings = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    return [ending for ending in endings if ending != signal.SIGHUP or signal.getsignal(ending) is not signal.SIG_IGN]


async def _serve(deployments: Sequence[RunnerDeployment]) -> None:
    runner = make_runner()
    for deployment in deployments:
        await runner.aadd_deployment(deployment)
    for ending in _ending_signals():
        asyncio.get_running_loop().add_signal_handler(ending, runner.end)
    await runner.start()


def make_runner() -> _Runner:
    """Runner that polls as often as Prefect's setting says, else every two seconds."""
    # Not by the environment, which Prefect has read when it was imported.
    chosen = get_current_settings().runner
    seconds = chosen.poll_frequency if "poll_frequency" in chosen.model_fields_set else POLL_SECONDS
    # Schedules stay active when this process ends, so that its nights are late and not lost. There is no limit, which
    # would only delay `reconcile`: each deployment runs once at a time, and nights queue for a slot.
    return _Runner(pause_on_shutdown=False, limit=None, query_seconds=seconds)


class _Runner(Runner):
    """Cancels its runs when it ends and waits for them; Prefect 3.8 kills them, and they stay Running."""

    def end(self) -> None:
        if not self.started:  # before the start, or at a second Ctrl-C, which does not wait for the runs
            raise KeyboardInterrupt
        self._ending = asyncio.get_running_loop().create_task(self.astop())

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing. Prefect installs this in place of our handler, and the event loop still gets the signal."""


@contextmanager
def _server() -> Iterator[str]:
    """Address of the configured server, or of a local one, which is started if none runs."""
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
        with _delayed_signals():
            server = started.enter_context(started_server(PREFECT_SERVER_API_PORT.value()))
        server.wait_until_up(
            120,
            next_step=f"read {server.log}; if the port is taken, set PREFECT_SERVER_API_PORT to another one, or "
            "PREFECT_API_URL to a running server",
        )
        problem = server_problem(f"{url}/api")
        if problem is not None:
            raise NightgateError(
                f"the local Prefect server at {url} {problem}", next_step="set it and repeat the command"
            )
        yield url


@contextmanager
def _delayed_signals() -> Iterator[None]:
    """Handle signals after the block, so that a process that it starts is known and can be ended."""
    received: list[int] = []
    handlers = {
        ending: signal.signal(ending, lambda number, _: received.append(number)) for ending in _ending_signals()
    }
    try:
        yield
    finally:
        for ending, handler in handlers.items():
            signal.signal(ending, handler)
    for number in received:
        signal.raise_signal(number)
