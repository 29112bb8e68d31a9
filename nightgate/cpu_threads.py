"""How many threads PyTorch gets on the CPU and how idle ones wait, each with the reason that the log shows.

Free of torch: OpenMP reads its settings when it is loaded, so they are chosen for a process before it starts.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

MOST_USE_BY_OTHERS = 0.15
"""Share of the CPUs that others may use on a machine that still counts as idle."""
SPINS = 10_000
"""Rounds that an idle thread looks for work before it sleeps."""
SECONDS_TO_LOOK = 0.3
"""How long the CPUs are watched at least: they count in hundredths of a second."""
JUST_NOW_SECONDS = 2.0
"""A look of so long ago is not begun anew."""
STALE_SECONDS = 60.0

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
_REASON = "_NIGHTGATE_WAITING_REASON"
"""From the parent, which chose, to the child, whose log says so."""


def pick_threads() -> tuple[int, str]:
    """Threads for PyTorch on the CPU: the physical cores that this process may use, however busy they are.

    Not fewer beside a busy neighbour, although that would cost no time: the last digits depend on the number of
    threads, and a night would not repeat.
    """
    count, why = _count()
    waiting = os.environ.get(_REASON, "")
    return count, f"{why}; {waiting}" if waiting and count > 1 else why


def openmp_settings() -> dict[str, str]:
    """What to add to the environment of a process that will compute; what the user set stays.

    Takes 0.3 s, less what has gone by since the last `look`.
    """
    if _count()[0] == 1:
        return {}
    own = [name for name in _WAITING if name in os.environ]
    settings, reason = ({}, f"idle ones wait as {own[0]} says") if own else choose_waiting(use_by_others())
    return {**settings, _REASON: reason}


def choose_waiting(others: float | None) -> tuple[dict[str, str], str]:
    """How idle OpenMP threads wait, given what others use of the CPUs (0 to 1; None: unknown), and why.

    Milliseconds a step on two cores, alone and beside one busy process: OpenMP's default 458 and 6,313, sleeping at
    once 666 and 865, `SPINS` rounds 470 and 1,354.
    """
    if others is None:
        return {"OMP_WAIT_POLICY": "PASSIVE"}, "idle ones sleep: how busy the machine is cannot be read"
    if others > MOST_USE_BY_OTHERS:
        return {"OMP_WAIT_POLICY": "PASSIVE"}, f"idle ones sleep: others use {others:.0%} of these CPUs"
    return {"GOMP_SPINCOUNT": str(SPINS)}, f"idle ones spin briefly: others use {others:.0%} of these CPUs"


@dataclass(frozen=True)
class _Look:
    """Seconds, of which only differences mean anything."""

    at: float
    busy: float
    """Of the CPUs that this process may use."""
    own: float
    """CPU time of this process and of its children that have ended."""


_looks: list[_Look] = []
"""The last one of this process."""


def look() -> None:
    """Begin to watch the CPUs, unless we just did: `use_by_others` need not wait then.

    Where nobody knows how busy they are, do nothing.
    """
    if _looks and time.monotonic() - _looks[0].at < JUST_NOW_SECONDS:
        return
    with suppress(OSError, NotImplementedError, psutil.Error):
        _looks[:] = [_look()]


def use_by_others(seconds: float = SECONDS_TO_LOOK) -> float | None:
    """What share of the CPUs that we may use others used since the last look, 0 to 1; None where nobody knows.

    Waits until that was `seconds` ago. One of more than `STALE_SECONDS` ago does not count: others come and go.
    """
    try:
        if not _looks or time.monotonic() - _looks[0].at > STALE_SECONDS:
            _looks[:] = [_look()]
        then = _looks[0]
        time.sleep(max(0.0, then.at + seconds - time.monotonic()))
        now = _look()
    except (OSError, NotImplementedError, psutil.Error):
        return None
    _looks[:] = [now]
    others = (now.busy - then.busy) - (now.own - then.own)
    return min(1.0, max(0.0, others / ((now.at - then.at) * len(_usable()))))


def _look() -> _Look:
    shares = psutil.cpu_times(percpu=True)
    ours = [shares[cpu]._asdict() for cpu in _usable() if cpu < len(shares)]
    # Guests are in the user's time already.
    idle = ("idle", "iowait", "guest", "guest_nice")
    busy = sum(seconds for times in ours for name, seconds in times.items() if name not in idle)
    used = os.times()
    own = used.user + used.system + used.children_user + used.children_system
    return _Look(time.monotonic(), busy, own)


def _count() -> tuple[int, str]:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked), f"{asked} threads: OMP_NUM_THREADS says so"
    # Hyper-threads share one floating point unit: a second thread there slows matrix products down.
    cores = len({_core(cpu) for cpu in _usable()})
    quota = _cpu_quota()
    if quota is not None and quota < cores:
        return max(1, int(quota)), f"{max(1, int(quota))} threads: the container's quota is {quota:g} CPUs"
    return cores, f"{cores} threads: the physical cores that this process may use"


def _usable() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _core(cpu: int) -> tuple[str, ...]:
    folder = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        return tuple((folder / name).read_text().strip() for name in ("physical_package_id", "core_id"))
    except OSError:
        return (str(cpu),)


def _cpu_quota() -> float | None:
    """CPUs that the cgroup grants; None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None
