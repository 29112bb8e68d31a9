"""Nights, epochs and slices as frames, for `nightgate history` and for `nightgate.history` in Python.

    import nightgate
    nights = nightgate.history("sample")                        # one row per night
    epochs = nightgate.history("sample", epochs=True)           # the last night's epochs

Each query is a plain SELECT on the views, which any SQL client can query without Nightgate.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import pandas as pd
import sqlalchemy as sa

from nightgate.database.label_meanings import label_meanings
from nightgate.database.refresh_schema import Refresh
from nightgate.database.schema import Run
from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.frames.reader import open_reader, tidy
from nightgate.metrics.comparability import Break, ScoredNight, breaks


def history(
    pipeline: str | None = None,
    *,
    run: str | None = None,
    epochs: bool = False,
    slices: bool = False,
    since: date | str | None = None,
    until: date | str | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """Metrics of nights, the oldest first, one row per night unless `run`, `epochs` or `slices` is given.

    Times are aware (UTC), `night` is a date. Nights have the columns of the view `nights`, and six more:
    `break_before`, why scores from that night on are not comparable with earlier ones, with the version that was scored
    on both sides and its F1 there (`bridge_version`, `bridge_before`, `bridge_after`); `later_failure`, a later try of
    the night that broke and does not count; and `alarm`, those of the champion's evaluation. None where there is none.

    Args:
        pipeline: name; None: all pipelines.
        run: a run id, or "latest" for the newest night's run; gives its epochs unless `slices` is set.
        epochs: rows of `epoch_results` instead of `nights`; of the latest run, or of all nights if `since` is given.
        slices: rows of `slice_metrics`: classes and slices of each run's best epoch, on validation and on test.
        since: only nights from this date on.
        until: only nights up to this date.
        limit: only the newest nights, so many of each pipeline.

    Raises:
        RegistryError: there is no home here, or no such run.
        DatabaseError: the database cannot be used.
    """
    with open_reader() as db:
        which: dict[str, Any] = {"run": run, "since": since, "until": until, "limit": limit}
        return read_history(db, pipeline, epochs=epochs, slices=slices, **which)


def read_history(
    db: Database,
    pipeline: str | None = None,
    *,
    run: str | None = None,
    epochs: bool = False,
    slices: bool = False,
    since: date | str | None = None,
    until: date | str | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """The frame of `history`, from an open database."""
    detailed = epochs or slices or run is not None
    where = ["x.pipeline = :pipeline" if pipeline else "1 = 1"]
    parameters: dict[str, Any] = {"pipeline": pipeline} if pipeline else {}
    for name, day, compared in (("since", since, ">="), ("until", until, "<=")):
        if day is not None:
            where.append(f"x.night {compared} :{name}")
            # SQLite stores dates as text.
            parameters[name] = str(day) if db.dialect == "sqlite" else date.fromisoformat(str(day))
    if run == "latest" or (run is None and detailed and (since, until, limit) == (None, None, None)):
        run, limit = None, 1
    if run is not None:
        _must_exist(db, pipeline, run)
        where.append("x.run_id = :run")
        parameters["run"] = run
    elif limit is not None:
        newest = (
            "SELECT x.run_id, ROW_NUMBER() OVER (PARTITION BY x.pipeline ORDER BY x.night DESC) AS place "
            f"FROM nights AS x WHERE {' AND '.join(where)}"
        )
        where.append(f"x.run_id IN (SELECT c.run_id FROM ({newest}) AS c WHERE c.place <= :limit)")
        parameters["limit"] = limit
    elif detailed:
        where.append("x.run_id IN (SELECT run_id FROM nights)")
    condition = " AND ".join(where)
    if slices:
        query = (
            "SELECT x.* FROM slice_metrics AS x JOIN nightly_runs AS r ON r.run_id = x.run_id "
            "LEFT JOIN epoch_results AS e ON e.run_id = x.run_id AND e.epoch = x.epoch "
            f"WHERE {condition} AND x.epoch = COALESCE(r.best_epoch, "
            "(SELECT MAX(m.epoch) FROM epoch_results AS m WHERE m.run_id = x.run_id)) "
            "AND (x.split = 'validation' AND x.attempt = e.attempt OR x.split = 'test' AND x.attempt = "
            "(SELECT MAX(t.attempt) FROM slice_metrics AS t WHERE t.run_id = x.run_id AND t.split = 'test')) "
            "ORDER BY x.pipeline, x.night, x.split DESC, x.slice_name, x.slice_value"
        )
    elif detailed:
        query = f"SELECT x.* FROM epoch_results AS x WHERE {condition} ORDER BY x.pipeline, x.night, x.epoch"
    else:
        query = f"SELECT x.* FROM nights AS x WHERE {condition} ORDER BY x.pipeline, x.night"
    found = tidy(db.frame(query, parameters))
    if detailed:
        return found
    alarms = db.frame(
        "SELECT pipeline, snapshot_id, alarm FROM champion_evaluations WHERE role = 'champion' AND alarm IS NOT NULL "
        "ORDER BY evaluated_at"
    )
    of_snapshot = {(name, snapshot): alarm for name, snapshot, alarm in alarms.itertuples(index=False)}
    alarm = [of_snapshot.get(key) for key in zip(found["pipeline"], found["snapshot_id"], strict=True)]
    return found.assign(
        **_breaks(db, found),
        later_failure=later_failures(db, found),
        alarm=pd.Series(alarm, dtype=object),
    )


def later_failures(db: Database, nights: pd.DataFrame) -> pd.Series[Any]:
    """For each of these runs (pipeline, night, started_at), a later try of its night that failed or was cancelled."""
    query = (
        sa.select(Run.pipeline, Run.night, Run.started_at, Run.run_id, Run.status, Run.reason)
        .where(Run.status.in_(("failed", "cancelled")), Run.dry_run.is_(False))
        .where(Run.pipeline.in_(set(nights["pipeline"])))
        .order_by(Run.started_at)
    )
    newest = {(row.pipeline, row.night): row for row in db.read(lambda session: session.execute(query).all())}

    def described(pipeline: str, night: date, started_at: datetime) -> str | None:
        later = newest.get((pipeline, night))
        if later is None or later.started_at <= started_at:
            return None
        ended = "failed" if later.status == "failed" else "was cancelled"
        return f"a later try, {later.run_id}, {ended}: {later.reason}"

    shown = zip(nights["pipeline"], nights["night"], nights["started_at"], strict=True)
    return pd.Series([described(*row) for row in shown], index=nights.index, dtype=object)


def why_no_epochs(pipeline: str, run: str | None) -> str:
    """Status, reason and next step of a run without epochs; '' where there is no such run.

    Args:
        run: a run id, or "latest" or None for the newest night's run.
    """
    with open_reader() as db:
        run_id = _latest_run(db, pipeline) if run in {None, "latest"} else run
        query = "SELECT night, status, reason, next_step FROM nightly_runs WHERE run_id = :run"
        rows = tidy(db.frame(query, {"run": run_id})).to_dict("records")
    if not rows:
        return ""
    [row] = rows
    reason = f": {row['reason']}" if row["reason"] else ""
    next_step = f"\n  next: {row['next_step']}" if row["next_step"] else ""
    return f"run {run_id}, night {row['night']}, has no such rows: it is {row['status']}{reason}{next_step}"


def _breaks(db: Database, nights: pd.DataFrame) -> dict[str, pd.Series[Any]]:
    """Columns with the break before each of the nights, computed over all scored nights of their pipelines."""
    by_run = {run: found for name in set(nights["pipeline"]) for run, found in _breaks_of(db, name).items()}
    found_breaks = [by_run.get(run_id) for run_id in nights["run_id"]]
    bridges = [one and one.bridge for one in found_breaks]
    return {
        "break_before": pd.Series([one and str(one) for one in found_breaks], dtype=object),
        "bridge_version": pd.Series([one and one.version for one in bridges], dtype="Int64"),
        "bridge_before": pd.Series([one and one.before for one in bridges], dtype=float),
        "bridge_after": pd.Series([one and one.after for one in bridges], dtype=float),
    }


def _breaks_of(db: Database, pipeline: str) -> dict[str, Break | None]:
    """By the run of each scored night."""
    query = (
        "SELECT night, run_id, metric_key, test_version, average, model_version, test_f1, champion_version, "
        "champion_f1 FROM nights WHERE pipeline = :pipeline AND test_f1 IS NOT NULL ORDER BY night"
    )
    nights = tidy(db.frame(query, {"pipeline": pipeline}))
    of_runs = sa.select(Run.run_id, Run.label_names, Run.config["gate"]).where(Run.pipeline == pipeline)
    found = db.read(lambda session: session.execute(of_runs).tuples().all())
    meanings = db.read(lambda session: label_meanings(session, Run.pipeline == pipeline))
    settings: dict[str, Any] = {
        run_id: {"label_names": tuple(names), "meaning": meanings[run_id]}
        | {name: gate[name] for name in ("test_window", "min_test_rows")}
        for run_id, names, gate in found
    }
    facts: Any = nights.drop(columns="run_id").astype(object).where(nights.notna(), None).to_dict("records")
    scored = [ScoredNight(**settings[run], **row) for run, row in zip(nights["run_id"], facts, strict=True)]
    return dict(zip(nights["run_id"], breaks(scored), strict=True))


def pipelines() -> list[str]:
    """Names of the pipelines that have runs."""
    with open_reader() as db:
        return list(
            db.read(
                lambda session: session.scalars(sa.union(sa.select(Run.pipeline), sa.select(Refresh.pipeline))).all()
            )
        )


def _latest_run(db: Database, pipeline: str) -> str | None:
    """The run of the newest night in the view `nights`; None, which matches no row, without nights."""
    found = db.frame(
        "SELECT run_id FROM nights WHERE pipeline = :pipeline ORDER BY night DESC LIMIT 1", {"pipeline": pipeline}
    )
    return str(found["run_id"].iloc[0]) if len(found) else None


def _must_exist(db: Database, pipeline: str | None, run: str) -> None:
    found = db.frame("SELECT pipeline FROM nightly_runs WHERE run_id = :run", {"run": run})["pipeline"]
    if found.empty or pipeline not in {None, found.iloc[0]}:
        raise RegistryError(
            f"pipeline {pipeline} has no run {run}" if pipeline else f"there is no run {run}",
            next_step=f"choose a run_id from `nightgate history{f' {pipeline}' if pipeline else ''} --format csv`",
        )
