"""The process that works on an attempt, and whether it still lives.

A process of this machine is looked up, so that its death is known at once. Of another machine (or container) only the
heartbeat tells: it stands in the attempt's row, and a row that has not been renewed for `LEASE` belongs to a dead one.
Being wrong about it does no harm: whoever was given up writes nothing more, see `nightgate.runs.lifecycle.fenced`.
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
"""Eight missed beats: a database that is away for a minute, or a machine that swaps, is no death."""

_CLOCK_STEP = timedelta(seconds=2)
"""By which the start of a process may seem to move when the clock is set."""


@dataclass(frozen=True)
class Owner:
    """The process that works on a run."""

    host: str
    pid: int
    started: datetime
    """Aware. A pid alone may belong to another process by now."""
    space: str = ""
    """Within which the pid means something, see `process_space`."""

    @classmethod
    def here(cls) -> Owner:
        started = datetime.fromtimestamp(psutil.Process().create_time(), UTC)
        return cls(socket.gethostname(), os.getpid(), started, process_space())


@cache
def process_space() -> str:
    """Boot and pid namespace: two containers may share a host's name, and a pid survives no restart."""
    boot = namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
    return f"{boot}/{namespace}"


def now(session: Session) -> datetime:
    """The clock by which heartbeats are compared: the database's, where all machines share one."""
    if session.get_bind().dialect.name == "postgresql":
        return session.execute(sa.select(sa.func.clock_timestamp(type_=UtcTime()))).scalar_one()
    return datetime.now(UTC)


def cause_of_death(attempt: Attempt, moment: datetime) -> str:
    """Why the attempt's process counts as dead; '' while it lives. `moment` is `now(session)`."""
    named = f"its process (pid {attempt.pid} on {attempt.host})"
    is_here = (attempt.host, attempt.process_space) == (socket.gethostname(), process_space())
    if is_here and not _lives(attempt.pid, attempt.owner_started):
        return f"{named} ended without a word in attempt {attempt.attempt}"
    silent = moment - (attempt.heartbeat_at or attempt.started_at)
    if silent > LEASE:
        return f"{named} has given no sign of life for {naturaldelta(silent)} in attempt {attempt.attempt}"
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
