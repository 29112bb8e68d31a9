"""Prefect's process worker, made to finish its runs before it ends.

    python -m deployments.worker [--pool nightgate] [--queue NAME ...] [--name NAME]

On SIGTERM or Ctrl-C it starts no more runs, waits for those at work and ends; a second signal stops those too, and they
keep their last epoch. `prefect worker start` of Prefect 3.8 kills them at once and leaves them Running
(PrefectHQ/prefect#22528), also when the server was away for some twenty minutes or refuses it. This module can go when
that is fixed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from abc import ABC
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import anyio
import httpx
import psutil
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.logging.configuration import setup_logging
from prefect.utilities.processutils import command_to_string
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from deployments.deploy import FLOW_ENVIRONMENT
from flows.homes import is_foreign, own_tag
from flows.import_guard import guard_imports
from flows.reconcile import reconcile_regularly
from flows.server.connection import running_server
from nightgate.errors import ConfigurationError, NightgateError, first_line, without_credentials
from nightgate.logs import without_secrets
from nightgate.settings import read_settings, unknown_settings


class _AllEndedError(Exception):
    """A stopping worker has no runs left."""


class _RunCounter:
    """Count of runs at work in place of Prefect's limiter, without a limit: work queues have that.

    Prefect's counts no run twice. The retry of a run whose process still lives is an error there, which ends the worker
    and all its nights.
    """

    def __init__(self) -> None:
        self._counts: Counter[UUID] = Counter()

    @property
    def borrowed_tokens(self) -> int:
        return self._counts.total()

    def acquire_on_behalf_of_nowait(self, run_id: UUID) -> None:
        self._counts[run_id] += 1

    def release_on_behalf_of(self, run_id: UUID) -> None:
        if not self._counts[run_id]:
            raise RuntimeError(f"run {run_id} is not at work here")
        self._counts[run_id] -= 1


class _Job(ProcessJobConfiguration):
    """Job with an explicit command. Without one, Prefect 3.8 puts the working folder on the run's PYTHONPATH."""

    def prepare_for_flow_run(self, *args: Any, **facts: Any) -> None:
        self.command = command_to_string([sys.executable, "-m", "prefect.engine"])
        super().prepare_for_flow_run(*args, **facts)


class PatientWorker(ProcessWorker, ABC):
    """Worker that ends after its runs.

    It is abstract to stay out of Prefect's registry, where it would replace its parent.
    """

    job_configuration = _Job

    def __init__(self, pool: str, name: str | None = None, queues: Sequence[str] = ()) -> None:
        # `nightgate deploy` makes the pool, with a template in which no run can choose its command.
        super().__init__(work_pool_name=pool, work_queues=list(queues), name=name, create_pool_if_not_found=False)
        self.is_stopping = False
        self._server_is_away = False

    async def setup(self) -> None:
        await super().setup()
        self._limiter = _RunCounter()  # type: ignore[assignment]

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        if self.is_stopping:
            if self.limiter.borrowed_tokens == 0:
                raise _AllEndedError
            return []
        try:
            found = await super().get_and_submit_flow_runs()
        except httpx.HTTPError as error:
            self._tolerate(error)
            return []
        self._server_is_away = False
        return found

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        """The pool's due runs, without those of other homes, which workers of those run."""
        found = await super()._get_scheduled_flow_runs()
        # A relative home is that of each run's own working folder: the run itself refuses.
        if not (home := read_settings().home) or not home.is_absolute():
            return found
        try:
            ours = own_tag()
        except NightgateError as error:  # raised, it would end the worker with the nights at work
            _say(f"takes no runs for now: {error.reason}")
            return []
        # Without a home, as where its disk is not mounted, it could only fail them: another worker may have theirs.
        if left := sum(is_foreign(one.flow_run.tags, ours) for one in found) if not ours else 0:
            _say(f"takes no runs of a home for now, of which {left} are due: there is none at {home}")
        return [one for one in found if not is_foreign(one.flow_run.tags, ours)]

    async def sync_with_backend(self) -> None:
        try:
            await super().sync_with_backend()
        except httpx.HTTPError as error:
            self._tolerate(error)

    def _tolerate(self, error: httpx.HTTPError) -> None:
        """Log a server error while runs are at work, which would be killed with the worker; else raise it."""
        count = int(self.limiter.borrowed_tokens)
        if count == 0:
            raise error
        if not self._server_is_away:
            _say(f"the Prefect server fails ({type(error).__name__}: {error}); {_runs(count)} at work go on")
        self._server_is_away = True


async def work(worker: PatientWorker) -> None:
    """Run the pool's runs until a signal."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_handle_signals, worker)
        if (home := read_settings().home) and home.is_absolute():  # a relative one is that of each run's own folder
            tasks.start_soon(reconcile_regularly)
        try:
            await worker.start(printer=_say)
        except* _AllEndedError:
            tasks.cancel_scope.cancel()


async def _handle_signals(worker: PatientWorker) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            count = int(worker.limiter.borrowed_tokens)
            if not worker.is_stopping:
                worker.is_stopping = True
                _say(f"{number.name}: takes no more runs and ends after {_runs(count)} at work. Again: stops them")
                continue
            _say(f"{number.name} again: stops {_runs(count)} at work; they keep their last epoch")
            for child in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):
                    child.terminate()


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _say(*words: Any) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run the worker."""
    parser = argparse.ArgumentParser(prog="python -m deployments.worker", description="Run nights of a work pool.")
    default = read_settings().name
    parser.add_argument("--pool", default=default, help=f"work pool of type process; default: {default}")
    parser.add_argument("--queue", action="append", default=[], help="only runs of this work queue; may be repeated")
    parser.add_argument("--name", help="name of the worker in the UI")
    chosen = parser.parse_args(arguments)
    # For pools whose template does not set it, and for this process, which imports flows to run their hooks.
    for name, value in FLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    guard_imports()
    setup_logging()
    for warning in unknown_settings():
        _say(f"warning: {warning}")
    lost: BaseException | None = None
    with running_server() as api_url:
        try:
            anyio.run(work, PatientWorker(chosen.pool, chosen.name, chosen.queue))
        except* httpx.HTTPError as errors:
            lost = errors
    while isinstance(lost, BaseExceptionGroup):
        lost = lost.exceptions[0]
    if lost is not None:
        raise ConfigurationError(
            f"the Prefect server at {without_credentials(api_url)} fails: {first_line(lost)}",
            next_step="start it, then this worker again",
        )


if __name__ == "__main__":
    try:
        main()
    except NightgateError as error:
        sys.exit(f"error: {without_secrets(str(error))}")
