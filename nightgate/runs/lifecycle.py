"""The life of a run in the database after its claim: facts about its attempts, and its end.

One run of a pipeline is at work at a time. Every write carries its attempt: once another attempt exists or the run has
ended, the write is refused, so a process that was given up and still lives does no harm.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.schema import STATUSES, Approval, Attempt, Run
from nightgate.database.shared_values import update_row
from nightgate.database.transactions import Database
from nightgate.errors import CrashedError, RegistryError
from nightgate.runs.liveness import cause_of_death, now

if TYPE_CHECKING:
    from nightgate.metrics.confusion import Average

log = logging.getLogger(__name__)
R = TypeVar("R", "Run", "Fenced")


class Fenced(NamedTuple):
    """What writes read of a run and its attempt, both locked."""

    run_id: str
    pipeline: str
    night: date
    attempt: int
    status: str
    average: Average
    label_names: list[str]
    best_epoch: int | None
    training: str | None
    attempt_id: int
    device: str | None
    precision: str | None
    engine: str | None
    engine_reason: str | None


_RUN, _OF_RUN = cast("sa.Table", Run.__table__).c, cast("sa.Table", Attempt.__table__).c
_OF_ATTEMPT = ("attempt_id", "device", "precision", "engine", "engine_reason")
# Built once, and of few columns: it begins every write of a night.
_FENCE = (
    sa.select(*((_OF_RUN if name in _OF_ATTEMPT else _RUN)[name] for name in Fenced._fields))
    .where(_RUN.run_id == sa.bindparam("run_id"), _OF_RUN.attempt == sa.bindparam("attempt"))
    .where(_OF_RUN.run_id == _RUN.run_id)
    .with_for_update()
)
_LOCKED = (
    sa.select(Run, Attempt)
    .join(Attempt, Attempt.run_id == Run.run_id)
    .where(Run.run_id == sa.bindparam("run_id"), Attempt.attempt == sa.bindparam("attempt"))
    .with_for_update()
)
_ATTEMPT = sa.select(Attempt).where(
    Attempt.run_id == sa.bindparam("run_id"), Attempt.attempt == sa.bindparam("attempt")
)


def record_attempt(db: Database, run_id: str, attempt: int, **facts: str | float | datetime) -> None:
    """Store what is known of an attempt, by column of the table `attempt`."""

    def work(session: Session) -> None:
        fence(session, run_id, attempt)
        update_row(session, Attempt, facts, run_id=run_id, attempt=attempt)

    db.write(work)


def count_restart(db: Database, run_id: str, attempt: int) -> None:
    """Count a process of the attempt that stalled and was started again."""
    query = sa.select(Attempt.restarts).where(Attempt.run_id == run_id, Attempt.attempt == attempt)
    before = db.read(lambda session: session.scalar(query)) or 0
    record_attempt(db, run_id, attempt, restarts=before + 1)


def finish_run(
    db: Database,
    run_id: str,
    attempt: int,
    status: str,
    *,
    reason: str | None = None,
    error_type: str | None = None,
    next_step: str | None = None,
    is_lost: bool = False,
) -> None:
    """End a run with any status but `promoted`, which `promote_candidate` sets in one transaction with the champion.

    Args:
        is_lost: as of `end`.

    Raises:
        RegistryError: another attempt has taken over, or the run has ended.
    """
    assert status in set(STATUSES) - {"running", "promoted"}, status
    moment = datetime.now(UTC)

    def work(session: Session) -> None:
        try:
            run, row = fenced(session, run_id, attempt)
        except RegistryError:
            known = session.get(Run, run_id)
            if known and (known.attempt, known.status) == (attempt, status) and reason in {None, known.reason}:
                return  # an earlier try was committed, and its answer was lost
            raise
        end(session, run, status, moment, reason, error_type, next_step, attempt=row, is_lost=is_lost)

    db.write(work)


# --- inside a transaction ---


def lock_pipeline(session: Session, pipeline_name: str) -> None:
    """Lock the pipeline until the transaction ends: no other opens runs, allots versions or moves the champion."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.text("SELECT pg_advisory_xact_lock(7203150, hashtext(:name))"), {"name": pipeline_name})
    # On SQLite a writing transaction is alone from its BEGIN IMMEDIATE on.


