"""Approvals: candidates that passed the gate and wait until a person approves or rejects them, or time runs out.

An approval is a promotion like any other: it names the champion and the anchor that the candidate was compared with,
and fails if either has changed since.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.schema import Approval, ModelVersion, Run
from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.errors import ModelError, PromotionLostError, RegistryError
from nightgate.models.version_folder import verify_version
from nightgate.registry import anchors
from nightgate.registry.freezes import require_reason
from nightgate.registry.promotion import promote_candidate
from nightgate.runs.lifecycle import end, fenced, lock_pipeline, record_decided
from nightgate.runs.run_row import RunRow, read_run, run_row

WAITS = "waits for approval: "
"""Prefix of the reason of a run that waits; the gate's reason follows."""


@dataclass(frozen=True)
class Waiting:
    """A candidate that waits for approval."""

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
    """The gate's reason."""
    prefect_flow_run_id: str | None


def request(
    db: Database, run_id: str, attempt: int, *, expected: int | None, patience: timedelta, reason: str, next_step: str
) -> None:
    """Put the run in state `waiting` for `patience`; `expected` is the champion that it was compared with."""
    moment = datetime.now(UTC)

    def work(session: Session) -> None:
        known = session.get(Approval, run_id)
        if known is not None and known.decision is None:
            return  # an earlier try was committed, and its answer was lost
        run, _ = fenced(session, run_id, attempt)
        if known is not None:  # of an earlier attempt that did not finish
            session.delete(known)
            session.flush()
        session.add(Approval(run_id=run_id, requested_at=moment, deadline=moment + patience, expected_version=expected))
        end(session, run, "waiting", moment, reason, next_step=next_step)

    db.write(work)


def open_approvals(db: Database, pipeline: str | None = None) -> list[Waiting]:
    """Candidates that wait for approval, oldest first."""
    query = selecting(  # CROSS JOIN: the few approvals first, on SQLite too
        "SELECT r.run_id, r.pipeline, r.night, a.model_version AS version, r.test_f1, "
        "a.expected_version AS champion_version, r.champion_f1, a.requested_at, a.deadline, r.reason, "
        "r.prefect_flow_run_id FROM approvals AS a CROSS JOIN nightly_runs AS r "
        "WHERE r.run_id = a.run_id AND a.decision IS NULL AND r.status = 'waiting' AND a.model_version IS NOT NULL "
        f"{'' if pipeline is None else 'AND a.pipeline = :pipeline '}ORDER BY a.requested_at",
        {} if pipeline is None else {"pipeline": pipeline},
    )
    return db.read(lambda session: [Waiting(**row._mapping) for row in session.execute(query)])


def command(pipeline: str, run_id: str) -> str:
    """The command that decides about this candidate even if a newer one waits by then."""
    return f"nightgate approve {pipeline} --run {run_id} --reason TEXT (or reject)"


def find(db: Database, pipeline: str, run_id: str | None = None) -> Waiting:
    """The candidate of the pipeline that waits for approval.

    Args:
        run_id: None finds the only one that waits.

    Raises:
        RegistryError: none waits (the error says how the run, or the last that waited, ended), or several do.
    """
    waiting = [one for one in open_approvals(db, pipeline) if run_id in {None, one.run_id}]
    if len(waiting) > 1:
        raise RegistryError(
            f"{len(waiting)} candidates of {pipeline} wait for an approval: "
            + ", ".join(f"version {one.version} (run {one.run_id}, night {one.night})" for one in waiting),
            next_step=f"name one: {command(pipeline, waiting[-1].run_id)}",
        )
    if not waiting:
        raise RegistryError(_why_none_waits(db, pipeline, run_id), next_step=f"look at `nightgate history {pipeline}`")
    return waiting[0]


def _why_none_waits(db: Database, pipeline: str, run_id: str | None) -> str:
    """How the run ended, or the last run of the pipeline that was decided."""
    query = (
        sa.select(Run.run_id, Run.status, Run.reason, ModelVersion.version, Approval.decided_at)
        .join(Approval, Approval.run_id == Run.run_id, isouter=True)
        .join(ModelVersion, ModelVersion.run_id == Run.run_id, isouter=True)
        .where(Run.pipeline == pipeline, Run.run_id == run_id if run_id else Approval.decided_at.is_not(None))
        .order_by(Approval.decided_at.desc())
        .limit(1)
    )
    row = db.read(lambda session: session.execute(query).first())
    end = f"it is {row.status}: {row.reason}" if row else "there is no such run"
    if row and row.decided_at is not None:
        end += f" ({row.decided_at:%Y-%m-%d %H:%M} UTC)"
    if run_id is not None:
        return f"run {run_id} of {pipeline} does not wait for an approval: {end}"
    last = f"; version {row.version}, the last that did (run {row.run_id}): {end}" if row else ""
    return f"no candidate of {pipeline} waits for an approval{last}"


