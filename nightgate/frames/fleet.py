"""All pipelines at once: how each last night ended, its champion, and which need attention today.

    nightgate history        # a line per pipeline

Every function asks one query, however many pipelines there are, and jumps from pipeline to pipeline in the index of
nights. `CROSS JOIN` keeps SQLite's order of tables.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from itertools import pairwise
from statistics import median

import pandas as pd

from nightgate.database.transactions import Database
from nightgate.frames.reader import records, select

SCORES = 30
"""Nights whose F1 is in the frame."""
BROKEN = ("failed", "missed")
SILENT_GAPS, SILENT_DAYS = 3, 3
"""A pipeline is silent after so many of its usual gaps between nights, and more days than these."""

PIPELINES = """WITH RECURSIVE known(pipeline) AS (
    SELECT (SELECT r.pipeline FROM nightly_runs AS r ORDER BY r.pipeline LIMIT 1)
    UNION ALL
    SELECT (SELECT r.pipeline FROM nightly_runs AS r WHERE r.pipeline > k.pipeline ORDER BY r.pipeline LIMIT 1)
    FROM known AS k WHERE k.pipeline IS NOT NULL)"""
"""The pipelines that have runs, and NULL: 7 ms for 36,500 nights, of which `SELECT DISTINCT` reads all (60 ms)."""


def read_fleet(db: Database, today: date | None = None) -> pd.DataFrame:
    """A row per pipeline that has had a night, with that night's run and how its champion does.

    Columns: pipeline, night, run_id, status, reason, next_step, test_f1, f1_ci_low, f1_ci_high, champion_version,
    champion_since; `scores`, the F1 of the last nights, oldest first, None where there is none; `needs`, why it
    needs attention today, and `remedy`, the command for it; both are '' where it needs none.

    Args:
        today: the date in UTC unless given.
    """
    today = today or datetime.now(UTC).date()
    recent = recent_nights(db)
    last = recent[recent["place"] == 1].drop(columns=["place"]).reset_index(drop=True)
    scores: dict[str, list[float | None]] = {}
    for row in reversed(records(recent)):
        scores.setdefault(row["pipeline"], []).append(row["test_f1"])
    query = "SELECT pipeline, model_version, valid_from FROM champion_timeline WHERE valid_to IS NULL"
    names = {"model_version": "champion_version", "valid_from": "champion_since"}
    found = last.merge(select(db, query).rename(columns=names), on="pipeline", how="left")
    needs: dict[str, list[tuple[str, str]]] = {name: [] for name in found["pipeline"]}
    for name, nights in recent.groupby("pipeline")["night"]:
        if silent := _silent_days(list(nights), today):
            needs[str(name)].append((f"no night for {silent:,} days", "nightgate doctor"))
    for row in records(recent):
        if row["status"] == "waiting" or (row["place"] == 1 and row["status"] in BROKEN):
            needs[row["pipeline"]].append((f"night {row['night']} {row['status']}: {row['reason']}", row["next_step"]))
    for row in records(champion_evaluations(db)):
        if row["alarm"] and row["pipeline"] in needs:
            needs[row["pipeline"]].append((f"champion: {row['alarm']}", f"nightgate run {row['pipeline']}"))
    for row in records(open_freezes(db)):
        if row["pipeline"] in needs:
            why = f"frozen since {row['frozen_at']:%Y-%m-%d} by {row['frozen_by']}: {row['reason']}"
            needs[row["pipeline"]].append((why, f"nightgate unfreeze {row['pipeline']} --reason TEXT"))
    return found.assign(
        scores=pd.Series([scores[name] for name in found["pipeline"]], dtype=object),
        needs=["; ".join(why for why, _ in needs[name]) for name in found["pipeline"]],
        remedy=[next((remedy for _, remedy in needs[name] if remedy), "") for name in found["pipeline"]],
    )


def _silent_days(nights: list[date], today: date) -> int:
    """Days since the newest of these nights (newest first), 0 where that is not unusual for them."""
    usual = median([(newer - older).days for newer, older in pairwise(nights)] or [1])
    silent = (today - nights[0]).days
    return silent if silent > max(SILENT_DAYS, SILENT_GAPS * usual) else 0


def recent_nights(db: Database) -> pd.DataFrame:
    """The last SCORES nights of each pipeline, the newest first; `place` counts back from it."""
    query = f"""{PIPELINES}, oldest AS MATERIALIZED (
        SELECT k.pipeline, COALESCE(
            (SELECT x.night FROM nights AS x WHERE x.pipeline = k.pipeline ORDER BY x.night DESC LIMIT 1 OFFSET :skip),
            (SELECT x.night FROM nights AS x WHERE x.pipeline = k.pipeline ORDER BY x.night LIMIT 1)) AS night
        FROM known AS k)
        SELECT n.pipeline, n.night, n.run_id, n.status, n.reason, n.next_step, n.test_f1, n.f1_ci_low, n.f1_ci_high
        FROM oldest AS o CROSS JOIN nights AS n WHERE n.pipeline = o.pipeline AND n.night >= o.night
        ORDER BY n.pipeline, n.night DESC"""
    found = select(db, query, {"skip": SCORES - 1})
    return found.assign(place=found.groupby("pipeline").cumcount() + 1)


def last_nights(db: Database) -> pd.DataFrame:
    """The newest night of each pipeline that has ended."""
    query = f"""{PIPELINES}, newest AS MATERIALIZED (
        SELECT k.pipeline, (
            SELECT x.night FROM nights AS x WHERE x.pipeline = k.pipeline AND x.status NOT IN ('running', 'waiting')
            ORDER BY x.night DESC LIMIT 1) AS night
        FROM known AS k)
        SELECT n.pipeline, n.night, n.status, n.run_id, n.model_version, n.test_f1, n.f1_delta, n.started_at,
               n.finished_at, n.reason, n.next_step
        FROM newest AS o CROSS JOIN nights AS n WHERE n.pipeline = o.pipeline AND n.night = o.night
        ORDER BY n.pipeline"""
    return select(db, query)


def last_scheduled(db: Database) -> pd.DataFrame:
    """The instant of the last known night, missed or not, of each pipeline that runs on a schedule."""
    query = f"""{PIPELINES}
        SELECT k.pipeline, (
            SELECT r.scheduled_for FROM nightly_runs AS r
            WHERE r.pipeline = k.pipeline AND r.scheduled_for IS NOT NULL AND (r.status = 'missed' OR EXISTS (
                SELECT a.run_id FROM attempts AS a
                WHERE a.run_id = r.run_id AND a.attempt = 1 AND a.trigger = 'schedule'))
            ORDER BY r.night DESC LIMIT 1) AS scheduled_for
        FROM known AS k WHERE k.pipeline IS NOT NULL"""
    return select(db, query)


def champion_evaluations(db: Database) -> pd.DataFrame:
    """The newest evaluation of each current champion."""
    query = (
        "SELECT pipeline, model_version, rows, f1, f1_ci_low, f1_ci_high, alarm, rows_from, rows_to, reason "
        "FROM (SELECT e.*, ROW_NUMBER() OVER "
        "(PARTITION BY e.pipeline ORDER BY e.rows_to DESC, e.evaluated_at DESC) AS place "
        "FROM champion_evaluations AS e JOIN champion_timeline AS c ON c.pipeline = e.pipeline "
        "AND c.model_version = e.model_version AND c.valid_to IS NULL WHERE e.role = 'champion') AS newest "
        "WHERE place = 1 ORDER BY pipeline"
    )
    return select(db, query)


def open_freezes(db: Database) -> pd.DataFrame:
    return select(db, "SELECT pipeline, frozen_at, frozen_by, reason FROM freezes WHERE ended_at IS NULL")
