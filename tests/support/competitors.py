"""One process of a promotion race: `python -m tests.support.competitors FIRST LAST`, a thread for each of these
versions.

It prints `ready`, then reads the champion that is to be replaced (0: there is none) and promotes all its versions at
once over a pool of kept connections; one line of outcomes comes back for each line that was read.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy.pool import QueuePool

from nightgate.database.transactions import Database
from nightgate.errors import PromotionLostError
from nightgate.home import open_home
from nightgate.registry import promotion

KEPT = 5
"""Connections of a process. Nightgate itself keeps none: here those of many promotions are used again and again."""
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
                return "reigns"
            try:
                promotion.promote(
                    database, "reviews", version, expected=expected, by=f"competitor {version}", reason="race"
                )
            except PromotionLostError:
                return "lost"
            return f"won:{version}"

        print("ready", flush=True)
        for line in sys.stdin:
            expected = int(line) or None
            print(*pool.map(compete, versions, [expected] * len(versions)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