def approve(db: Database, run_id: str, *, by: str, reason: str) -> RunRow:
    """Promote the candidate, or hold it: its deadline has passed, champion or anchor have changed, or its files have.

    Raises:
        RegistryError: the run no longer waits, or `by` or `reason` is blank.
    """
    by, reason = require_reason(by, reason)
    row = _waiting(db, run_id)
    if row.deadline <= datetime.now(UTC):
        return _hold_overdue(db, row)
    why = f"approved by {by}: {reason}"
    attempt = db.read(lambda session: session.get_one(Run, run_id).attempt)
    path = db.read(lambda session: session.get_one(ModelVersion, (row.pipeline, row.version)).path)
    try:
        # It may have waited for days, and a damaged champion would fail for its users.
        verify_version(db.home.absolute(path))
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
            moves_anchor=anchors.was_beaten(db, run_id, attempt),
        )
    except (PromotionLostError, ModelError) as error:
        restore = (
            f"restore its folder from a backup, then: nightgate promote {row.pipeline} {row.version} --reason TEXT"
        )
        next_step = restore if isinstance(error, ModelError) else error.next_step
        return _hold(db, row, "approved", f"{why}; not promoted: {error.reason}", by, reason, next_step)
    return read_run(db, run_id)


def reject(db: Database, run_id: str, *, by: str, reason: str) -> RunRow:
    """Hold the candidate.

    Raises:
        RegistryError: the run no longer waits, or `by` or `reason` is blank.
    """
    by, reason = require_reason(by, reason)
    return _hold(db, _waiting(db, run_id), "rejected", f"rejected by {by}: {reason}", by, reason)


def hold_overdue(db: Database, moment: datetime | None = None) -> list[RunRow]:
    """Hold every candidate whose deadline has passed."""
    moment = moment or datetime.now(UTC)
    held = []
    for one in open_approvals(db):
        if one.deadline <= moment:
            with suppress(RegistryError):  # decided or superseded since it was read
                held.append(_hold_overdue(db, one))
    return held


def supersede_before(db: Database, run_id: str, attempt: int) -> list[str]:
    """Supersede the waiting runs of this run's pipeline; returns their ids. A backfill supersedes no newer night."""

    def work(session: Session) -> list[str]:
        # A decision may be committed at this moment.
        lock_pipeline(session, session.get_one(Run, run_id).pipeline)
        run, _ = fenced(session, run_id, attempt)
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
            end(session, one, "superseded", moment, f"not approved before {newer}")
        return [one.run_id for one in waiting]

    return db.write(work)


def _waiting(db: Database, run_id: str) -> Waiting:
    pipeline = db.read(lambda session: session.scalar(sa.select(Run.pipeline).where(Run.run_id == run_id)))
    return find(db, pipeline or "?", run_id)


def _hold_overdue(db: Database, row: Waiting) -> RunRow:
    return _hold(db, row, "timed_out", f"not approved by {row.deadline:%Y-%m-%d %H:%M} UTC; {row.reason}")


def _hold(
    db: Database,
    row: Waiting,
    decision: str,
    reason: str,
    by: str | None = None,
    comment: str | None = None,
    next_step: str = "",
) -> RunRow:
    anyway = f"to promote it anyway: nightgate promote {row.pipeline} {row.version} --reason TEXT"
    moment = datetime.now(UTC)

    def work(session: Session) -> RunRow:
        lock_pipeline(session, row.pipeline)
        if session.get_one(Approval, row.run_id).decided_at != moment:
            attempt = session.get_one(Run, row.run_id).attempt
            run, _ = fenced(session, row.run_id, attempt, status="waiting")
            record_decided(session, row.run_id, decision, by, comment, moment)
            end(session, run, "held", moment, reason, next_step=next_step or anyway)
        # else an earlier try was committed, and its answer was lost
        return run_row(session, row.run_id)

    try:
        return db.write(work)
    except RegistryError:
        _waiting(db, row.run_id)  # decided meanwhile: this raises the error that says how
        raise
