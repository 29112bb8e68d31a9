"""Errors of ours are told in words: Prefect would print each one with a traceback of its own engine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from nightgate.errors import NightgateError


def _without_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, NightgateError):
        record.exc_info = None
        record.msg, record.args = str(error), ()
    return True


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Within the block, a task or flow run that ends by a NightgateError logs its message and next step only."""
    loggers = [logging.getLogger("prefect.task_runs"), logging.getLogger("prefect.flow_runs")]
    for logger in loggers:
        logger.addFilter(_without_traceback)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_without_traceback)
