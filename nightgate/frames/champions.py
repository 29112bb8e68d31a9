"""Champions and versions as frames, and how champions did on rows that came since they were chosen."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pandas as pd

from nightgate.database.transactions import Database
from nightgate.frames.dates import moment_of
from nightgate.frames.reader import open_reader, select


def champion(pipeline: str, at: datetime | str | None = None) -> pd.DataFrame:
    """The current champion, or that at the instant `at`: one row, or none without a champion.

    It has the columns of `model_versions`, as `nightgate.versions`, and `valid_from`, `valid_to` (aware, UTC; NaT while
    it is champion), `promoted_by` and `reason` of its promotion.

    Args:
        at: a time, or text such as 2026-03-01T06:00; without a zone it is UTC.

    Raises:
        ConfigurationError: `at` is not a time.
    """
    given: dict[str, Any] = {"pipeline": pipeline}
    moment = "c.valid_to IS NULL"
    if at is not None:
        instant = moment_of(at) if isinstance(at, str) else pd.Timestamp(at).to_pydatetime()
        given["at"] = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
        moment = "c.valid_from <= :at AND (c.valid_to > :at OR c.valid_to IS NULL)"
    query = (
        "SELECT v.*, c.valid_from, c.valid_to, c.promoted_by, c.reason FROM champion_timeline AS c "
        "JOIN model_versions AS v ON v.pipeline = c.pipeline AND v.version = c.model_version "
        f"WHERE c.pipeline = :pipeline AND {moment}"
    )
    with open_reader() as db:
        return select(db, query, given)


def read_timeline(db: Database, pipeline: str | None = None) -> pd.DataFrame:
    """The champions of a pipeline, or of all, oldest first: the view `champion_timeline`."""
    where, given = ("WHERE pipeline = :pipeline", {"pipeline": pipeline}) if pipeline else ("", {})
    return select(db, f"SELECT * FROM champion_timeline {where} ORDER BY pipeline, valid_from", given)


def versions(pipeline: str) -> pd.DataFrame:
    """Every version of the pipeline, held ones too, the oldest first (`model_versions`).

    `version`, `best_epoch`, `test_rows`, `rows_trained` and `size_bytes` are `Int64`, F1 and its interval `float64`,
    times aware (UTC), `night` a `datetime.date`; `path` is relative to the home.
    """
    with open_reader() as db:
        query = "SELECT * FROM model_versions WHERE pipeline = :pipeline ORDER BY version"
        return select(db, query, {"pipeline": pipeline})


def evaluations(pipeline: str, snapshot_id: str) -> pd.DataFrame:
    """How champion and anchor did on the rows of a snapshot that came since they were chosen; the champion first."""
    with open_reader() as db:
        where = "pipeline = :pipeline AND snapshot_id = :snapshot_id ORDER BY role DESC, model_version"
        query = f"SELECT * FROM champion_evaluations WHERE {where}"
        return select(db, query, {"pipeline": pipeline, "snapshot_id": snapshot_id})
