"""Detect whether the process that works on an attempt is alive.

A process of this machine is looked up, so its death is known at once. A process of another machine or container counts
as dead when the heartbeat in its attempt's row is older than `LEASE`. A false alarm does no harm: the writes of a
process that was given up are refused, see `nightgate.runs.lifecycle.fenced`.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import psutil
import sqlalchemy as sa
from humanize import naturaldelta
from sqlalchemy.orm import Session

from nightgate.database.column_types import UtcTime
from nightgate.database.schema import Attempt

BEAT_SECONDS = 15.0
LEASE = timedelta(seconds=120)
"""Eight missed heartbeats: survives a database that is away for a minute, and a machine that swaps."""

_CLOCK_STEP = timedelta(seconds=2)
"""Tolerance for a process's start time, which shifts when the clock is set."""


@dataclass(frozen=True)
class Owner:
    """The process that works on a run."""

    host: str
    pid: int
    started: datetime
    """Aware. Distinguishes a reused pid from the original process."""
    space: str = ""
    """The `process_space` of the pid."""

    @classmethod
    def here(cls) -> Owner:
        started = datetime.fromtimestamp(psutil.Process().create_time(), UTC)
        return cls(socket.gethostname(), os.getpid(), started, process_space())


@cache
def process_space() -> str:
    """Identify boot and pid namespace: two containers may share a host name, and a restart reuses pids."""
    boot = namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
    return f"{boot}/{namespace}"


def now(session: Session) -> datetime:
    """The time on the clock that heartbeats use: the database server's, so that all machines agree."""
    if session.get_bind().dialect.name == "postgresql":
        return session.execute(sa.select(sa.func.clock_timestamp(type_=UtcTime()))).scalar_one()
    return datetime.now(UTC)


def cause_of_death(attempt: Attempt, moment: datetime) -> str:
    """Why the attempt's process counts as dead; '' if it is alive. `moment` is `now(session)`."""
    named = f"its process (pid {attempt.pid} on {attempt.host})"
    is_here = (attempt.host, attempt.process_space) == (socket.gethostname(), process_space())
    if is_here and not _lives(attempt.pid, attempt.owner_started):
        return f"{named} ended unexpectedly in attempt {attempt.attempt}"
    silent = moment - (attempt.heartbeat_at or attempt.started_at)
    if silent > LEASE:
        return f"{named} has sent no heartbeat for {naturaldelta(silent)} in attempt {attempt.attempt}"
    return ""


def _lives(pid: int, started: datetime | None) -> bool:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        begun = datetime.fromtimestamp(process.create_time(), UTC)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    return started is None or abs(begun - started) <= _CLOCK_STEP
