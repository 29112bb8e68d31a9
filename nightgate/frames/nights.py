"""Nights, epochs and slices as frames, for `nightgate history` and for `nightgate.history` in Python.

    import nightgate
    nights = nightgate.history("sample")                        # one row per night
    epochs = nightgate.history("sample", epochs=True)           # the last night's epochs

Each query is a plain SELECT on the views, which any SQL client can query without Nightgate.
"""

from __future__ import annotations

from collections.abc import Iterable
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
from nightgate.metrics.comparability import ScoredNight, breaks


def history(
    pipeline: str,
    run: str | None = None,
    epochs: bool = False,
    slices: bool = False,
    since: date | str | None = None,
) -> pd.DataFrame:
    """Metrics of a pipeline's nights, one row per night unless `run`, `epochs` or `slices` is given.

    Times are aware (UTC), `night` is a date. Nights have the columns of the view `nights`, and three more:
    `break_before`, why scores from that night on are not comparable with earlier ones, `later_failure`, a later try of
    the night that broke and does not count, and `alarm`, those of the champion's evaluation. None where there is none.

    Args:
        pipeline: name.
        run: a run id, or "latest" for the newest night's run; gives its epochs unless `slices` is set.
        epochs: rows of `epoch_results` instead of `nights`; of the latest run, or of all nights if `since` is given.
        slices: rows of `slice_metrics`: classes and slices of each run's best epoch, on validation and on test.
        since: only nights from this date on.

    Raises:
        RegistryError: there is no home here, or no such run.
        DatabaseError: the database cannot be used.
    """
    with open_reader() as db:
        return read_history(db, pipeline, run=run, epochs=epochs, slices=slices, since=since)


def read_history(
    db: Database,
    pipeline: str,
    *,
    run: str | None = None,
    epochs: bool = False,
    slices: bool = False,
    since: date | str | None = None,
) -> pd.DataFrame:
    """The frame of `history`, from an open database."""
    detailed = epochs or slices or run is not None
    where = ["x.pipeline = :pipeline"]
    parameters: dict[str, Any] = {"pipeline": pipeline}
    if since is not None:
        where.append("x.night >= :since")
        # SQLite stores dates as text.
        parameters["since"] = str(since) if db.dialect == "sqlite" else date.fromisoformat(str(since))
    if run == "latest" or (run is None and detailed and since is None):
        run = _latest_run(db, pipeline)
    elif run is not None:
        _must_exist(db, pipeline, run)
    if detailed and run is not None:
        where.append("x.run_id = :run")
        parameters["run"] = run
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
            "ORDER BY x.night, x.split DESC, x.slice_name, x.slice_value"
        )
    elif detailed:
        query = f"SELECT x.* FROM epoch_results AS x WHERE {condition} ORDER BY x.night, x.epoch"
    else:
        query = f"SELECT x.* FROM nights AS x WHERE {condition} ORDER BY x.night"
    found = tidy(db.frame(query, parameters))
    if detailed:
        return found
    alarms = db.frame(
        "SELECT snapshot_id, alarm FROM champion_evaluations WHERE pipeline = :pipeline AND role = 'champion' "
        "AND alarm IS NOT NULL ORDER BY evaluated_at",
        {"pipeline": pipeline},
    )
    return found.assign(
        break_before=_breaks(db, pipeline, found["run_id"]),
        later_failure=later_failures(db, found),
        alarm=found["snapshot_id"].map(dict(alarms.itertuples(index=False))).astype(object),
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


def _breaks(db: Database, pipeline: str, run_ids: Iterable[str]) -> pd.Series[Any]:
    """The break before each of `run_ids`, computed over all scored nights of the pipeline."""
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
    found_breaks = dict(zip(nights["run_id"], breaks(scored), strict=True))
    return pd.Series([found_breaks.get(run_id) for run_id in run_ids], dtype=object)


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


def _must_exist(db: Database, pipeline: str, run: str) -> None:
    query = "SELECT run_id FROM nightly_runs WHERE run_id = :run AND pipeline = :pipeline"
    if db.frame(query, {"run": run, "pipeline": pipeline}).empty:
        raise RegistryError(
            f"pipeline {pipeline} has no run {run}",
            next_step=f"choose a run_id from `nightgate history {pipeline} --format csv`",
        )
