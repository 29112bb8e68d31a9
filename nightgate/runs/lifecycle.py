"""The life of a run in the database: opened, taken up again, settled, ended.

One run of a pipeline is at work at a time: whoever opens one settles the rows of dead processes first, and steps back
from a living one. Every write carries its attempt: once another attempt exists or the run has ended, it is refused, so
a process that was given up and still lives does no harm.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.schema import STATUSES, Approval, Attempt, Run, SlotRequest
from nightgate.database.transactions import Database
from nightgate.errors import CrashedError, RegistryError
from nightgate.runs.liveness import cause_of_death, now

log = logging.getLogger(__name__)


def record_attempt(
    db: Database,
    run_id: str,
    attempt: int,
    *,
    device: str | None = None,
    precision: str | None = None,
    precision_reason: str | None = None,
    threads: int | None = None,
    host: str | None = None,
    pid: int | None = None,
    resumed_from_epoch: int | None = None,
    restarts: int | None = None,
    engine: str | None = None,
    engine_reason: str | None = None,
) -> None:
    """What is known of an attempt by now; None leaves what stands there. `resumed_from_epoch` 0: from the start."""
    facts = {
        "device": device,
        "precision": precision,
        "precision_reason": precision_reason,
        "threads": threads,
        "host": host,
        "pid": pid,
        "resumed_from_epoch": resumed_from_epoch,
        "restarts": restarts,
        "engine": engine,
        "engine_reason": engine_reason,
    }

    def work(session: Session) -> None:
        row = attempt_of(session, fenced(session, run_id, attempt))
        for name, value in facts.items():
            if value is not None:
                setattr(row, name, value)

    db.write(work)


def finish_run(
    db: Database,
    run_id: str,
    attempt: int,
    status: str,
    *,
    reason: str | None = None,
    error_type: str | None = None,
    next_step: str | None = None,
) -> None:
    """End a run. `promoted` is not for here: `promote` sets it, in one transaction with the champion.

    Raises:
        RegistryError: another attempt has taken over, or the run has ended.
    """
    assert status in set(STATUSES) - {"running", "promoted"}, status
    moment = datetime.now(UTC)

    def work(session: Session) -> None:
        run = session.get(Run, run_id)
        if run is not None and (run.attempt, run.status) == (attempt, status) and reason in {None, run.reason}:
            return  # an earlier try was committed, and its answer was lost
        end(session, fenced(session, run_id, attempt), status, moment, reason, error_type, next_step)

    db.write(work)


@dataclass(frozen=True)
class Outcome:
    """What became of a run so far."""

    status: str
    reason: str
    test_f1: float | None
    prefect_flow_run_id: str | None
    attempt: int


def outcome(db: Database, run_id: str) -> Outcome:
    """What became of a run that exists."""
    query = sa.select(Run.status, sa.func.coalesce(Run.reason, ""), Run.test_f1, Run.prefect_flow_run_id, Run.attempt)
    return db.read(lambda session: Outcome(*session.execute(query.where(Run.run_id == run_id)).one()))


# --- inside a transaction ---


def lock_pipeline(session: Session, pipeline_name: str) -> None:
    """Until the transaction ends, nobody else opens runs, allots versions or moves the champion of this pipeline."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.text("SELECT pg_advisory_xact_lock(7203150, hashtext(:name))"), {"name": pipeline_name})
    # On SQLite a writing transaction is alone from its BEGIN IMMEDIATE on.


def fenced(
    session: Session,
    run_id: str,
    attempt: int,
    error: type[RegistryError] = RegistryError,
    *,
    status: Literal["running", "waiting"] = "running",
) -> Run:
    """The run, if `attempt` may still write to it.

    Raises:
        RegistryError: it does not exist, another attempt has taken over, or it has ended.
    """
    # Read anew under the lock: a row that the session holds already would be as old as its first look.
    run = session.get(Run, run_id, with_for_update=True, populate_existing=True)
    if run is None:
        raise error(f"there is no run {run_id}")
    if run.attempt != attempt:
        raise error(
            f"attempt {attempt} of run {run_id} may no longer write: attempt {run.attempt} has taken over",
            next_step="leave the run to that attempt",
        )
    if run.status != status:
        raise error(
            f"attempt {attempt} of run {run_id} may no longer write: the run has ended as {run.status}",
            next_step=f"run the night again: nightgate run {run.pipeline} --night {run.night}",
        )
    return run


def attempt_of(session: Session, run: Run) -> Attempt:
    """The row of the run's current attempt."""
    return session.get_one(Attempt, (run.run_id, run.attempt))


def end(
    session: Session,
    run: Run,
    status: str,
    moment: datetime,
    reason: str | None,
    error_type: str | None = None,
    next_step: str | None = None,
) -> None:
    """End a run together with its attempt, or let it wait; what it held is free. No reason leaves the decision's."""
    run.next_step = next_step or None
    run.announced_at = None
    for row in (run, attempt_of(session, run)):
        row.status, row.error_type = status, error_type
        row.finished_at = None if status == "waiting" else moment
        row.reason = reason if reason is not None else row.reason
    held = sa.update(SlotRequest).where(SlotRequest.run_id == run.run_id, SlotRequest.released_at.is_(None))
    session.execute(held.values(released_at=now(session)).execution_options(synchronize_session=False))


def record_decided(
    session: Session, run_id: str, decision: str, by: str | None, reason: str | None, moment: datetime
) -> None:
    """Write down what became of a run that waited for a person; `by` None: nobody said anything."""
    approval = session.get_one(Approval, run_id)
    approval.decision, approval.decided_by, approval.reason, approval.decided_at = decision, by, reason, moment


def settle_dead(session: Session, pipeline_name: str, moment: datetime, *, given_up: str | None = None) -> list[Run]:
    """End the runs of a pipeline whose process is dead. The caller holds `lock_pipeline`.

    Args:
        given_up: id of a Prefect run whose earlier process counts as dead, whatever it still does.
    """
    running = session.scalars(
        sa.select(Run).where(Run.pipeline == pipeline_name, Run.status == "running").with_for_update()
    )
    settled = []
    clock = now(session)
    for run in running:
        reason = cause_of_death(attempt_of(session, run), clock)
        if not reason and given_up is not None and run.prefect_flow_run_id == given_up:
            reason = f"a retry took over from attempt {run.attempt}, which Prefect had given up"
        if not reason:
            continue
        step = f"run that night again: nightgate run {run.pipeline} --night {run.night}"
        end(session, run, "failed", moment, reason, CrashedError.error_type, step)
        log.warning("run %s is settled as failed: %s", run.run_id, reason)
        settled.append(run)
    return settled
