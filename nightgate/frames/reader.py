"""Open the metrics database to read it, choose nights, and give frames the same types from both engines."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pandas as pd

from nightgate.database.column_types import as_text
from nightgate.database.transactions import Database
from nightgate.database.views import kind_of
from nightgate.errors import ConfigurationError
from nightgate.frames.dates import date_of
from nightgate.home import home_for_reading

Day = date | str
"""A date, or text such as 2026-01-05."""


def open_reader() -> Database:
    """The database that the environment names, of any home: frames use no files.

    Raises:
        RegistryError: there is no home here.
        DatabaseError: the database cannot be used.
    """
    return Database.open(home_for_reading(), any_home=True)


def chosen(
    db: Database,
    pipeline: str | None,
    run: str | None = None,
    since: Day | None = None,
    until: Day | None = None,
    limit: int | None = None,
    *,
    details: bool = True,
    having: str = "",
) -> tuple[str, dict[str, Any]]:
    """The condition on rows `x` (pipeline, night, run_id) of these nights' runs that count, and its parameters.

    Args:
        pipeline: None: all.
        run: a run id, whether or not it counts, or "latest", the newest night's of each pipeline.
        since, until: the first and the last night, both included.
        limit: the newest nights of each pipeline, so many.
        details: whether `x` is a view of rows of all runs, not `nights`.
        having: the view in which "latest" has to have rows: a night that was skipped has no epochs. With it, "latest"
            is what is meant where no run, date or limit is given.

    Raises:
        ConfigurationError: a date or the limit is none, or there is no such run.
    """
    days = {name: date_of(str(day)) for name, day in (("since", since), ("until", until)) if day is not None}
    if len(days) == 2 and days["since"] > days["until"]:
        raise ConfigurationError(
            f"since {days['since']} is after until {days['until']}",
            next_step="write the earlier date as `since`",
        )
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit is {limit}", next_step="choose 1 or more, the number of nights")
    given: dict[str, Any] = days | ({} if pipeline is None else {"pipeline": pipeline})
    conditions = {"pipeline": "x.pipeline = :pipeline", "since": "x.night >= :since", "until": "x.night <= :until"}
    where = " AND ".join(conditions[name] for name in given) or "1 = 1"
    kept = where
    if having and (run, since, until, limit) == (None, None, None, None):
        run = "latest"
    if run == "latest":
        run, limit = None, 1
        kept += f" AND EXISTS (SELECT h.run_id FROM {having} AS h WHERE h.run_id = x.run_id)" if having else ""
    if run is not None:
        _must_exist(db, pipeline, run)
        return f"{where} AND x.run_id = :run", given | {"run": run}
    if limit is None:
        counting = f" AND x.run_id IN (SELECT x.run_id FROM nights AS x WHERE {where})"
        return where + (counting if details else ""), given
    newest = (
        "SELECT x.run_id, ROW_NUMBER() OVER (PARTITION BY x.pipeline ORDER BY x.night DESC) AS place "
        f"FROM nights AS x WHERE {kept}"
    )
    counted = f"SELECT c.run_id FROM ({newest}) AS c WHERE c.place <= :limit"
    return f"{where} AND x.run_id IN ({counted})", given | {"limit": limit}


def _must_exist(db: Database, pipeline: str | None, run: str) -> None:
    found = db.frame("SELECT pipeline FROM nightly_runs WHERE run_id = :run", {"run": run})["pipeline"]
    if found.empty:
        raise ConfigurationError(
            f"there is no run {run}",
            next_step=f"choose a run_id from `nightgate history {pipeline or 'PIPELINE'} --format csv`",
        )
    if pipeline not in {None, found.iloc[0]}:
        raise ConfigurationError(
            f"run {run} is one of pipeline {found.iloc[0]}, not of {pipeline}",
            next_step=f"see `nightgate history {found.iloc[0]} --run {run}`",
        )


def select(db: Database, query: str, parameters: dict[str, Any] | None = None, *, view: str = "") -> pd.DataFrame:
    """The frame of a query on the views, typed as `tidy` does.

    Args:
        parameters: dates and aware times too, which SQLite stores as text.
    """
    return tidy(db.frame(query, {name: _stored(db, value) for name, value in (parameters or {}).items()}), view)


def _stored(db: Database, value: Any) -> Any:
    if db.dialect == "postgresql" or not isinstance(value, date):
        return value
    return as_text(value.astimezone(UTC)) if isinstance(value, datetime) else str(value)


def tidy(frame: pd.DataFrame, view: str = "") -> pd.DataFrame:
    """`frame` with the same types from both engines: aware times (UTC), `datetime.date`, booleans, nullable integers,
    floats. Missing text is NaN or None.

    Args:
        view: whose columns these are, where their names mean something else elsewhere (`precision`, `value`).
    """
    for name in frame.columns:
        kind, column = kind_of(view, name), frame[name]
        if kind == "time":
            frame[name] = pd.to_datetime(column, utc=True, format="ISO8601")
        elif kind == "date":
            values = column.astype(object).where(column.notna(), None)
            days = [date.fromisoformat(value) if isinstance(value, str) else value for value in values]
            frame[name] = pd.Series(days, index=frame.index, dtype=object)
        elif kind == "boolean":
            frame[name] = column.astype("boolean" if column.isna().any() else bool)
        elif kind == "integer":
            frame[name] = column.astype("Int64")
        elif kind == "number" and pd.api.types.infer_dtype(column) != "string":
            frame[name] = column.astype(float)
    return frame


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame, None for a missing value."""
    found: Any = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return list(found)
