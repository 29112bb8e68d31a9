"""Champions and versions as frames, and how champions did on rows that came since they were chosen."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pandas as pd

from nightgate.database.column_types import as_text
from nightgate.database.transactions import Database
from nightgate.frames.reader import open_reader, tidy


def champion(pipeline: str, at: datetime | None = None) -> pd.DataFrame:
    """The current champion, or that at the instant `at` (aware): one row, or none without a champion."""
    with open_reader() as db:
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


def read_timeline(db: Database, pipeline: str | None = None) -> pd.DataFrame:
    """The champions of a pipeline, or of all, oldest first: the view `champion_timeline`."""
    where, given = ("WHERE pipeline = :pipeline", {"pipeline": pipeline}) if pipeline else ("", {})
    return tidy(db.frame(f"SELECT * FROM champion_timeline {where} ORDER BY pipeline, valid_from", given))


def versions(pipeline: str) -> pd.DataFrame:
    """Every version of the pipeline, oldest first."""
    with open_reader() as db:
        query = "SELECT * FROM model_versions WHERE pipeline = :pipeline ORDER BY version"
        return tidy(db.frame(query, {"pipeline": pipeline}))


def evaluations(pipeline: str, snapshot_id: str) -> pd.DataFrame:
    """How champion and anchor did on the rows of a snapshot that came since they were chosen; the champion first."""
    with open_reader() as db:
        where = "pipeline = :pipeline AND snapshot_id = :snapshot_id ORDER BY role DESC, model_version"
        query = f"SELECT * FROM champion_evaluations WHERE {where}"
        return tidy(db.frame(query, {"pipeline": pipeline, "snapshot_id": snapshot_id}))
