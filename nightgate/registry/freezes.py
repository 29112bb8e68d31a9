"""A frozen pipeline: its nights go on and are held, and no run promotes itself until a person lets it.

A rollback freezes, because tomorrow's candidate has seen the rows that spoiled today's champion. People may promote all
the same.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.gate_schema import Freeze
from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.registry.versions import require_pipeline
from nightgate.runs.lifecycle import lock_pipeline


@dataclass(frozen=True)
class FreezeRow:
    """A freeze that lasts. As text it is a reason to hold: `frozen since 2026-03-02 08:00 UTC by ada: ...`."""

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
    """The freeze that holds the pipeline's runs now; None where none does."""
    return db.read(lambda session: current(session, pipeline_name))


def freeze(db: Database, pipeline_name: str, *, by: str, reason: str) -> FreezeRow:
    """Keep the pipeline's runs from promoting themselves until `unfreeze`.

    Raises:
        RegistryError: it is frozen already, the database knows no such pipeline, or a blank name or reason.
    """
    by, reason = said(by, reason)
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
    """Let the pipeline's runs promote themselves again; gives the freeze that this ends.

    Raises:
        RegistryError: it is not frozen, the database knows no such pipeline, or a blank name or reason.
    """
    by, reason = said(by, reason)
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


def said(by: str, reason: str) -> tuple[str, str]:
    """Who decides and why, without blanks around them.

    Raises:
        RegistryError: one of them is blank.
    """
    if not reason.strip():
        raise RegistryError(
            "the reason is blank", next_step="say why with --reason TEXT: it is stored with who and when"
        )
    if not by.strip():
        raise RegistryError("nobody is named for this decision", next_step="say who asks for it")
    return by.strip(), reason.strip()


# --- inside a transaction ---


def current(session: Session, pipeline_name: str) -> FreezeRow | None:
    """As `frozen`."""
    found = _open(session, pipeline_name)
    return _row(found) if found is not None else None


def begin(
    session: Session, pipeline_name: str, moment: datetime, by: str, reason: str, freeze_id: str | None = None
) -> Freeze:
    """The open freeze; begun if there is none. The caller holds `lock_pipeline`."""
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
