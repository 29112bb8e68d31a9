"""The machine that a benchmark runs on, and how busy other processes keep it."""

from __future__ import annotations

import sys
import time
from importlib.metadata import version

import psutil

BUSY = 0.05
"""Share of the cores used by other processes above which a run is disturbed."""


def say(what: str) -> None:
    """Progress, on standard error: standard output is for the results."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def description(*packages: str) -> dict[str, str]:
    """Size and versions, for the results."""
    return {
        "machine": f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
    }


class Neighbours:
    """How much of the cores other processes use, from now on."""

    def __init__(self) -> None:
        self._began, self._then = time.monotonic(), _counts()

    def __str__(self) -> str:
        (busy, own), (busy_then, own_then) = _counts(), self._then
        cores = (time.monotonic() - self._began) * (psutil.cpu_count() or 1)
        share = max(0.0, (busy - busy_then) - (own - own_then)) / max(cores, 1e-9)
        warning = ": the figures are disturbed, run it again on a quiet machine" if share > BUSY else ""
        return f"took {share:.0%} of the cores{warning}"


def _counts() -> tuple[float, float]:
    """CPU seconds of all processes, and of this one with its children, those that have ended included."""
    times, own = psutil.cpu_times(), 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        used = process.cpu_times()
        own += used.user + used.system + used.children_user + used.children_system
    return times.user + times.system + times.nice, own
