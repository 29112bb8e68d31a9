"""One process of a promotion race: `python -m tests.support.competitors FIRST LAST`, with a thread per version.

It prints `ready`; for each line of input, the champion to replace (0: none), it promotes all its versions at once over
a pool of connections and prints a line of outcomes.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy.pool import QueuePool

from nightgate.database.transactions import Database
from nightgate.errors import PromotionLostError
from nightgate.home import open_home
from tests.support import night_rows

KEPT = 5
"""Connections in the pool of a process. Nightgate itself keeps none between transactions."""
SECONDS = 240.0


def keep_connections(database: Database) -> None:
    engine = database._engine
    engine.pool = QueuePool(
        engine.pool._creator,
        pool_size=KEPT,
        max_overflow=0,
        timeout=SECONDS,
        dialect=engine.dialect,
        _dispatch=engine.pool.dispatch,
    )


def main(first: int, last: int) -> None:
    versions = range(first, last + 1)
    with (
        Database.open(open_home(), patience=SECONDS) as database,
        ThreadPoolExecutor(len(versions)) as pool,
    ):
        keep_connections(database)
        start = threading.Barrier(len(versions))

        def compete(version: int, expected: int | None) -> str:
            start.wait(SECONDS)
            if version == expected:
                return "champion"
            try:
                night_rows.promote(database, version, expected, by=f"competitor {version}")
            except PromotionLostError:
                return "lost"
            return f"won:{version}"

        print("ready", flush=True)
        for line in sys.stdin:
            expected = int(line) or None
            print(*pool.map(compete, versions, [expected] * len(versions)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
