"""`nightgate serve`: one process for a laptop, with a local Prefect server if none runs and every pipeline's schedule.

For production use a worker and a server of their own: on SIGTERM this process ends its running night with it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.types.entrypoint import EntrypointType

from flows.nightly import nightly
from flows.server import answers, local_server, server_problem
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
    """Serve until a signal ends it, which cancels the running night. `on_ready(url)` is called once the server answers.

    Raises:
        NightgateError: the configured server does not answer, or a local one does not start.
    """
    os.environ.setdefault("PREFECT_RUNNER_POLL_FREQUENCY", "2")
    for ending in _endings():
        signal.signal(ending, signal.default_int_handler)
    with suppress(KeyboardInterrupt), _server() as url, temporary_settings({PREFECT_API_URL: f"{url}/api"}):
        if callable(on_ready):
            on_ready(url)
        asyncio.run(_serve([deployment_of(pipeline) for pipeline in pipelines]))


def _endings() -> list[signal.Signals]:
    # A shell that starts us in the background lets us ignore SIGINT, which is no wish; under nohup SIGHUP is one.
    endings = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    return [ending for ending in endings if ending != signal.SIGHUP or signal.getsignal(ending) is not signal.SIG_IGN]


async def _serve(deployments: Sequence[RunnerDeployment]) -> None:
    # Schedules go on when this process ends: a night that nobody served is late, and not forgotten.
    runner = _Runner(pause_on_shutdown=False)
    for deployment in deployments:
        await runner.aadd_deployment(deployment)
    for ending in _endings():
        asyncio.get_running_loop().add_signal_handler(ending, runner.end)
    await runner.start()


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
    if configured:
        problem = server_problem(configured)
        if problem is None:
            yield configured.removesuffix("/api")
            return
        raise NightgateError(
            f"the Prefect server at {configured} (PREFECT_API_URL) does not answer: {problem}",
            next_step="start it, or unset PREFECT_API_URL to let `nightgate serve` start a local one",
        )
    url = local_server()
    if answers(url):
        yield url
        return
    log_path = open_home().root / "prefect-server.log"
    with ExitStack() as started:
        with _endings_wait(), log_path.open("ab") as log:
            server = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "prefect",
                    "server",
                    "start",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    url.split(":")[-1],
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"},
                # Ctrl-C in a terminal reaches a whole session: this one ends last, when the runs have told it their
                # ends.
                start_new_session=True,
            )
            started.callback(_stop, server)
        deadline = time.monotonic() + 120
        while not answers(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise NightgateError(
                    f"the local Prefect server did not come up at {url}",
                    next_step=f"read {log_path}; if the port is taken, set PREFECT_SERVER_API_PORT to another one, "
                    "or PREFECT_API_URL to a server of yours",
                )
            time.sleep(0.5)
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


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(15)
    except subprocess.TimeoutExpired:
        server.kill()
