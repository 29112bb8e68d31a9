"""What changed between nights, and what the gate checked, as frames."""

from __future__ import annotations

import pandas as pd

from nightgate.database.transactions import Database
from nightgate.frames.reader import Day, chosen, open_reader, select


def changes(
    pipeline: str | None = None,
    *,
    run: str | None = None,
    since: Day | None = None,
    until: Day | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """One row per thing that differs from the night before that was trained (`night_changes`): settings, code,
    libraries, base model, test version, labels, device, precision, champion, rows, training in full or not. All
    columns but `night` are text.

    The arguments are those of `nightgate.history`.
    """
    with open_reader() as db:
        return read_changes(db, pipeline, run=run, since=since, until=until, limit=limit)


def read_changes(
    db: Database,
    pipeline: str | None = None,
    *,
    run: str | None = None,
    since: Day | None = None,
    until: Day | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """The frame of `changes`, from an open database."""
    where, given = chosen(db, pipeline, run, since, until, limit)
    return select(
        db, f"SELECT x.* FROM night_changes AS x WHERE {where} ORDER BY x.pipeline, x.night, x.kind, x.name", given
    )


def checks(
    pipeline: str | None = None,
    *,
    run: str | None = None,
    since: Day | None = None,
    until: Day | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """One row per check of the gate and slice, in the gate's order (`gate_checks`): the values of candidate and
    champion, threshold, interval (`float64`), `rows_used` (`Int64`), `outcome` and `reason`.

    The arguments are those of `nightgate.epochs`: by default the newest night of each pipeline that was judged.
    """
    with open_reader() as db:
        where, given = chosen(db, pipeline, run, since, until, limit, having="gate_checks")
        return select(
            db, f"SELECT x.* FROM gate_checks AS x WHERE {where} ORDER BY x.pipeline, x.night, x.position", given
        )
