"""A candidate that passed the gate and waits for a person: asked for, approved, rejected, or held when nobody came.

An approval is a promotion like any other: it names the champion and the anchor that the candidate was compared with,
and loses when one of them is another by then.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.schema import Approval, ModelVersion, Run
from nightgate.database.transactions import Database
from nightgate.errors import PromotionLostError, RegistryError
from nightgate.registry import anchors
from nightgate.registry.promotion import promote_candidate
from nightgate.runs.lifecycle import end, fenced, lock_pipeline, record_decided

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


def command(pipeline: str, run_id: str) -> str:
    """What decides about this candidate and no other: a newer one may wait by the time that it is given."""
    return f"nightgate approve {pipeline} --run {run_id} --reason TEXT (or reject)"


def find(db: Database, pipeline: str, run_id: str | None = None) -> Waiting:
    """What waits for a person in a pipeline; `run_id` None: the only one that does.

    Raises:
        RegistryError: nothing does, and what became of the run, or of the last that did, is told; or several do.
    """
    waiting = [one for one in open_approvals(db, pipeline) if run_id in {None, one.run_id}]
    if len(waiting) > 1:
        raise RegistryError(
            f"{len(waiting)} candidates of {pipeline} wait for an approval: "
            + ", ".join(f"version {one.version} (run {one.run_id}, night {one.night})" for one in waiting),
            next_step=f"say which: {command(pipeline, waiting[-1].run_id)}",
        )
    if not waiting:
        raise RegistryError(_why_none_waits(db, pipeline, run_id), next_step=f"look at `nightgate history {pipeline}`")
    return waiting[0]


def _why_none_waits(db: Database, pipeline: str, run_id: str | None) -> str:
    """What became of the run, or of the last one that a person was asked about."""
    query = (
        sa.select(Run.run_id, Run.status, Run.reason, ModelVersion.version, Approval.decided_at)
        .join(Approval, Approval.run_id == Run.run_id, isouter=True)
        .join(ModelVersion, ModelVersion.run_id == Run.run_id, isouter=True)
        .where(Run.pipeline == pipeline, Run.run_id == run_id if run_id else Approval.decided_at.is_not(None))
        .order_by(Approval.decided_at.desc())
        .limit(1)
    )
    row = db.read(lambda session: session.execute(query).first())
    became = f"it is {row.status}: {row.reason}" if row else "there is no such run"
    if row and row.decided_at is not None:
        became += f" ({row.decided_at:%Y-%m-%d %H:%M} UTC)"
    if run_id is not None:
        return f"run {run_id} of {pipeline} does not wait for an approval: {became}"
    last = f"; version {row.version}, the last that did (run {row.run_id}): {became}" if row else ""
    return f"nothing of {pipeline} waits for an approval{last}"


def approve(db: Database, run_id: str, *, by: str, reason: str) -> Ended:
    """Promote the candidate. When it loses (there is another champion or anchor by now), or its time has run out, it is
    held, and the reason says why.

    Raises:
        RegistryError: the run does not wait any more; a blank name or reason.
    """
    _check_words(by, reason)
    row = _waiting(db, run_id)
    if row.deadline <= datetime.now(UTC):
        return _hold_overdue(db, row)
    why = f"approved by {by}: {reason}"

    attempt = _attempt(db, run_id)
    try:
        promote_candidate(
            db,
            row.pipeline,
            row.version,
            expected=row.champion_version,
            expected_anchor=anchors.judged_against(db, run_id, attempt),
            run_id=run_id,
            attempt=attempt,
            by=by,
            reason=why,
            approved=reason,
            moves_anchor=anchors.deserved(db, run_id, attempt),
        )
    except PromotionLostError as error:
        lost = f"{why}; not promoted all the same: {error.reason}"
        return _end(db, row, "approved", by, reason, lost, error.next_step)
    return Ended(run_id, row.pipeline, row.night, "promoted", why, row.prefect_flow_run_id)


def reject(db: Database, run_id: str, *, by: str, reason: str) -> Ended:
    """Hold the candidate.

    Raises:
        RegistryError: the run does not wait any more; a blank name or reason.
    """
    _check_words(by, reason)
    return _end(db, _waiting(db, run_id), "rejected", by, reason, f"rejected by {by}: {reason}")


def hold_overdue(db: Database, moment: datetime | None = None) -> list[Ended]:
    """Hold every candidate whose time has run out."""
    moment = moment or datetime.now(UTC)
    held = []
    for one in open_approvals(db):
        if one.deadline <= moment:
            with suppress(RegistryError):  # somebody decided, or a newer night began, since it was read
                held.append(_hold_overdue(db, one))
    return held


def supersede_before(db: Database, run_id: str, attempt: int) -> list[str]:
    """End what waits in the pipeline of a run that goes to work now; gives the ids of the runs. A backfill of an older
    night ends no newer one.
    """

    def work(session: Session) -> list[str]:
        _lock_pipeline_of(session, run_id)  # a person may be deciding right now
        run = fenced(session, run_id, attempt)
        waiting = session.scalars(
            sa.select(Run)
            .where(Run.pipeline == run.pipeline, Run.status == "waiting", Run.run_id != run_id)
            .where(Run.data_until <= run.data_until)
            .with_for_update()
        ).all()
        newer = f"the night of {run.night} began (run {run_id})"
        for one in waiting:
            moment = datetime.now(UTC)
            record_decided(session, one.run_id, "superseded", None, newer, moment)
            end(session, one, "superseded", moment, f"nobody approved it before {newer}")
        return [one.run_id for one in waiting]

    return db.write(work)


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
    return _end(db, row, "timed_out", None, None, reason)


def _lock_pipeline_of(session: Session, run_id: str) -> int:
    """Nobody else decides about a run of this one's pipeline until the transaction ends. Gives the run's attempt."""
    pipeline, attempt = session.execute(sa.select(Run.pipeline, Run.attempt).where(Run.run_id == run_id)).one()
    lock_pipeline(session, pipeline)
    return int(attempt)


def _end(
    db: Database, row: Waiting, decision: str, by: str | None, said: str | None, reason: str, next_step: str = ""
) -> Ended:
    by_hand = f"if it should reign all the same: nightgate promote {row.pipeline} {row.version} --reason TEXT"
    moment = datetime.now(UTC)

    def work(session: Session) -> Ended:
        attempt = _lock_pipeline_of(session, row.run_id)
        if session.get_one(Approval, row.run_id).decided_at != moment:
            run = fenced(session, row.run_id, attempt, status="waiting")
            record_decided(session, row.run_id, decision, by, said, moment)
            end(session, run, "held", moment, reason, next_step=next_step or by_hand)
        # else an earlier try was committed, and its answer was lost
        return Ended(row.run_id, row.pipeline, row.night, "held", reason, row.prefect_flow_run_id)

    try:
        return db.write(work)
    except RegistryError:
        _waiting(db, row.run_id)  # decided meanwhile: this says how
        raise


def _check_words(by: str, reason: str) -> None:
    if not by.strip():
        raise RegistryError("nobody is named for this decision", next_step="say who decides")
    if not reason.strip():
        raise RegistryError("the reason is blank", next_step="say why: it is stored with who and when")
