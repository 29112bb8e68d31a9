"""What the page of all pipelines shows: those that need attention first, each with its nights."""

from __future__ import annotations

from datetime import date
from typing import Any

from nightgate.database.transactions import Database
from nightgate.frames.fleet import read_fleet
from nightgate.pages.columns import by_column, plain
from nightgate.pages.data import read_nights
from nightgate.plain_text import printable

COLUMNS = ("pipeline", "night", "status", "champion_version", "champion_since", "needs", "remedy")
NIGHT_COLUMNS = (
    *("night", "status", "reason", "test_f1", "f1_ci_low", "f1_ci_high", "min_f1", "champion_f1", "break_before"),
    *("bridge_before", "bridge_after"),
)
LONGEST_REASON = 110
"""Characters: half of the page is reasons."""


def page_of_all(db: Database, since: date | None = None) -> dict[str, Any]:
    """All that the page of all pipelines shows, from the night `since` on.

    Raises:
        ConfigurationError: none has a night since then.
        DatabaseError: the database cannot be used.
    """
    fleet = read_fleet(db)
    nights = read_nights(db, None, since)
    nights["reason"] = [reason and printable(reason, LONGEST_REASON) for reason in nights["reason"]]
    fleet = fleet.assign(calm=fleet["needs"] == "").sort_values(["calm", "pipeline"])
    rows = zip(*(plain(fleet[name]) for name in COLUMNS), strict=True)
    return {
        "kind": "pipelines",
        "pipelines": [
            dict(zip(COLUMNS, row, strict=True))
            | {"nights": by_column(nights[nights["pipeline"] == name], NIGHT_COLUMNS)}
            for name, row in zip(fleet["pipeline"], rows, strict=True)
        ],
    }
