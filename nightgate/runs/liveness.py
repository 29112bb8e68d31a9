"""Detect whether the process that works on an attempt is alive.

A process of this machine and container is looked up: its death is known at once, and while it exists it lives, however
the clock was set or the machine suspended. It is identified by boot, pid namespace, pid and the clock ticks from the
boot to its start. A process elsewhere counts as dead when its last heartbeat is older than `LEASE`, both by the clock
of `now`. A false alarm does no harm: the writes of a process that was given up are refused, see
`nightgate.runs.lifecycle.fenced`.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from humanize import naturaldelta
from sqlalchemy.orm import Session

from nightgate.database.column_types import UtcTime
from nightgate.database.schema import Attempt

BEAT_SECONDS = 15.0
LEASE = timedelta(seconds=120)
"""Eight missed heartbeats: survives a database that is away for a minute, and a machine that swaps."""


@dataclass(frozen=True)
class Owner:
    """The process that works on a run."""

    host: str
    pid: int
    started: datetime
    """Aware, by the clock as it is set now: a later setting of the clock changes it."""
    space: str = ""
    """The `process_space` of the pid."""
    ticks: int | None = None
    """The `start_ticks` of the pid, by which a reused pid is not taken for this process."""

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Owner:
        """A process of this machine and container that exists."""
        started = datetime.fromtimestamp(psutil.Process(pid).create_time(), UTC)
        return cls(socket.gethostname(), pid, started, process_space(), start_ticks(pid))


@cache
def process_space() -> str:
    """Identify boot and pid namespace: two containers may share a host name, and a restart reuses pids."""
    boot = namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
    return f"{boot}/{namespace}"


def start_ticks(pid: int) -> int | None:
    """Clock ticks from the machine's boot to the start of a process; None without Linux's /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # Field 22; the name, which is field 2, may hold spaces and parentheses.
    return int(stat.rpartition(b")")[2].split()[19])


def now(session: Session) -> datetime:
    """The time on the clock that heartbeats use: the database server's, so that all machines agree."""
    if session.get_bind().dialect.name == "postgresql":
        return session.execute(sa.select(sa.func.clock_timestamp(type_=UtcTime()))).scalar_one()
    return datetime.now(UTC)


def cause_of_death(attempt: Attempt | sa.Row[Any], moment: datetime) -> str:
    """Why the attempt's process counts as dead; '' if it is alive. `moment` is `now(session)`.

    Args:
        attempt: it, or a row of the view `attempts`.
    """
    named = f"its process (pid {attempt.pid} on {attempt.host})"
    is_here = (attempt.host, attempt.process_space) == (socket.gethostname(), process_space())
    lives = _lives(attempt) if is_here else None
    if lives is False:
        return f"{named} ended unexpectedly in attempt {attempt.attempt}"
    silent = moment - (attempt.heartbeat_at or attempt.started_at)
    if lives is None and silent > LEASE:
        return f"{named} has sent no heartbeat for {naturaldelta(silent)} in attempt {attempt.attempt}"
    return ""


def _lives(attempt: Attempt | sa.Row[Any]) -> bool | None:
    """Whether the attempt's process still exists; None where that is not known, or does not tell."""
    try:
        process = psutil.Process(attempt.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        begun = datetime.fromtimestamp(process.create_time(), UTC)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return None
    ticks = start_ticks(attempt.pid)
    if None not in (ticks, attempt.owner_ticks):
        lives = ticks == attempt.owner_ticks
    elif attempt.owner_started is not None and abs(begun - attempt.owner_started) < timedelta(seconds=2):
        lives = True
    else:
        return None  # the pid was used again, or the clock was set
    # This process, such as a notebook, may outlive a night whose end could not be recorded.
    return None if lives and attempt.pid == os.getpid() else lives
