"""Metrics as data frames, for `nightgate history`, `champion` and `versions`, and for `nightgate.history` in Python.

    import nightgate
    nights = nightgate.history("sample")                        # one row per night
    epochs = nightgate.history("sample", epochs=True)           # the last night's epochs

Each query is a plain SELECT on the views, which any SQL client can query without Nightgate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import pandas as pd
import sqlalchemy as sa

from nightgate.database.column_types import UtcTime, as_text
from nightgate.database.label_meanings import label_meanings
from nightgate.database.refresh_schema import Refresh
from nightgate.database.schema import METADATA, Run
from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.home import home_for_reading
from nightgate.metrics.comparability import ScoredNight, breaks

_PUBLISHED = ["training_loss", "epoch", "step", "validation_loss", "accuracy", "f1", "precision", "recall"]


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
    with Database.open(home_for_reading(), any_home=True) as db:
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
    with Database.open(home_for_reading(), any_home=True) as db:
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


def champion(pipeline: str, at: datetime | None = None) -> pd.DataFrame:
    """The current champion, or that at the instant `at` (aware): one row, or none without a champion."""
    with Database.open(home_for_reading(), any_home=True) as db:
        moment = "c.valid_to IS NULL"
        parameters: dict[str, Any] = {"pipeline": pipeline}
        if at is not None:
            assert at.tzinfo is not None, f"{at} has no timezone"
            instant = at.astimezone(UTC)
            parameters["at"] = instant if db.dialect == "postgresql" else as_text(instant)
            moment = "c.valid_from <= :at AND (c.valid_to > :at OR c.valid_to IS NULL)"
        query = (
            "SELECT v.*, c.valid_from, c.valid_to, c.promoted_by, c.reason FROM champion_timeline AS c "
            "JOIN model_versions AS v ON v.pipeline = c.pipeline AND v.version = c.model_version "
            f"WHERE c.pipeline = :pipeline AND {moment}"
        )
        return tidy(db.frame(query, parameters))


def versions(pipeline: str) -> pd.DataFrame:
    """Every version of the pipeline, oldest first."""
    with Database.open(home_for_reading(), any_home=True) as db:
        query = "SELECT * FROM model_versions WHERE pipeline = :pipeline ORDER BY version"
        return tidy(db.frame(query, {"pipeline": pipeline}))


def evaluations(pipeline: str, snapshot_id: str) -> pd.DataFrame:
    """How champion and anchor did on the rows of a snapshot that came since they were chosen; the champion first."""
    with Database.open(home_for_reading(), any_home=True) as db:
        where = "pipeline = :pipeline AND snapshot_id = :snapshot_id ORDER BY role DESC, model_version"
        query = f"SELECT * FROM champion_evaluations WHERE {where}"
        return tidy(db.frame(query, {"pipeline": pipeline, "snapshot_id": snapshot_id}))


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
    with Database.open(home_for_reading(), any_home=True) as db:
        frame = db.frame(f"SELECT * FROM quarantined_rows {where} {order}", parameters)
        by_reason = "GROUP BY reason ORDER BY COUNT(*) DESC, reason"
        counts = db.frame(f"SELECT reason, COUNT(*) FROM quarantined_rows {where} {by_reason}", parameters)
    return tidy(frame), {str(name): int(count) for name, count in counts.itertuples(index=False)}


def pipelines() -> list[str]:
    """Names of the pipelines that have runs."""
    with Database.open(home_for_reading(), any_home=True) as db:
        return list(
            db.read(
                lambda session: session.scalars(sa.union(sa.select(Run.pipeline), sa.select(Refresh.pipeline))).all()
            )
        )


def published_rows(rows: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the epoch table that is published with fine-tuned models: four decimals, `n/a` for no value.

    Args:
        rows: rows of the view `epoch_results`.
    """
    found = rows[_PUBLISHED].itertuples(index=False)
    cells = [[_cell(column, value) for column, value in zip(_PUBLISHED, values, strict=True)] for values in found]
    return [column.replace("_", " ").title() for column in _PUBLISHED], cells


def published_table(rows: pd.DataFrame) -> str:
    """The table of `published_rows` in Markdown."""
    return markdown_table(*published_rows(rows))


def own_metrics(db: Database, run_id: str) -> dict[str, dict[str, float | None]]:
    """Values of `training.metrics`: by epoch ('1') on validation, then by 'test', which has the best epoch alone."""
    query = (
        "SELECT m.epoch, m.split, m.metric, m.value FROM epoch_metrics AS m "
        "JOIN epoch_results AS e ON e.run_id = m.run_id AND e.epoch = m.epoch "
        "WHERE m.run_id = :run AND (m.split = 'test' OR m.attempt = e.attempt) "
        "ORDER BY m.split DESC, m.epoch, m.attempt, m.metric"
    )
    found: dict[str, dict[str, float | None]] = {}
    for epoch, split, metric, value in db.frame(query, {"run": run_id}).itertuples(index=False):
        place = "test" if split == "test" else str(epoch)
        found.setdefault(place, {})[metric] = None if pd.isna(value) else float(value)
    return found


def own_rows(values: Mapping[str, Mapping[str, float | None]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of `own_metrics`."""
    names = list(dict.fromkeys(name for row in values.values() for name in row))
    cells = [[place, *(_cell("", row.get(name)) for name in names)] for place, row in values.items()]
    return ["epoch", *names], cells


def own_tables(run_ids: Iterable[str]) -> list[str]:
    """The table of `own_rows` in Markdown, of each run that has own metrics."""
    with Database.open(home_for_reading(), any_home=True) as db:
        found = [own_metrics(db, run_id) for run_id in run_ids]
    return [markdown_table(*own_rows(values)) for values in found if values]


def markdown_table(header: list[str], cells: list[list[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(':-:' for _ in header)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)])


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with the same types from both engines: aware times, `date` nights, booleans and nullable integers."""
    kinds = {column.name: column.type for table in METADATA.tables.values() for column in table.columns}
    kinds |= dict.fromkeys(("promoted_at", "ended_at"), UtcTime())
    kinds |= dict.fromkeys(("attempts", "model_version"), sa.Integer())
    for name in frame.columns:
        kind = kinds.get(name)
        if isinstance(kind, UtcTime):
            frame[name] = pd.to_datetime(frame[name], utc=True, format="ISO8601")
        elif isinstance(kind, sa.Date):
            values = frame[name].astype(object).where(frame[name].notna(), None)
            nights = [date.fromisoformat(value) if isinstance(value, str) else value for value in values]
            frame[name] = pd.Series(nights, index=frame.index, dtype=object)
        elif isinstance(kind, sa.Boolean):
            frame[name] = frame[name].astype(bool)
        elif isinstance(kind, sa.Integer):
            frame[name] = frame[name].astype("Int64")
    return frame


def _cell(column: str, value: Any) -> str:
    if value is None or pd.isna(value):
        return "n/a"
    if column == "step":
        return str(int(value))
    return f"{float(value):.1f}" if column == "epoch" else f"{float(value):.4f}"


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
