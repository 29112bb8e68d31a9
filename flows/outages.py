"""What a night outlives in its own process: the worker that started it, and a Prefect server that is away for long.

Prefect 3.8 ends it in both cases, and no setting says otherwise. The ledger keeps a night to one run, so that it may go
on: what is put in place here only changes how a loss is borne. `tests/test_faults_crashes.py` kills for real.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from prefect.concurrency import _leases
from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console

from nightgate import logs

log = logging.getLogger("nightgate.flows")


@contextmanager
def outlived() -> Iterator[None]:
    """Within the block neither loss ends the process."""
    for handler in logs.all_handlers():
        if isinstance(handler, PrefectConsoleHandler):
            # Of this one console, and for good: the process logs until its very end.
            handler.console.on_broken_pipe = partial(_fall_silent, handler.console)  # type: ignore[method-assign]
    # Private: a version of Prefect that does it in another way ends such a night, which goes on when it is retried.
    before = getattr(_leases, "_handle_lease_renewal_failure", None)
    if before is None:
        yield
        return
    _leases._handle_lease_renewal_failure = _tell_lost_lease  # type: ignore[assignment]
    try:
        yield
    finally:
        _leases._handle_lease_renewal_failure = before


def _fall_silent(console: Console) -> None:
    """The reader of our output is gone, and with it the worker; rich would end the process."""
    console.quiet = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.__stdout__, sys.__stderr__):
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
    os.close(nowhere)
    log.warning("the worker that started this run is gone; the run goes on, and Cancel takes up to five minutes now")


def _tell_lost_lease(error: BaseException, *_: Any) -> None:
    """A server that was away for minutes forgets who is at work on a deployment; Prefect would end the healthy run."""
    log.warning(
        "the Prefect server has given up this run's place in its deployment (%s: %s): the run goes on, and one that "
        "starts meanwhile is superseded",
        type(error).__name__,
        error,
    )
