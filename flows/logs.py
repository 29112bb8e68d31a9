"""Logs of a flow run: the library's progress reaches terminal and run page, errors of ours are told in words."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.logging.handlers import APILogHandler

from nightgate.errors import NightgateError


@contextmanager
def readable_logs() -> Iterator[None]:
    """Within the block the library logs into the flow run, and a NightgateError shows without Prefect's traceback."""
    library = logging.getLogger("nightgate")
    level = library.level
    # PREFECT_LOGGING_EXTRA_LOGGERS may have added one already: each line once.
    handler = None if any(isinstance(one, APILogHandler) for one in library.handlers) else APILogHandler()
    runs = [logging.getLogger("prefect.task_runs"), logging.getLogger("prefect.flow_runs")]
    library.setLevel(logging.INFO)
    if handler:
        library.addHandler(handler)
    for logger in runs:
        logger.addFilter(_without_traceback)
    try:
        yield
    finally:
        for logger in runs:
            logger.removeFilter(_without_traceback)
        if handler:
            library.removeHandler(handler)
        library.setLevel(level)


def _without_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, NightgateError):
        record.exc_info = None
        record.msg, record.args = str(error), ()
    return True
