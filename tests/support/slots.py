"""Runs that hold and wait for a slot, in threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from nightgate import locks
from nightgate.home import Home


class _EndedError(Exception):
    pass


@contextmanager
def slot_places(home: Home, slot: str, holder: str, *waiting: str) -> Iterator[None]:
    """One holds the slot for the block, and others wait for it, in this order."""
    over = threading.Event()

    def wait(name: str, waits: threading.Event) -> None:
        def check() -> None:
            if over.is_set():
                raise _EndedError

        try:
            with locks.hold(home, locks.SLOT + slot, holder=name, on_wait=lambda _: waits.set(), check=check):
                raise AssertionError(f"{name} holds the slot too")
        except _EndedError:
            pass

    with locks.hold(home, locks.SLOT + slot, holder=holder):
        threads = []
        for name in waiting:
            waits = threading.Event()
            threads.append(threading.Thread(target=wait, args=(name, waits)))
            threads[-1].start()
            assert waits.wait(10)
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join(10)
