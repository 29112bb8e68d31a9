"""What the labels of past runs mean, from their stored configurations and snapshots."""

from __future__ import annotations

from datetime import date

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.schema import ModelVersion, Run, Snapshot
from nightgate.label_meaning import LabelMeaning


def label_meanings(session: Session, *where: sa.ColumnElement[bool]) -> dict[str, LabelMeaning]:
    """By run id, of the runs that meet the conditions, oldest first."""
    query = (
        sa.select(Run.run_id, Run.config["data"], Snapshot.manifest["rules"]["classes"])
        .outerjoin(Snapshot, (Snapshot.pipeline == Run.pipeline) & (Snapshot.snapshot_id == Run.snapshot_id))
        .where(*where)
        .order_by(Run.started_at, Run.run_id)
    )
    return {run_id: LabelMeaning.of(data, classes) for run_id, data, classes in session.execute(query)}


def meaning_of_run(session: Session, run_id: str) -> LabelMeaning:
    return label_meanings(session, Run.run_id == run_id)[run_id]


def meaning_of_version(session: Session, pipeline: str, version: int) -> LabelMeaning:
    of_version = sa.select(ModelVersion.run_id).filter_by(pipeline=pipeline, version=version)
    return meaning_of_run(session, session.scalars(of_version).one())


def meaning_on(session: Session, pipeline: str, night: date) -> LabelMeaning | None:
    """Of the first run of that night that got as far as its snapshot; None: there is none."""
    found = label_meanings(session, Run.pipeline == pipeline, Run.night == night, Run.snapshot_id.is_not(None))
    return next(iter(found.values()), None)
