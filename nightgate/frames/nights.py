"""Nights, epochs and slices as frames, for `nightgate history` and for `nightgate.history` in Python.

    import nightgate
    nights = nightgate.history("sample")                        # one row per night
    epochs = nightgate.epochs("sample")                         # the last night's epochs

Each query is a plain SELECT on the views, which any SQL client can query without Nightgate.
"""

from __future__ import annotations

import json
from datetime import date, datetime
from functools import cache
from typing import Any

import pandas as pd

from nightgate.database.transactions import Database
from nightgate.errors import ConfigurationError
from nightgate.frames.changes import read_changes
from nightgate.frames.reader import Day, chosen, open_reader, records, select
from nightgate.label_meaning import LabelMeaning
from nightgate.metrics.comparability import Break, ScoredNight, breaks


def history(
    pipeline: str | None = None,
    *,
    run: str | None = None,
    epochs: bool = False,
    slices: bool = False,
    changes: bool = False,
    since: Day | None = None,
    until: Day | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """One row per night: the run that counts, the oldest first. `epochs`, `slices` and `changes` give those instead.

    The columns are those of the view `nights`, and six more, missing where there is nothing to say: `break_before`, why
    scores from that night on are not comparable with earlier ones, with the version that was scored on both sides and
    its F1 there (`bridge_version`, `bridge_before`, `bridge_after`); `later_failure`, a later try of the night that
    broke and does not count; `alarm`, those of the champion's evaluation. `night` is a `datetime.date`, times are aware
    (UTC), counts are `Int64`, scores and seconds `float64`, the rest is text.

    Args:
        pipeline: name; None: all pipelines.
        run: a run id, or "latest"; gives its epochs unless `slices` or `changes` is set.
        epochs: as `nightgate.epochs`.
        slices: as `nightgate.slices`.
        changes: as `nightgate.changes`.
        since: first night, a date or text such as 2026-01-05.
        until: last night.
        limit: the newest nights, so many of each pipeline.

    Raises:
        RegistryError: there is no home here.
        ConfigurationError: there is no such run, or an argument is wrong.
        DatabaseError: the database cannot be used.
    """
    which: dict[str, Any] = {"run": run, "since": since, "until": until, "limit": limit}
    with open_reader() as db:
        return read_history(db, pipeline, epochs=epochs, slices=slices, changes=changes, **which)


def epochs(
    pipeline: str | None = None,
    *,
    run: str | None = None,
    since: Day | None = None,
    until: Day | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """One row per epoch, of the attempt that counts: losses, scores on the validation rows, speed (`epoch_results`).

    `epoch`, `step`, `attempt` and `support` are `Int64`, losses and scores `float64`, `recorded_at` is aware (UTC).

    Args:
        run: a run id, or "latest": the newest night of each pipeline that has epochs, as without any of these four.
        pipeline, since, until, limit: as for `history`, which says what is raised too.
    """
    with open_reader() as db:
        return read_history(db, pipeline, epochs=True, run=run, since=since, until=until, limit=limit)


def slices(
    pipeline: str | None = None,
    *,
    run: str | None = None,
    since: Day | None = None,
    until: Day | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """One row per class and slice of each run's best epoch, on the validation rows and on the test rows
    (`slice_results`); classes are slices named `label`. Of a run without a best epoch yet, its last one.

    `support` is `Int64`, `accuracy`, `f1`, `precision` and `recall` are `float64`, `split` is "validation" or "test".
    The arguments are those of `epochs`.
    """
    with open_reader() as db:
        return read_history(db, pipeline, slices=True, run=run, since=since, until=until, limit=limit)


def read_history(
    db: Database,
    pipeline: str | None = None,
    *,
    run: str | None = None,
    epochs: bool = False,
    slices: bool = False,
    changes: bool = False,
    since: Day | None = None,
    until: Day | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """The frame of `history`, from an open database."""
    which: dict[str, Any] = {"run": run, "since": since, "until": until, "limit": limit}
    if epochs + slices + changes > 1:
        raise ConfigurationError(
            "epochs, slices and changes are one table each", next_step="ask for one of them at a time"
        )
    if changes:
        return read_changes(db, pipeline, **which)
    if epochs or slices or run is not None:
        where, given = chosen(db, pipeline, **which, having="epoch_results")
        return _slices(db, where, given) if slices else _epochs(db, where, given)
    where, given = chosen(db, pipeline, **which, details=False)
    nights = select(db, f"SELECT x.* FROM nights AS x WHERE {where} ORDER BY x.pipeline, x.night", given, view="nights")
    of_one = "AND pipeline = :pipeline " if pipeline else ""
    alarms = db.frame(
        "SELECT pipeline, snapshot_id, alarm FROM champion_evaluations WHERE role = 'champion' AND alarm IS NOT NULL "
        f"{of_one}ORDER BY evaluated_at",
        {"pipeline": pipeline} if pipeline else {},
    )
    of_snapshot = {(name, snapshot): alarm for name, snapshot, alarm in alarms.itertuples(index=False)}
    alarm = [of_snapshot.get(key) for key in zip(nights["pipeline"], nights["snapshot_id"], strict=True)]
    return nights.assign(
        **_breaks(db, pipeline, nights["run_id"]),
        later_failure=later_failures(db, nights),
        alarm=pd.Series(alarm, index=nights.index, dtype=object),
    )


def _epochs(db: Database, where: str, given: dict[str, Any]) -> pd.DataFrame:
    return select(
        db, f"SELECT x.* FROM epoch_results AS x WHERE {where} ORDER BY x.pipeline, x.night, x.run_id, x.epoch", given
    )


def _slices(db: Database, where: str, given: dict[str, Any]) -> pd.DataFrame:
    unfinished = (
        "x.epoch = (SELECT MAX(e.epoch) FROM epoch_results AS e WHERE e.run_id = x.run_id) "
        "AND EXISTS (SELECT 1 FROM nightly_runs AS r WHERE r.run_id = x.run_id AND r.best_epoch IS NULL)"
    )
    return select(
        db,
        f"SELECT x.* FROM slice_results AS x WHERE {where} AND (x.is_best OR {unfinished}) "
        "ORDER BY x.pipeline, x.night, x.run_id, x.split DESC, x.slice_name, x.slice_value",
        given,
    )


def later_failures(db: Database, nights: pd.DataFrame) -> pd.Series[Any]:
    """For each of these runs (pipeline, night, started_at), a later try of its night that failed or was cancelled."""
    names = sorted(set(nights["pipeline"]))
    if not names:
        return pd.Series(dtype=object)
    given = {"first": nights["night"].min(), "last": nights["night"].max()}
    of_one = "AND pipeline = :pipeline " if len(names) == 1 else ""
    tries = select(
        db,
        "SELECT pipeline, night, started_at, run_id, status, reason FROM nightly_runs WHERE night >= :first "
        f"AND night <= :last AND status IN ('failed', 'cancelled') AND NOT dry_run {of_one}ORDER BY started_at",
        given | ({"pipeline": names[0]} if of_one else {}),
    )
    newest = {(row.pipeline, row.night): row for row in tries.itertuples(index=False)}

    def described(pipeline: str, night: date, started_at: datetime) -> str | None:
        later: Any = newest.get((pipeline, night))
        if later is None or later.started_at <= started_at:
            return None
        ended = "failed" if later.status == "failed" else "was cancelled"
        return f"a later try, {later.run_id}, {ended}: {later.reason}"

    shown = zip(nights["pipeline"], nights["night"], nights["started_at"], strict=True)
    return pd.Series([described(*row) for row in shown], index=nights.index, dtype=object)


def why_no_epochs(pipeline: str | None, run: str | None, since: Day | None = None, until: Day | None = None) -> str:
    """Status, reason and next step of a run without epochs; '' where there is no such run or it has some.

    Args:
        run: a run id, or "latest" or None for the newest night's run.
    """
    without = "NOT EXISTS (SELECT e.run_id FROM epoch_results AS e WHERE e.run_id = x.run_id)"
    with open_reader() as db:
        where, given = chosen(db, pipeline, run or "latest", since, until)
        query = f"SELECT run_id, night, status, reason, next_step FROM nightly_runs AS x WHERE {where} AND {without}"
        rows = select(db, query, given).to_dict("records")
    if not rows:
        return ""
    [row] = rows
    reason = f": {row['reason']}" if pd.notna(row["reason"]) else ""
    next_step = f"\n  next: {row['next_step']}" if pd.notna(row["next_step"]) else ""
    return f"run {row['run_id']}, night {row['night']}, has no such rows: it is {row['status']}{reason}{next_step}"


def _breaks(db: Database, pipeline: str | None, run_ids: pd.Series[Any]) -> dict[str, pd.Series[Any]]:
    """Columns with the break before each of `run_ids`, computed over all scored nights of their pipelines."""
    where = "x.pipeline = :pipeline" if pipeline else "1 = 1"
    given = {"pipeline": pipeline} if pipeline else {}
    nights = select(
        db,
        "SELECT x.pipeline, x.night, x.run_id, x.config_hash, x.metric_key, x.test_version, x.average, "
        "x.model_version, x.test_f1, x.champion_version, x.champion_f1, d.label_names, d.classes "
        "FROM nights AS x JOIN run_documents AS d ON d.run_id = x.run_id "
        f"WHERE {where} AND x.test_f1 IS NOT NULL ORDER BY x.pipeline, x.night",
        given,
    )
    configured = _configurations(db, where, given)
    parsed = cache(json.loads)
    by_run: dict[str, Break | None] = {}
    for _, of_pipeline in nights.groupby("pipeline", sort=False):
        scored = []
        for row in records(of_pipeline):
            _, name, config_hash = (row.pop(key) for key in ("run_id", "pipeline", "config_hash"))
            names, classes = parsed(row.pop("label_names")), row.pop("classes")
            config = configured[name, config_hash]
            meaning = LabelMeaning.of(config["data"], parsed(classes) if classes else ())
            window = {key: config["gate"][key] for key in ("test_window", "min_test_rows")}
            scored.append(ScoredNight(label_names=tuple(names), meaning=meaning, **window, **row))
        by_run.update(zip(of_pipeline["run_id"], breaks(scored), strict=True))
    found = [by_run.get(run_id) for run_id in run_ids]
    bridges = [one and one.bridge for one in found]
    return {
        "break_before": pd.Series([one and str(one) for one in found], dtype=object),
        "bridge_version": pd.Series([one and one.version for one in bridges], dtype="Int64"),
        "bridge_before": pd.Series([one and one.before for one in bridges], dtype=float),
        "bridge_after": pd.Series([one and one.after for one in bridges], dtype=float),
    }


def _configurations(db: Database, where: str, given: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """By pipeline and hash: a configuration has thousands of characters, and most nights share one."""
    one_each = f"SELECT MIN(x.run_id) FROM run_documents AS x WHERE {where} GROUP BY x.pipeline, x.config_hash"
    rows = db.frame(f"SELECT pipeline, config_hash, config FROM run_documents WHERE run_id IN ({one_each})", given)
    return {(name, config_hash): json.loads(config) for name, config_hash, config in rows.itertuples(index=False)}
