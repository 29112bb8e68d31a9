"""What a command need not wait for: searches for garbage among what was only imported, and slow imports."""

from __future__ import annotations

import atexit
import gc
import threading
from contextlib import suppress
from importlib import import_module

THRESHOLDS = (50_000, 20, 50)
"""Objects made before a search for young garbage, and how many of these before one among the older: Python's 700 and 10
make one of every few modules that are imported."""


def spare_the_collector() -> None:
    """Call it first. pandas, SQLAlchemy and pyarrow make 160,000 objects that live as long as the process.

    Saves a quarter second of CPU at the start, and at the end 0.4 of 0.45 s: Python searches all of them a last time
    for garbage that the system takes back in any case.
    """
    gc.set_threshold(*THRESHOLDS)
    # What is frozen is not searched. Registered first, so that it runs last.
    atexit.register(gc.freeze)


def load_early(*modules: str) -> threading.Thread:
    """Import modules in a thread, for whom would otherwise wait for them: while another process is at work for us."""

    def load() -> None:
        for module in modules:
            # Whoever needs it imports it again, and tells what is wrong with it.
            with suppress(Exception):
                import_module(module)

    thread = threading.Thread(target=load, name="nightgate-imports", daemon=True)
    thread.start()
    return thread
