"""What the labels of past runs mean, from their stored configurations and snapshots."""

from __future__ import annotations

from datetime import date
from typing import Any

from sqlalchemy.orm import Session

from nightgate.database.views import selecting
from nightgate.label_meaning import LabelMeaning


def label_meanings(session: Session, pipeline: str) -> dict[str, LabelMeaning]:
    """By run id, of every run of a pipeline, oldest first."""
    return _meanings(session, "pipeline = :pipeline", pipeline=pipeline)


def meaning_of_run(session: Session, run_id: str) -> LabelMeaning:
    return _meanings(session, "run_id = :run", run=run_id)[run_id]


def meanings_of_two(session: Session, one: str, other: str) -> tuple[LabelMeaning, LabelMeaning]:
    """Of two runs, in one query."""
    found = _meanings(session, "run_id IN (:one, :other)", one=one, other=other)
    return found[one], found[other]


def meaning_of_version(session: Session, pipeline: str, version: int) -> LabelMeaning:
    of_version = "SELECT v.run_id FROM model_versions AS v WHERE v.pipeline = :pipeline AND v.version = :version"
    [found] = _meanings(session, f"run_id = ({of_version})", pipeline=pipeline, version=version).values()
    return found


def meaning_on(session: Session, pipeline: str, night: date) -> LabelMeaning | None:
    """Of the first run of that night that got as far as its snapshot; None: there is none."""
    where = "pipeline = :pipeline AND night = :night AND snapshot_id IS NOT NULL"
    return next(iter(_meanings(session, where, pipeline=pipeline, night=night).values()), None)


def _meanings(session: Session, where: str, **parameters: Any) -> dict[str, LabelMeaning]:
    session.flush()
    query = f"SELECT run_id, config, classes FROM run_documents WHERE {where} ORDER BY started_at, run_id"
    found = session.execute(selecting(query, parameters))
    return {run_id: LabelMeaning.of(config["data"], classes) for run_id, config, classes in found}
