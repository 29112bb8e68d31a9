"""The anchor: the reference version to which every candidate must be non-inferior, scored beside the champion.

It moves in the transaction of a promotion, to a version that is significantly better than it: champions that are each a
little worse than the one before cannot add up to a decline. It also moves on request, where there is none or its labels
have another meaning, and back with a rollback.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.gate_schema import Anchor, GateCheck, GateSide
from nightgate.database.label_meanings import meaning_of_version
from nightgate.database.schema import ModelVersion
from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.registry.versions import open_promotion
from nightgate.runs.lifecycle import lock_pipeline

CHECK = "anchor"
"""The gate's check, whose interval is that of candidate minus anchor."""
SIDE = "anchor"
"""The anchor's row among the sides of the stored evidence."""


def was_beaten(db: Database, run_id: str, attempt: int) -> bool:
    """Whether the gate found the attempt's candidate significantly better than the anchor."""

    def work(session: Session) -> bool:
        side = session.get(GateSide, (run_id, attempt, SIDE))
        # Of an anchor that is the champion there is the check of that alone.
        check = "beats_champion" if side is not None and side.facts.get("is_champion") else CHECK
        query = (
            sa.select(sa.func.count())
            .select_from(GateCheck)
            .where(GateCheck.run_id == run_id, GateCheck.attempt == attempt)
            .where(GateCheck.check_name == check, GateCheck.slice_name == "", GateCheck.ci_low > 0)
        )
        return bool(session.scalar(query))

    return db.read(work)


def judged_against(db: Database, run_id: str, attempt: int) -> int | None:
    """The anchor that the attempt's candidate was compared with; None if there was none or no evidence is stored."""
    row = db.read(lambda session: session.get(GateSide, (run_id, attempt, SIDE)))
    return row.version if row else None


def move(db: Database, pipeline_name: str, version: int, *, by: str, reason: str) -> None:
    """Make the current champion the anchor, as a manual decision.

    Raises:
        RegistryError: `version` is no longer the champion.
    """

    def work(session: Session) -> None:
        lock_pipeline(session, pipeline_name)
        promotion = open_promotion(session, pipeline_name)
        champion = promotion.version if promotion else None
        if champion != version:
            raise RegistryError(
                f"version {version} is no longer the champion of {pipeline_name}: that is version {champion}",
                next_step=f"see `nightgate champion {pipeline_name}`, then run the command again",
            )
        _move(session, pipeline_name, version, datetime.now(UTC), by, reason)

    db.write(work)


# --- inside a transaction ---


def open_version(session: Session, pipeline_name: str) -> int | None:
    """The version that is the anchor now, if any."""
    anchor = _open(session, pipeline_name)
    return anchor.version if anchor else None


def update_after_promotion(
    session: Session,
    champion: ModelVersion,
    moment: datetime,
    *,
    asked: bool,
    by: str,
    reason: str,
    run_id: str | None = None,
) -> None:
    """Move the anchor to the new champion if `asked`, if there is none, or if its labels have another meaning."""
    name, version = champion.pipeline, champion.version
    anchor = open_version(session, name)
    theirs, ours = (meaning_of_version(session, name, number) for number in (anchor or version, version))
    if asked or anchor is None or theirs.change(ours):
        _move(session, name, version, moment, by, reason, run_id)


def restore_after_rollback(
    session: Session, version: int, champion: ModelVersion, moment: datetime, *, by: str, reason: str
) -> None:
    """Replace the anchor if it is the `version` that was rolled back.

    The previous anchor returns, or the new `champion` if every earlier anchor is quarantined or without files.
    """
    anchor = _open(session, champion.pipeline)
    if anchor is None or anchor.version != version:
        return
    before = session.scalars(
        sa.select(Anchor.version)
        .join(ModelVersion, (ModelVersion.pipeline == Anchor.pipeline) & (ModelVersion.version == Anchor.version))
        .where(Anchor.pipeline == champion.pipeline, Anchor.version != version, Anchor.valid_to <= anchor.valid_from)
        .where(ModelVersion.quarantined_at.is_(None), ModelVersion.files_removed_at.is_(None))
        .order_by(Anchor.valid_from.desc())
    ).first()
    _move(session, champion.pipeline, before or champion.version, moment, by, reason)


def _move(
    session: Session,
    pipeline_name: str,
    version: int,
    moment: datetime,
    by: str,
    reason: str,
    run_id: str | None = None,
) -> None:
    anchor = _open(session, pipeline_name)
    if anchor is not None:
        if anchor.version == version:
            return
        moment = max(moment, anchor.valid_from + timedelta(microseconds=1))
        anchor.valid_to = moment
        session.flush()  # closed before the next one opens: the index allows one at a time
    session.add(
        Anchor(
            anchor_id=uuid.uuid4().hex,
            pipeline=pipeline_name,
            version=version,
            run_id=run_id,
            moved_by=by,
            reason=reason,
            valid_from=moment,
        )
    )


def _open(session: Session, pipeline_name: str) -> Anchor | None:
    query = sa.select(Anchor).where(Anchor.pipeline == pipeline_name, Anchor.valid_to.is_(None))
    return session.scalars(query).one_or_none()
