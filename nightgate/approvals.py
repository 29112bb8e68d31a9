"""A candidate that passed the gate and waits for a person: asked for, approved, rejected, or held when nobody came.

An approval is a promotion like any other: it names the champion that the candidate was compared with, and loses when
another one reigns by then.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate import anchors
from nightgate.database import Database
from nightgate.errors import PromotionLostError, RegistryError
from nightgate.reigns import promote
from nightgate.runs import end, fenced, lock_pipeline
from nightgate.schema import Approval, ModelVersion, Run

WAITS = "waits for approval: "
"""What the reason of a run that waits begins with; the gate's follows."""


@dataclass(frozen=True)
class Ended:
    """A run that was ended from outside, or by a person's word."""

    run_id: str
    pipeline: str
    night: date
    status: str
    reason: str
    prefect_flow_run_id: str | None


@dataclass(frozen=True)
class Waiting:
    """A candidate that waits for a person."""

    run_id: str
    pipeline: str
    night: date
    version: int
    test_f1: float | None
    champion_version: int | None
    champion_f1: float | None
    requested_at: datetime
    deadline: datetime
    reason: str
    """The gate's."""
    prefect_flow_run_id: str | None


def request(
    db: Database, run_id: str, attempt: int, *, expected: int | None, patience: timedelta, reason: str, next_step: str
) -> None:
    """Let the run wait for a person for as long as `patience`; `expected` is the champion that it was compared with."""
    moment = datetime.now(UTC)

    def work(session: Session) -> None:
        known = session.get(Approval, run_id)
        if known is not None and known.decision is None:
            return  # an earlier try was committed, and its answer was lost
        run = fenced(session, run_id, attempt)
        if known is not None:  # of an attempt before, which did not come to an end
            session.delete(known)
            session.flush()
        session.add(Approval(run_id=run_id, requested_at=moment, deadline=moment + patience, expected_version=expected))
        end(session, run, "waiting", moment, reason, next_step=next_step)

    db.write(work)


def open_approvals(db: Database, pipeline: str | None = None) -> list[Waiting]:
    """What waits for a person, the oldest first."""
    query = (
        sa.select(
            Run.run_id,
            Run.pipeline,
            Run.night,
            ModelVersion.version,
            Run.test_f1,
            Approval.expected_version,
            Run.champion_f1,
            Approval.requested_at,
            Approval.deadline,
            Run.reason,
            Run.prefect_flow_run_id,
        )
        .join(Run, Run.run_id == Approval.run_id)
        .join(ModelVersion, ModelVersion.run_id == Approval.run_id)
        .where(Approval.decision.is_(None), Run.status == "waiting")
        .order_by(Approval.requested_at)
    )
    if pipeline is not None:
        query = query.where(Run.pipeline == pipeline)
    return db.read(lambda session: [Waiting(*row) for row in session.execute(query)])


def find(db: Database, pipeline: str, run_id: str | None = None) -> Waiting:
    """What waits for a person in a pipeline.

    Raises:
        RegistryError: nothing does; what became of the run is told.
    """
    waiting = [one for one in open_approvals(db, pipeline) if run_id in {None, one.run_id}]
    if waiting:
        return waiting[-1]
    if run_id is None:
        raise RegistryError(
            f"nothing of {pipeline} waits for an approval",
            next_step=f"look at `nightgate history {pipeline}`",
        )
    row = db.read(
        lambda session: session.execute(
            sa.select(Run.status, Run.reason).where(Run.run_id == run_id, Run.pipeline == pipeline)
        ).first()
    )
    became = f"it is {row.status}: {row.reason}" if row else "there is no such run"
    raise RegistryError(
        f"run {run_id} of {pipeline} does not wait for an approval: {became}",
        next_step=f"look at `nightgate history {pipeline}`",
    )


