"""How many threads PyTorch uses on the CPU and how idle ones wait, each with the reason.

This module does not import torch: OpenMP reads its settings when it is loaded, so they are chosen before a process
starts.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil

MOST_USE_BY_OTHERS = 0.15
"""A machine counts as idle while other processes use no more than this share of the CPUs."""
SPINS = 10_000
"""Rounds that an idle thread looks for work before it sleeps."""
SECONDS_TO_MEASURE = 0.3
"""How long the use of the CPUs is measured: the kernel counts in hundredths of a second."""

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
_REASON = "_NIGHTGATE_WAITING_REASON"
"""Passes the reason from the parent, which chooses, to the child, which logs it."""


def pick_threads() -> tuple[int, str]:
    """Threads for PyTorch on the CPU, and why: the physical cores that this process may use, however busy they are.

    Fewer threads beside a busy process would cost no time, but the last digits depend on their number, and a night
    could not be repeated.
    """
    count, why = _count()
    waiting = os.environ.get(_REASON, "")
    return count, f"{why}; {waiting}" if waiting and count > 1 else why


def openmp_settings() -> dict[str, str]:
    """Variables to add to the environment of a process that will compute; the user's own settings are kept.

    Takes 0.3 s.
    """
    if _count()[0] == 1:
        return {}
    own = [name for name in _WAITING if name in os.environ]
    settings, reason = ({}, f"idle ones wait as set by {own[0]}") if own else choose_waiting(use_by_others())
    return {**settings, _REASON: reason}


def choose_waiting(others: float | None) -> tuple[dict[str, str], str]:
    """Choose how idle OpenMP threads wait, and why, from the CPU share of other processes (0 to 1; None: unknown).

    Milliseconds per step on two cores, alone and beside one busy process: OpenMP's default 458 and 6,313, sleeping at
    once 666 and 865, `SPINS` rounds 470 and 1,354.
    """
    if others is None:
        return {"OMP_WAIT_POLICY": "PASSIVE"}, "idle ones sleep: the use of the CPUs cannot be read"
    if others > MOST_USE_BY_OTHERS:
        return {"OMP_WAIT_POLICY": "PASSIVE"}, f"idle ones sleep: other processes use {others:.0%} of these CPUs"
    return {"GOMP_SPINCOUNT": str(SPINS)}, f"idle ones spin briefly: other processes use {others:.0%} of these CPUs"


def use_by_others() -> float | None:
    """Measure which share of this process's CPUs others use, 0 to 1, while this thread sleeps; None if unknown."""
    try:
        shares = psutil.cpu_percent(SECONDS_TO_MEASURE, percpu=True)
    except (OSError, NotImplementedError, psutil.Error):
        return None
    ours = [shares[cpu] for cpu in _usable() if cpu < len(shares)]
    return sum(ours) / (100 * len(ours)) if ours else None


def _count() -> tuple[int, str]:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked), f"{asked} threads: set by OMP_NUM_THREADS"
    # Hyper-threads share a floating-point unit: a second thread on a core slows matrix products down.
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
    """CPUs that the cgroup allows; None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None
