"""`nightgate serve`: schedules, worker and, if none runs, a Prefect server in one process, for one machine.

It serves the catalog: the nights and the operations, such as `reconcile`. SIGTERM ends the running night too.
Production has a server and workers of their own (`nightgate deploy`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_SERVER_API_AUTH_STRING,
    PREFECT_SERVER_API_PORT,
    get_current_settings,
    temporary_settings,
)

from deployments import automations
from deployments.catalog import NIGHTLY, PARTS, Deployment, Queue, catalog
from deployments.deploy import FLOW_ENVIRONMENT, check_homes, existing, prefect_deployment, unschedule
from flows.homes import is_foreign, own_tag
from flows.reconcile import reconcile_regularly
from flows.server.connection import (
    StartedServer,
    answers,
    asks_for_password,
    client_settings,
    configured_server,
    local_server,
    make_password,
    password_file,
    server_problem,
    started_server,
)
from nightgate.config.pipeline import Pipeline
from nightgate.errors import ConfigurationError, NightgateError, without_credentials
from nightgate.home import Home, open_home
from nightgate.settings import read_settings

log = logging.getLogger("nightgate.deployments")

SECONDS_BETWEEN_CHECKS = 5
"""Of the server that was started here."""
POLL_SECONDS = 2
"""Longest wait between a click on Run and its start. Prefect's default of 10 s is for many machines."""


def serve_pipelines(
    pipelines: Sequence[Pipeline],
    *,
    port: int | None = None,
    auth: bool = False,
    take_over: bool = False,
    say: Callable[[str], object] = log.info,
) -> None:
    """Serve until a signal, which cancels the running night.

    Args:
        port: Where a server is looked for and started. Default: Prefect's setting.
        auth: Start it with the password of the home.
        take_over: Let this home have deployments of another one.
        say: Gets lines about the server and what is served, once both are ready.

    Raises:
        NightgateError: The configured server does not answer or refuses the credentials, a local one does not start, or
            a deployment is another home's.
    """
    for ending in _ending_signals():
        signal.signal(ending, signal.default_int_handler)
    configured = configured_server()
    if configured and port is not None:
        raise ConfigurationError(
            f"--port {port} is for a server that `nightgate serve` starts, and PREFECT_API_URL names one that runs",
            next_step="unset PREFECT_API_URL, or omit --port",
        )
    for name, value in FLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    home = open_home()
    chosen = {} if port is None else {PREFECT_SERVER_API_PORT: port}
    with ExitStack() as stack:
        stack.enter_context(suppress(KeyboardInterrupt))
        stack.enter_context(temporary_settings(chosen))
        url, server = stack.enter_context(_server(home, auth=auth))
        stack.enter_context(temporary_settings(client_settings(f"{url}/api")))
        deployments = deployments_of(pipelines, home, take_over=take_over)
        if not configured:
            # On a configured server its owner runs `python -m deployments.automations`.
            automations.install()
        is_started = server is not None
        for line in _announcement(url, pipelines, home, is_started=is_started, is_configured=bool(configured)):
            say(line)
        asyncio.run(_serve(deployments, server))


def _announcement(
    url: str, pipelines: Sequence[Pipeline], home: Home, *, is_started: bool, is_configured: bool
) -> Iterator[str]:
    shown = without_credentials(url)
    yield f"{'started a Prefect server' if is_started else 'joined the Prefect server that runs there'}: UI at {shown}"
    kept = password_file(home.root)
    if kept.is_file() and asks_for_password(f"{url}/api"):
        yield f"it asks for a password once: the line in {kept}"
    if not is_configured and PREFECT_SERVER_API_PORT.value() != PREFECT_SERVER_API_PORT.default():
        yield f"other commands find it with PREFECT_SERVER_API_PORT={PREFECT_SERVER_API_PORT.value()}"
    yield f"Prefect's own commands find it with PREFECT_API_URL={shown}/api"
    yield f"serving {', '.join(f'{one.name} ({crons_of(one)})' for one in pipelines)}"
    shared = f"{NIGHTLY}/{read_settings().name}"
    yield f"Start a night or a part of one: Deployments > {shared} > Run > Custom run. Ctrl-C ends."


def crons_of(pipeline: Pipeline) -> str:
    """The crons of a pipeline's night and of its parts, such as `nightly 15 3 * * *, evaluate 0 * * * *, UTC`."""
    found = [f"{part.flow} {cron}" for part in PARTS if (cron := part.cron(pipeline.schedule))]
    return f"{', '.join(found)}, {pipeline.schedule.timezone}" if found else "no cron"


def deployments_of(
    pipelines: Sequence[Pipeline], home: Home, *, take_over: bool = False
) -> list[tuple[Queue, RunnerDeployment]]:
    """The deployments for these pipelines, each with its queue; a paused schedule stays paused.

    Raises:
        ConfigurationError: one is another home's, and it is not to be taken over.
    """
    with get_client(sync_client=True) as client:
        found = [(one, existing(client, one.full_name)) for one in catalog(pipelines, reconcile_cron="")]
        check_homes(found, home, take_over=take_over)
        unschedule(client, pipelines, home)
        return [(one.queue, _served(one, before, home)) for one, before in found]


def _served(one: Deployment, before: DeploymentResponse | None, home: Home) -> RunnerDeployment:
    deployment = prefect_deployment(one, before, home)
    # Set explicitly, to take a deployment out of the work pool of an earlier `nightgate deploy`.
    deployment.work_pool_name = None
    deployment.work_queue_name = None
    return deployment


