"""Logs of a flow run: terminal and run page show what the libraries log, and our errors without a traceback.

The page shows this package from INFO on, and transformers, datasets and Python's warnings from WARNING on, those of the
training process included. It shows each line once, also where PREFECT_LOGGING_EXTRA_LOGGERS names one of them, without
secrets, and with the epoch in front where the message lacks it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.client.schemas.objects import State
from prefect.context import get_run_context
from prefect.exceptions import FailedRun, MissingContextError
from prefect.logging.handlers import APILogHandler
from prefect.states import Failed

from nightgate import logs
from nightgate.errors import NightgateError


@contextmanager
def readable_logs() -> Iterator[None]:
    """Within the block the libraries log into the flow run, and a NightgateError shows without Prefect's traceback.

    The filters that mask secrets stay after the block: Prefect logs the end of the run then.
    """
    logs.protect_all()
    others = [one for one in logs.all_handlers() if isinstance(one, APILogHandler)]
    runs = [logging.getLogger("prefect.task_runs"), logging.getLogger("prefect.flow_runs")]
    for other in others:
        other.addFilter(_is_not_on_our_page)
    for logger in runs:
        logger.addFilter(_without_traceback)
    try:
        with logs.captured_warnings(), logs.listening(_Page()):
            yield
    finally:
        for logger in runs:
            logger.removeFilter(_without_traceback)
        for other in others:
            other.removeFilter(_is_not_on_our_page)


def failed(error: NightgateError) -> State[Any]:
    """The failed state of a flow, with the error's text as message, without secrets.

    A worker's process would log it again as a traceback of Prefect's: that is kept off the run's page.
    """
    logging.getLogger("prefect.flow_runs").addFilter(_is_no_repetition)
    return Failed(message=logs.without_secrets(str(error)))


def _is_no_repetition(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], FailedRun))


class _Page(APILogHandler):
    """Sends records to the page of the current run; those of threads that belong to no run are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_PageFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        # Two flows of one process have a handler each, and both see the record.
        if getattr(record, "is_on_page", False):
            return
        try:
            get_run_context()
        except MissingContextError:
            return
        record.is_on_page = True
        super().emit(record)


class _PageFormatter(logging.Formatter):
    """Formats `[epoch 2] message`, with the logger's name in front for other libraries."""

    def format(self, record: logging.LogRecord) -> str:
        epoch = logs.epoch_of(record)
        name = "" if logs.is_ours(record.name) or record.name == "py.warnings" else f"{record.name}: "
        return (f"[{epoch}] " if epoch else "") + name + super().format(record)


def _is_not_on_our_page(record: logging.LogRecord) -> bool:
    return not (logs.is_of_a_library(record.name) and logs.belongs_to_night(record))


def _without_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, NightgateError):
        record.exc_info = None
        record.msg, record.args = str(error), ()
    return True
