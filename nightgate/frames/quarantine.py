"""Source rows that cannot be used, as a frame."""

from __future__ import annotations

import pandas as pd

from nightgate.frames.reader import open_reader, select


def quarantine(
    pipeline: str, *, reason: str = "", resolved: bool = False, limit: int = 100
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Quarantined rows, the newest first, and how many there are by reason.

    Args:
        resolved: those that are resolved too.
    """
    where = "WHERE pipeline = :pipeline"
    where += "" if resolved else " AND resolved_night IS NULL"
    where += " AND reason = :reason" if reason else ""
    parameters = {"pipeline": pipeline, "reason": reason, "limit": limit}
    order = "ORDER BY first_night DESC, last_night DESC, position LIMIT :limit"
    with open_reader() as db:
        frame = select(db, f"SELECT * FROM quarantined_rows {where} {order}", parameters)
        by_reason = "GROUP BY reason ORDER BY COUNT(*) DESC, reason"
        counts = db.frame(f"SELECT reason, COUNT(*) FROM quarantined_rows {where} {by_reason}", parameters)
    return frame, {str(name): int(count) for name, count in counts.itertuples(index=False)}
