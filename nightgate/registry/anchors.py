"""The anchor: the version that no candidate may fall behind, scored anew every night like the champion.

It moves with a promotion, in the same transaction, and only to a version that is significantly better than it. So
champions that are each a little worse than the one before do not add up to a decline.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.gate_schema import Anchor, GateSide
from nightgate.database.schema import GateCheck, ModelVersion, Promotion, Run
from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.runs.lifecycle import lock_pipeline

CHECK = "anchor"
"""Name of the gate's check, whose interval is of candidate minus anchor."""
SIDE = "anchor"
"""Name of its row among the sides of the stored evidence."""


def deserved(db: Database, run_id: str, attempt: int) -> bool:
    """Whether the gate found the attempt's candidate significantly better than the anchor, as its check says."""
    query = (
        sa.select(sa.func.count())
        .select_from(GateCheck)
        .where(GateCheck.run_id == run_id, GateCheck.attempt == attempt)
        .where(GateCheck.check_name == CHECK, GateCheck.slice_name == "", GateCheck.ci_low > 0)
    )
    return bool(db.read(lambda session: session.scalar(query)))


def judged_against(db: Database, run_id: str, attempt: int) -> int | None:
    """The anchor that the attempt's candidate was compared with. None: there was none, or no evidence is stored."""
    row = db.read(lambda session: session.get(GateSide, (run_id, attempt, SIDE)))
    return row.version if row else None


def move(db: Database, pipeline_name: str, version: int, *, by: str, reason: str) -> None:
    """Make the champion the anchor, where a person finds the anchor of no use any more.

    Raises:
        RegistryError: another version reigns by now.
    """

    def work(session: Session) -> None:
        lock_pipeline(session, pipeline_name)
        reigns = sa.select(Promotion.version).where(Promotion.pipeline == pipeline_name, Promotion.valid_to.is_(None))
        champion = session.scalars(reigns).one_or_none()
        if champion != version:
            raise RegistryError(
                f"version {version} is not the champion of {pipeline_name} any more, that is version {champion}",
                next_step=f"see `nightgate champion {pipeline_name}`, then give the command again",
            )
        anchor = _open(session, pipeline_name)
        _move(session, anchor, pipeline_name, version, datetime.now(UTC), by, reason, None)

    db.write(work)


# --- inside a transaction ---


def open_version(session: Session, pipeline_name: str) -> int | None:
    """The version that is the anchor now. None: there is none."""
    anchor = _open(session, pipeline_name)
    return anchor.version if anchor else None


def follow(
    session: Session,
    champion: ModelVersion,
    moment: datetime,
    *,
    asked: bool,
    by: str,
    reason: str,
    run_id: str | None,
) -> None:
    """Move the anchor to the new champion if that is `asked`, or if there is none that it could be compared with: none
    at all, or one that knows other labels.
    """
    name, version = champion.pipeline, champion.version
    anchor = _open(session, name)
    if asked or anchor is None or _labels(session, name, anchor.version) != _labels(session, name, version):
        _move(session, anchor, name, version, moment, by, reason, run_id)


def leave(session: Session, version: int, champion: ModelVersion, moment: datetime, *, by: str, reason: str) -> None:
    """Undo what a version that was rolled back did to the anchor: the one before is the anchor again, or the new
    `champion` where that one is quarantined or without files.
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
    _move(session, anchor, champion.pipeline, before or champion.version, moment, by, reason, None)


def _move(
    session: Session,
    anchor: Anchor | None,
    pipeline_name: str,
    version: int,
    moment: datetime,
    by: str,
    reason: str,
    run_id: str | None,
) -> None:
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


def _labels(session: Session, pipeline_name: str, version: int) -> list[str]:
    """Label names that a version knows, in an order of their own."""
    query = (
        sa.select(Run.label_names)
        .join(ModelVersion, ModelVersion.run_id == Run.run_id)
        .where(ModelVersion.pipeline == pipeline_name, ModelVersion.version == version)
    )
    return sorted(session.scalars(query).one())