def fence(session: Session, run_id: str, attempt: int) -> Fenced:
    """Lock the run and the attempt, if `attempt` may still write to them.

    Raises:
        RegistryError: as of `fenced`.
    """
    row = session.execute(_FENCE, {"run_id": run_id, "attempt": attempt}).one_or_none()
    found = None if row is None else Fenced(*row)
    return _checked(found, run_id, attempt, RegistryError, "running")


def fenced(
    session: Session,
    run_id: str,
    attempt: int,
    error: type[RegistryError] = RegistryError,
    *,
    status: Literal["running", "waiting"] = "running",
) -> tuple[Run, Attempt]:
    """The rows of the run and the attempt, locked, if `attempt` may still write to them. `fence` takes a third of it.

    Raises:
        RegistryError: the run does not exist, another attempt has taken over, or it has ended.
    """
    # Read again under the lock: the session may hold the rows as they were before.
    place, again = {"run_id": run_id, "attempt": attempt}, {"populate_existing": True}
    run, row = session.execute(_LOCKED, place, execution_options=again).one_or_none() or (None, None)
    return _checked(run, run_id, attempt, error, status), cast("Attempt", row)


def _checked(run: R | None, run_id: str, attempt: int, error: type[RegistryError], status: str) -> R:
    if run is None:
        raise error(f"there is no run {run_id} with an attempt {attempt}")
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
    return session.scalars(_ATTEMPT, {"run_id": run.run_id, "attempt": run.attempt}).one()


def end(
    session: Session,
    run: Run,
    status: str,
    moment: datetime,
    reason: str | None,
    error_type: str | None = None,
    next_step: str | None = None,
    *,
    attempt: Attempt | None = None,
    is_lost: bool = False,
) -> None:
    """End a run with its attempt, or let it wait. `reason` None leaves the gate's.

    Args:
        attempt: its current one, if the caller has read it.
        is_lost: another process ends it: its own was at work until its last heartbeat.
    """
    run.next_step = next_step or None
    run.announced_at = run.closed_at = None
    attempt = attempt or attempt_of(session, run)
    if attempt.status == "running":  # one that waits for an approval has stopped already
        at_work = ((is_lost and attempt.heartbeat_at) or moment) - attempt.started_at
        attempt.busy_seconds = round(max(0.0, at_work.total_seconds() - (attempt.slot_wait_seconds or 0.0)), 3)
    for row in (run, attempt):
        row.status, row.error_type = status, error_type
        row.finish(None if status == "waiting" else moment)
        row.reason = reason if reason is not None else row.reason


def record_decided(
    session: Session, run_id: str, decision: str, by: str | None, reason: str | None, moment: datetime
) -> None:
    """Store the decision on a run that waited for an approval; `by` None: no person made it."""
    approval = session.get_one(Approval, run_id)
    approval.decision, approval.decided_by, approval.reason, approval.decided_at = decision, by, reason, moment


def fail_dead_runs(session: Session, pipeline_name: str, moment: datetime) -> list[Run]:
    """End the runs of a pipeline whose process is dead as failed. The caller holds `lock_pipeline`."""
    running = sa.select(Run).where(Run.pipeline == pipeline_name, Run.status == "running").with_for_update()
    return fail_dead(session, session.scalars(running).all(), moment)


def fail_dead(session: Session, running: Sequence[Run], moment: datetime, *, given_up: str | None = None) -> list[Run]:
    """End those runs whose process is dead as failed; returns them. All have been locked.

    Args:
        given_up: id of a Prefect run whose earlier process counts as dead, even if it still runs.
    """
    failed = []
    for run in running:
        attempt, clock = attempt_of(session, run), now(session)
        if attempt.heartbeat_at is not None and attempt.heartbeat_at > clock:
            attempt.heartbeat_at = clock  # the clock was set back: the silence counts from now on
        reason = cause_of_death(attempt, clock)
        if not reason and given_up is not None and run.prefect_flow_run_id == given_up:
            reason = f"a retry took over from attempt {run.attempt}, which Prefect had given up"
        if not reason:
            continue
        step = f"run that night again: nightgate run {run.pipeline} --night {run.night}"
        end(session, run, "failed", moment, reason, CrashedError.error_type, step, attempt=attempt, is_lost=True)
        log.warning("run %s has failed: %s", run.run_id, reason)
        failed.append(run)
    return failed
