"""Locks in the home that processes share: what one holds is free again as soon as it ends, however it dies.

Each is a file in `home/locks/` that the kernel locks for the process that holds it, and whose text names that holder.
Between waiting processes there is no order.
"""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from nightgate.errors import StorageError, storage_errors
from nightgate.home import Home

POLL_SECONDS = 0.5


@contextmanager
def hold(
    home: Home,
    name: str,
    *,
    limit: int = 1,
    holder: str,
    on_wait: Callable[[str], None] | None = None,
    check: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Wait until fewer than `limit` others hold `name`, and hold it for the block. Not reentrant.

    Args:
        holder: who holds it, in words for those who wait.
        on_wait: called with a sentence that says who is waited for, whenever that changes.
        check: called before each further attempt; what it raises ends the wait.

    Raises:
        StorageError: the home is gone, read-only or full, or its file system has no locks.
    """
    reported = None
    while (file := _acquire(home.root / "locks", name, limit)) is None:
        why = f"waiting for {name}: held by {', '.join(holders(home, name)) or 'a process that is ending'}"
        if why != reported and on_wait is not None:
            on_wait(why)
        reported = why
        time.sleep(POLL_SECONDS)
        if check is not None:
            check()
    with file:
        with storage_errors(home.root):
            file.truncate(0)
            file.write(holder)
            file.flush()
        yield


def holders(home: Home, name: str) -> list[str]:
    """Who holds `name` now. Needs no right to write."""
    found = []
    for path in sorted((home.root / "locks").glob(f"{name}.*")):
        with path.open(encoding="utf-8") as file:
            if not _lock(file, fcntl.LOCK_SH):
                found.append(file.read())
    return found


def _acquire(folder: Path, name: str, limit: int) -> TextIO | None:
    with storage_errors(folder):
        try:
            folder.mkdir(exist_ok=True)
            for number in range(limit):
                # Python closes it in processes that it starts: the lock is this process's alone.
                file = (folder / f"{name}.{number}").open("a", encoding="utf-8")
                if _lock(file, fcntl.LOCK_EX):
                    return file
                file.close()
        except FileNotFoundError as error:
            raise StorageError(
                f"the home {folder.parent} is gone", next_step="restore it, or set NIGHTGATE_HOME to another"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            raise StorageError(
                f"the file system of {folder} has no locks: {error.strerror}",
                next_step="mount it with locks, or set NIGHTGATE_HOME to a folder on another",
            ) from error
    return None


def _lock(file: TextIO, kind: int) -> bool:
    """Whether the lock was free; closing the file releases it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
