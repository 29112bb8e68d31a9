"""Locks in the home that processes share: what one holds is free again as soon as it ends, however it dies.

Each is a file in `home/locks/` that the kernel locks for the process that holds it, and whose text names that holder.
One that waits has such a file too, so that all see the order: the highest priority first, then the longest wait.
"""

from __future__ import annotations

import errno
import fcntl
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TextIO

from nightgate.errors import StorageError, storage_errors
from nightgate.home import Home

POLL_SECONDS = 0.5
SLOT = "slot-"
"""Begin of the name of a slot's lock."""
WAITS = ".waits"
"""End of the file names of those that wait."""


@dataclass(frozen=True)
class Place:
    """One that holds a lock or waits for it."""

    holder: str
    """Who it is, in words for those that wait."""
    priority: int
    since: str
    """When it came: UTC in ISO 8601."""
    waits: bool

    @property
    def order(self) -> tuple[bool, int, str]:
        return self.waits, -self.priority, self.since


@contextmanager
def hold(
    home: Home,
    name: str,
    *,
    holder: str,
    limit: int = 1,
    priority: int = 0,
    on_wait: Callable[[str], None] | None = None,
    check: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Wait until fewer than `limit` others hold `name` or go first, and hold it for the block. Not reentrant.

    Args:
        holder: see `Place`.
        on_wait: called with a sentence that says who is waited for, whenever that changes.
        check: called before each further attempt; what it raises ends the wait.

    Raises:
        StorageError: the home is gone, read-only or full, or its file system has no locks.
    """
    own = Place(holder, priority, datetime.now(UTC).isoformat(), waits=True)
    reported = ""
    with ExitStack() as waiting:
        while isinstance(found := _try(home, name, limit, own), str):
            if not reported:
                waiting.enter_context(_waiting(home, name, own))
            if found != reported and on_wait is not None:
                on_wait(found)
            reported = found
            time.sleep(POLL_SECONDS)
            if check is not None:
                check()
    with found:
        yield


def queue(home: Home, name: str) -> list[Place]:
    """Those that hold `name` now, then those that wait for it, in order. Needs no right to write."""
    found = []
    for path in sorted((home.root / "locks").glob(f"{name}.*")):
        with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
            if not _lock(file, fcntl.LOCK_SH):
                # Empty for the moment in which it is written.
                found += [Place(**json.loads(text), waits=path.suffix == WAITS)] if (text := file.read()) else []
            elif path.suffix == WAITS:
                with suppress(OSError):  # one that was killed while it waited
                    path.unlink()
    return sorted(found, key=lambda place: place.order)


def _try(home: Home, name: str, limit: int, own: Place) -> TextIO | str:
    """The file that is locked for this process now, or what it waits for."""
    places = queue(home, name)
    held = [place.holder for place in places if not place.waits]
    ahead = sum(place.waits and place.order < own.order for place in places)
    if len(held) + ahead < limit:
        for number in range(limit):
            if (file := _take(home, f"{name}.{number}", own)) is not None:
                return file
    return f"waiting for {name}: {ahead} ahead in the queue" + (f", held by {', '.join(held)}" if held else "")


@contextmanager
def _waiting(home: Home, name: str, own: Place) -> Iterator[None]:
    """Have a place in the queue for the block."""
    path = home.root / "locks" / f"{name}.{uuid.uuid4().hex}{WAITS}"
    # Locked before it has its name: an unlocked one counts as left by the dead.
    file = _take(home, f".{path.name}", own)
    assert file is not None
    with file:
        path.with_name(f".{path.name}").rename(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _take(home: Home, name: str, own: Place) -> TextIO | None:
    """The file, locked and with our name; None where another process has it."""
    path = home.root / "locks" / name
    with storage_errors(path), ExitStack() as opened:
        try:
            path.parent.mkdir(exist_ok=True)
            # Python closes it in programs that it starts: the lock is this process's alone.
            file = opened.enter_context(path.open("a", encoding="utf-8"))
            if not _lock(file, fcntl.LOCK_EX):
                return None
            file.truncate(0)
            file.write(json.dumps({name: value for name, value in asdict(own).items() if name != "waits"}))
            file.flush()
        except FileNotFoundError as error:
            raise StorageError(
                f"the home {home.root} is gone", next_step="restore it, or set NIGHTGATE_HOME to another"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            raise StorageError(
                f"the file system of {home.root} has no locks: {error.strerror}",
                next_step="mount it with locks, or set NIGHTGATE_HOME to a folder on another",
            ) from error
        opened.pop_all()
        return file


def _lock(file: TextIO, kind: int) -> bool:
    """Whether the lock was free; closing the file releases it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
