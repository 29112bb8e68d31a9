"""Freezes: nights of a frozen pipeline still run, but their candidates are held instead of promoted.

A rollback freezes its pipeline, because tomorrow's candidate has seen the same rows as the bad champion. Manual
promotions stay possible.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.gate_schema import Freeze
from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.errors import RegistryError
from nightgate.registry.versions import require_pipeline
from nightgate.runs.lifecycle import lock_pipeline


@dataclass(frozen=True)
class FreezeRow:
    """A freeze. As text it is a reason to hold: `frozen since 2026-03-02 08:00 UTC by ada: ...`."""

    pipeline: str
    frozen_at: datetime
    frozen_by: str
    reason: str

    def __str__(self) -> str:
        return f"frozen since {self.frozen_at:%Y-%m-%d %H:%M} UTC by {self.frozen_by}: {self.reason}"

    @property
    def remedy(self) -> str:
        return f"to let runs promote again: nightgate unfreeze {self.pipeline} --reason TEXT"


def frozen(db: Database, pipeline_name: str) -> FreezeRow | None:
    """The pipeline's current freeze, if it is frozen."""
    query = "SELECT pipeline, frozen_at, frozen_by, reason FROM freezes WHERE pipeline = :pipeline AND ended_at IS NULL"
    found = db.read(lambda session: session.execute(selecting(query, {"pipeline": pipeline_name})).one_or_none())
    return FreezeRow(*found) if found else None


def freeze(db: Database, pipeline_name: str, *, by: str, reason: str) -> FreezeRow:
    """Hold all candidates of the pipeline until `unfreeze`.

    Raises:
        RegistryError: it is frozen already, the pipeline is unknown, or `by` or `reason` is blank.
    """
    by, reason = require_reason(by, reason)
    require_pipeline(db, pipeline_name)
    freeze_id = uuid.uuid4().hex

    def work(session: Session) -> FreezeRow:
        lock_pipeline(session, pipeline_name)
        known = _open(session, pipeline_name)
        if known is not None and known.freeze_id != freeze_id:  # else an earlier try was committed
            row = _row(known)
            raise RegistryError(f"{pipeline_name} is {row}", next_step=row.remedy)
        return _row(known or begin(session, pipeline_name, datetime.now(UTC), by, reason, freeze_id))

    return db.write(work)


def unfreeze(db: Database, pipeline_name: str, *, by: str, reason: str) -> FreezeRow:
    """End the pipeline's freeze; returns it.

    Raises:
        RegistryError: it is not frozen, the pipeline is unknown, or `by` or `reason` is blank.
    """
    by, reason = require_reason(by, reason)
    require_pipeline(db, pipeline_name)
    moment = datetime.now(UTC)

    def work(session: Session) -> FreezeRow:
        lock_pipeline(session, pipeline_name)
        found = _open(session, pipeline_name)
        if found is None:
            ours = sa.select(Freeze).where(Freeze.pipeline == pipeline_name, Freeze.ended_at == moment)
            found = session.scalars(ours.where(Freeze.ended_by == by)).first()
            if found is None:
                raise RegistryError(
                    f"{pipeline_name} is not frozen", next_step=f"look at `nightgate history {pipeline_name}`"
                )
        found.ended_at, found.ended_by, found.end_reason = moment, by, reason
        return _row(found)

    return db.write(work)


def require_reason(by: str, reason: str) -> tuple[str, str]:
    """The author of a manual decision and the reason for it, stripped.

    Raises:
        RegistryError: one of them is blank.
    """
    if not reason.strip():
        raise RegistryError("the reason is blank", next_step="give one with --reason TEXT: it is stored")
    if not by.strip():
        raise RegistryError("the name of who decides is blank", next_step="give one: it is stored")
    return by.strip(), reason.strip()


# --- inside a transaction ---


def current(session: Session, pipeline_name: str) -> FreezeRow | None:
    """The pipeline's current freeze, if it is frozen."""
    found = _open(session, pipeline_name)
    return _row(found) if found is not None else None


def begin(
    session: Session, pipeline_name: str, moment: datetime, by: str, reason: str, freeze_id: str | None = None
) -> Freeze:
    """Freeze the pipeline unless it is frozen; returns the open freeze. The caller holds `lock_pipeline`."""
    known = _open(session, pipeline_name)
    if known is not None:
        return known
    new = Freeze(
        freeze_id=freeze_id or uuid.uuid4().hex,
        pipeline=pipeline_name,
        frozen_at=moment,
        frozen_by=by,
        reason=reason,
    )
    session.add(new)
    return new


def _open(session: Session, pipeline_name: str) -> Freeze | None:
    query = sa.select(Freeze).where(Freeze.pipeline == pipeline_name, Freeze.ended_at.is_(None))
    return session.scalars(query).one_or_none()


def _row(found: Freeze) -> FreezeRow:
    return FreezeRow(found.pipeline, found.frozen_at, found.frozen_by, found.reason)
