"""The worker of production: Prefect's own for processes, with the patience that nights need.

    python -m deployments.worker [--pool nightgate] [--name NAME]

On SIGTERM or Ctrl-C it takes no more runs, waits for those at work and ends; a second one stops those as well, and they
keep their last epoch. `prefect worker start` of Prefect 3.8 kills them at once instead, without a word, and leaves them
Running (PrefectHQ/prefect#22528); it does so as well when the server has been away for some twenty minutes, or refuses
it. This module may go when that is mended.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from abc import ABC
from collections import Counter
from contextlib import suppress
from typing import Any
from uuid import UUID

import anyio
import httpx
import psutil
from prefect.client.schemas.objects import FlowRun
from prefect.logging.configuration import setup_logging
from prefect.utilities.processutils import command_to_string
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from deployments.catalog import POOL
from deployments.deploy import FLOW_ENVIRONMENT
from flows.import_guard import guard_imports
from nightgate.settings import unknown_settings


class _LeftError(Exception):
    """All runs have ended, and no more are wanted."""


class _AtWork:
    """Counts runs at work, in place of Prefect's limiter; how many there may be is for the ledger's slots to say.

    That one counts no run twice: a retry of a run that was given up, and whose process lives on, is an error there that
    ends the worker and every night under it.
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
    """Names the command of a run. Without one, Prefect 3.8 puts the working folder on the run's PYTHONPATH."""

    def prepare_for_flow_run(self, *args: Any, **facts: Any) -> None:
        self.command = command_to_string([sys.executable, "-m", "prefect.engine"])
        super().prepare_for_flow_run(*args, **facts)


class PatientWorker(ProcessWorker, ABC):
    """Ends after its runs.

    As an abstract class it stays out of Prefect's registry, where it would take its parent's place.
    """

    job_configuration = _Job

    def __init__(self, pool: str, name: str | None = None) -> None:
        # Not made here: `nightgate deploy` makes the pool, and lets no run choose its own command.
        super().__init__(work_pool_name=pool, name=name, create_pool_if_not_found=False)
        self.leaves = False
        self._is_away = False

    async def setup(self) -> None:
        await super().setup()
        self._limiter = _AtWork()  # type: ignore[assignment]

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        if self.leaves:
            if self.limiter.borrowed_tokens == 0:
                raise _LeftError
            return []
        try:
            found = await super().get_and_submit_flow_runs()
        except httpx.HTTPError as error:
            self._bear(error)
            return []
        self._is_away = False
        return found

    async def sync_with_backend(self) -> None:
        try:
            await super().sync_with_backend()
        except httpx.HTTPError as error:
            self._bear(error)

    def _bear(self, error: httpx.HTTPError) -> None:
        """While runs are at work no answer of the server's is worth ending for: they would be killed with us."""
        count = int(self.limiter.borrowed_tokens)
        if count == 0:
            raise error
        if not self._is_away:
            _say(f"the Prefect server does not answer ({type(error).__name__}: {error}); {_runs(count)} at work go on")
        self._is_away = True


async def work(worker: PatientWorker) -> None:
    """Serve the pool until a signal ends it."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_heed_signals, worker)
        try:
            await worker.start(printer=_say)
        except* _LeftError:
            tasks.cancel_scope.cancel()


async def _heed_signals(worker: PatientWorker) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            count = int(worker.limiter.borrowed_tokens)
            if not worker.leaves:
                worker.leaves = True
                _say(f"{number.name}: takes no more runs, and ends after the {_runs(count)} at work. Again: stops them")
                continue
            _say(f"{number.name} again: stops the {_runs(count)} at work; they keep their last epoch")
            for child in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):
                    child.terminate()


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _say(*words: Any) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m deployments.worker", description="Run nights of a work pool.")
    parser.add_argument("--pool", default=POOL, help=f"work pool of type process; {POOL} unless given")
    parser.add_argument("--name", help="how it is listed in the UI")
    chosen = parser.parse_args(arguments)
    # For runs of pools whose template does not set it, and for this process, which imports flows to run their hooks.
    for name, value in FLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    guard_imports()
    setup_logging()
    for told in unknown_settings():
        _say(f"warning: {told}")
    anyio.run(work, PatientWorker(chosen.pool, chosen.name))


if __name__ == "__main__":
    main()
