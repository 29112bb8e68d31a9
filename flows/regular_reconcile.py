"""Reconcile every few minutes within a process that runs for long anyway: `nightgate serve` or a worker.

As a flow it would take a process of 200 MB each time, and 288 lines a day in the list of runs.
"""

from __future__ import annotations

import logging

import anyio

from flows.reconcile import reconcile_now
from nightgate.errors import InternalError
from nightgate.home import find_home

log = logging.getLogger("nightgate.flows")

SECONDS = 300.0
"""Suspended runs need a heartbeat at least every 900 s (`deployments.automations`): two may be lost."""


async def reconcile_regularly(seconds: float = SECONDS) -> None:
    """Reconcile until this is cancelled, beside all else that the event loop does."""
    while True:
        await anyio.sleep(seconds)
        await anyio.to_thread.run_sync(_reconcile, abandon_on_cancel=True)


def _reconcile() -> None:
    try:
        if find_home() is not None:
            reconcile_now()
    except Exception as error:  # noqa: BLE001 - whatever it is must end neither this process nor the nights at work
        log.warning("not reconciled, it is tried again: %s", InternalError.of(error).reason)
