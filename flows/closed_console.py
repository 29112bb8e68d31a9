"""Keep a night running when its worker dies: the night's console closes, and Prefect 3.8 then ends the process.

`tests/runs/test_faults_crashes.py` kills a worker for real.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from functools import partial

from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console

from nightgate import logs

log = logging.getLogger("nightgate.flows")


def survive_closed_console() -> None:
    """Let this process go on when its output can no longer be written, where rich would end it."""
    for handler in logs.all_handlers():
        if isinstance(handler, PrefectConsoleHandler):
            handler.console.on_broken_pipe = partial(_discard_output, handler.console)  # type: ignore[method-assign]


def _discard_output(console: Console) -> None:
    console.quiet = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.__stdout__, sys.__stderr__):
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
    os.close(nowhere)
    log.warning("the worker that started this run is gone; the run goes on, and Cancel now takes up to five minutes")