def approve(db: Database, run_id: str, *, by: str, reason: str) -> Ended:
    """Promote the candidate. When it loses (another champion reigns by now), or its time has run out, it is held, and
    the reason says why.

    Raises:
        RegistryError: the run does not wait any more; a blank name or reason.
    """
    _check_words(by, reason)
    row = _waiting(db, run_id)
    if row.deadline <= datetime.now(UTC):
        return _hold_overdue(db, row)
    why = f"approved by {by}: {reason}"

    def said(session: Session) -> None:
        _record(session, run_id, "approved", by, reason)

    attempt = _attempt(db, run_id)
    try:
        promote(
            db,
            row.pipeline,
            row.version,
            expected=row.champion_version,
            run_id=run_id,
            attempt=attempt,
            by=by,
            reason=why,
            approval=said,
            moves_anchor=anchors.deserved(db, run_id, attempt),
        )
    except PromotionLostError as error:
        return _end(db, run_id, "approved", by, reason, f"{why}; not promoted all the same: {error.reason}")
    return Ended(run_id, row.pipeline, row.night, "promoted", why, row.prefect_flow_run_id)


def reject(db: Database, run_id: str, *, by: str, reason: str) -> Ended:
    """Hold the candidate.

    Raises:
        RegistryError: the run does not wait any more; a blank name or reason.
    """
    _check_words(by, reason)
    _waiting(db, run_id)
    return _end(db, run_id, "rejected", by, reason, f"rejected by {by}: {reason}")


def hold_overdue(db: Database, moment: datetime | None = None) -> list[Ended]:
    """Hold every candidate whose time has run out."""
    moment = moment or datetime.now(UTC)
    return [_hold_overdue(db, one) for one in open_approvals(db) if one.deadline <= moment]


def supersede_before(db: Database, run_id: str, attempt: int) -> None:
    """End what waits in the pipeline of a run that goes to work now. A backfill of an older night ends no newer one."""

    def work(session: Session) -> None:
        _lock_pipeline_of(session, run_id)  # a person may be deciding right now
        run = fenced(session, run_id, attempt)
        waiting = session.scalars(
            sa.select(Run)
            .where(Run.pipeline == run.pipeline, Run.status == "waiting", Run.run_id != run_id)
            .where(Run.data_until <= run.data_until)
            .with_for_update()
        )
        newer = f"the night of {run.night} began (run {run_id})"
        for one in waiting:
            _record(session, one.run_id, "superseded", None, newer)
            end(session, one, "superseded", datetime.now(UTC), f"nobody approved it before {newer}")

    db.write(work)


def _waiting(db: Database, run_id: str) -> Waiting:
    for one in open_approvals(db):
        if one.run_id == run_id:
            return one
    pipeline = db.read(lambda session: session.scalar(sa.select(Run.pipeline).where(Run.run_id == run_id)))
    return find(db, pipeline or "?", run_id)


def _attempt(db: Database, run_id: str) -> int:
    return db.read(lambda session: session.get_one(Run, run_id).attempt)


def _hold_overdue(db: Database, row: Waiting) -> Ended:
    reason = f"nobody approved it by {row.deadline:%Y-%m-%d %H:%M} UTC; {row.reason}"
    return _end(db, row.run_id, "timed_out", None, None, reason)


def _lock_pipeline_of(session: Session, run_id: str) -> int:
    """Nobody else decides about a run of this one's pipeline until the transaction ends. Gives the run's attempt."""
    pipeline, attempt = session.execute(sa.select(Run.pipeline, Run.attempt).where(Run.run_id == run_id)).one()
    lock_pipeline(session, pipeline)
    return int(attempt)


def _record(session: Session, run_id: str, decision: str, by: str | None, reason: str | None) -> None:
    approval = session.get_one(Approval, run_id)
    approval.decision, approval.decided_by, approval.reason = decision, by, reason
    approval.decided_at = datetime.now(UTC)


def _end(db: Database, run_id: str, decision: str, by: str | None, said: str | None, reason: str) -> Ended:
    def work(session: Session) -> Ended:
        attempt = _lock_pipeline_of(session, run_id)
        run = fenced(session, run_id, attempt, status="waiting")
        _record(session, run_id, decision, by, said)
        by_hand = f"nightgate promote {run.pipeline} VERSION --reason TEXT"
        step = f"if it should reign all the same: {by_hand}"
        end(session, run, "held", datetime.now(UTC), reason, next_step=step)
        return Ended(run_id, run.pipeline, run.night, "held", reason, run.prefect_flow_run_id)

    return db.write(work)


def _check_words(by: str, reason: str) -> None:
    if not by.strip():
        raise RegistryError("nobody is named for this decision", next_step="say who decides")
    if not reason.strip():
        raise RegistryError("the reason is blank", next_step="say why: it is stored with who and when")