def _ending_signals() -> list[signal.Signals]:
    # A shell lets background processes ignore SIGINT, which is overridden; what nohup does to SIGHUP is kept.
    endings = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    return [ending for ending in endings if ending != signal.SIGHUP or signal.getsignal(ending) is not signal.SIG_IGN]


async def _serve(deployments: Sequence[tuple[Queue, RunnerDeployment]], server: StartedServer | None = None) -> None:
    """Run the due runs: one runner a slot, with its limit, and one without for operations.

    Args:
        server: the one that was started here and is kept alive.
    """
    runners: dict[str, _Runner] = {}
    for queue, deployment in deployments:
        runner = runners.setdefault(queue.slot, make_runner(queue.limit))
        runner.priorities[await runner.aadd_deployment(deployment)] = queue.priority

    def end() -> None:
        for runner in runners.values():
            runner.end()

    for ending in _ending_signals():
        asyncio.get_running_loop().add_signal_handler(ending, end)
    with ExitStack() as servers:
        beside = [asyncio.create_task(reconcile_regularly())]
        if server is not None:
            beside.append(asyncio.create_task(_keep_alive(server, servers)))
        await asyncio.gather(*(runner.start() for runner in runners.values()))
        for task in beside:
            task.cancel()


async def _keep_alive(server: StartedServer, servers: ExitStack) -> None:
    """Start the server anew where it has ended, as for lack of memory: no night would start, and none be reported.

    The runners find it again. Nights at work go on.
    """
    while True:
        await asyncio.sleep(SECONDS_BETWEEN_CHECKS)
        if (code := server.process.poll()) is None:
            continue
        log.error("the Prefect server has ended with code %d and is started again; its log: %s", code, server.log)
        try:
            server = servers.enter_context(started_server(urlsplit(server.url).port or 0, auth=server.auth))
        except NightgateError as error:
            log.error("%s", error)


def make_runner(limit: int | None = None) -> _Runner:
    """Runner that polls as often as Prefect's setting says, else every two seconds."""
    # Not by the environment, which Prefect has read when it was imported.
    chosen = get_current_settings().runner
    seconds = chosen.poll_frequency if "poll_frequency" in chosen.model_fields_set else POLL_SECONDS
    # Schedules stay active when this process ends, so that its nights are late and not lost.
    return _Runner(pause_on_shutdown=False, limit=limit, query_seconds=seconds)


class _Runner(Runner):
    """Cancels its runs when it ends and waits for them; Prefect 3.8 kills them, and they stay Running.

    Runs of another home, which may have taken over a deployment, are left to that home. Under a limit the highest
    priority goes first, where Prefect takes the earliest run.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.priorities: dict[UUID, int] = {}
        """By id of the deployment; 0 for others."""

    async def __aenter__(self) -> Self:
        entered = await super().__aenter__()
        poller, ours = self._scheduled_run_poller, own_tag()
        poll = poller._get_scheduled_flow_runs

        async def own_runs() -> list[FlowRun]:
            runs = [run for run in await poll() if not is_foreign(run.tags, ours)]
            if self.limit is None:
                return runs
            at_work = poller._submitting_flow_run_ids
            # By time as they come, which sorting keeps among equals.
            due = [run for run in runs if run.id not in at_work]
            due.sort(key=lambda run: -self.priorities.get(run.deployment_id, 0) if run.deployment_id else 0)
            return due[: max(0, self.limit - len(at_work))]

        poller._get_scheduled_flow_runs = own_runs  # type: ignore[method-assign]
        return entered

    def end(self) -> None:
        if not self.started:  # before the start, or at a second Ctrl-C, which does not wait for the runs
            raise KeyboardInterrupt
        self._ending = asyncio.get_running_loop().create_task(self.astop())

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing. Prefect installs this in place of our handler, and the event loop still gets the signal."""


@contextmanager
def _server(home: Home, *, auth: bool) -> Iterator[tuple[str, StartedServer | None]]:
    """Address of the configured server, or of a local one, which is started here if none runs."""
    configured = configured_server()
    url = (configured or f"{local_server()}/api").removesuffix("/api")
    if configured or answers(url):
        shown = f"the Prefect server at {without_credentials(url)}{'/api (PREFECT_API_URL)' if configured else ''}"
        problem = server_problem(f"{url}/api")
        if problem is not None:
            raise NightgateError(
                f"{shown} {problem}",
                next_step="start it, or unset PREFECT_API_URL to let `nightgate serve` start a local one"
                if configured
                else "set it, or stop that server: `nightgate serve` starts one",
            )
        if auth and not asks_for_password(f"{url}/api"):
            raise NightgateError(
                f"{shown} runs already and asks for no password",
                next_step="stop it and repeat the command, or omit --auth (NIGHTGATE_SERVE_AUTH)",
            )
        yield url, None
        return
    # A password that is set for server or clients is used as it is.
    made = auth and not PREFECT_SERVER_API_AUTH_STRING.value()
    password = (PREFECT_API_AUTH_STRING.value() or make_password(home)) if made else ""
    with ExitStack() as started:
        with _delayed_signals():
            server = started.enter_context(started_server(PREFECT_SERVER_API_PORT.value(), auth=password))
        server.wait_until_up(
            120,
            next_step=f"read {server.log}; if the port is taken, choose another one with --port, or set "
            "PREFECT_API_URL to a running server",
        )
        problem = server_problem(f"{url}/api")
        if problem is not None:
            raise NightgateError(
                f"the local Prefect server at {url} {problem}", next_step="set it and repeat the command"
            )
        yield url, server


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
