"""Reconciliation: fail runs of dead processes, cancel runs from outside, record missed nights, list pending events.

Every night does this for its own pipeline; `nightgate reconcile` and its flow do it for all pipelines.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from nightgate.config.pipeline import Pipeline
from nightgate.database.schema import Attempt, Run, Setting
from nightgate.database.transactions import Database
from nightgate.errors import NightgateError, RegistryError
from nightgate.operations.status import due_between
from nightgate.registry.approvals import reject
from nightgate.runs.claim import new_run, new_run_id
from nightgate.runs.lifecycle import fail_dead_runs, finish_run, lock_pipeline
from nightgate.runs.run_row import RunRow, read_run, run_row, select_runs
from nightgate.schedule import Night, scheduled_night

LONGEST_GAP = timedelta(days=60)
"""Older nights are not recorded as missed: a pipeline that was off for a year needs no 365 rows."""
_PAUSED = "paused."
"""Prefix, before the pipeline's name, of the setting that holds when its schedule was last seen off."""
NEWS = timedelta(days=7)
"""Older ends are not announced any more."""


def finish_dead_runs(db: Database, pipeline: str | None = None) -> list[RunRow]:
    """Fail every run whose process is dead, of one pipeline or of all."""
    query = sa.select(Run.pipeline).where(Run.status == "running").distinct()
    names = [pipeline] if pipeline else db.read(lambda session: list(session.scalars(query)))

    def work(session: Session, name: str) -> list[RunRow]:
        lock_pipeline(session, name)
        return [run_row(session, run.run_id) for run in fail_dead_runs(session, name, datetime.now(UTC))]

    return [ended for name in names for ended in db.write(partial(work, name=name))]


def unfinished(db: Database) -> list[RunRow]:
    """Runs that are running or wait for approval; the process of a running one may be dead."""
    query = select_runs().where(Run.status.in_(("running", "waiting")))
    return db.read(lambda session: [RunRow(*row) for row in session.execute(query)])


def cancel(db: Database, run: RunRow, by: str, *, deployed: bool) -> RunRow | None:
    """End a run from outside: a waiting one is held, a running one may write nothing more.

    Returns None if the run has moved on meanwhile.

    Args:
        by: the cause, such as 'its run was cancelled in Prefect'.
        deployed: whether Prefect can start it again.
    """
    retry = f"Retry in the UI, or `prefect flow-run retry {run.prefect_flow_run_id}`,"
    command = f"`nightgate run {run.pipeline} --night {run.night}{' --dry-run' if run.dry_run else ''}`"
    step = f"{retry if deployed else command} resumes after its last epoch"
    reason = f"{by}, and its process did not react"
    try:
        if run.status == "waiting":
            return reject(db, run.run_id, by="cancel", reason=by)
        why = {"reason": reason, "error_type": "cancelled", "next_step": step}
        finish_run(db, run.run_id, run.attempt, "cancelled", **why, is_lost=True)
    except RegistryError:
        return None
    return read_run(db, run.run_id)


def record_missed(
    db: Database, pipeline: Pipeline, until: datetime, *, still_due: frozenset[datetime] = frozenset()
) -> list[RunRow]:
    """Record nights that were due after the last known one and before `until` (aware), and did not start.

    A pipeline that has not run on its schedule misses nothing, nor does one whose schedule was off (`record_pause`).

    Args:
        still_due: instants (aware) of nights that a scheduler has yet to start.
    """

    def work(session: Session) -> list[RunRow]:
        lock_pipeline(session, pipeline.name)
        # Nights of the schedule only: a backfill has a scheduled time too.
        first = (Attempt.run_id == Run.run_id) & (Attempt.attempt == 1)
        last = session.scalar(
            sa.select(sa.func.max(Run.scheduled_for))
            .join(Attempt, first, isouter=True)
            .where(Run.pipeline == pipeline.name, Run.scheduled_for < until, Run.dry_run.is_(False))
            .where(sa.or_(Run.status == "missed", Attempt.trigger == "schedule"))
        )
        if last is None:
            return []
        paused = session.get(Setting, f"{_PAUSED}{pipeline.name}")
        if paused is not None:
            last = max(last, datetime.fromisoformat(paused.value))
        # A night with a dry run alone is missed.
        nights = sa.select(Run.night).where(Run.pipeline == pipeline.name, Run.dry_run.is_(False))
        known = set(session.scalars(nights))
        missed = []
        for instant in due_between(pipeline, max(last, until - LONGEST_GAP), until):
            night = scheduled_night(pipeline.schedule, instant)
            if night.date in known or night.scheduled_for in still_due:
                continue
            reason = f"due at {instant:%Y-%m-%d %H:%M} UTC, and no run started"
            step = "check that server and worker are up and the schedule is active (`nightgate doctor`)"
            run = _missed(session, pipeline, night, reason, step)
            session.add(run)
            missed.append(run_row(session, run.run_id))
        return missed

    return db.write(work)


def record_not_begun(db: Database, pipeline: Pipeline, night: Night, error: NightgateError) -> None:
    """Record a scheduled night that could only have failed as missed, unless the database knows of it.

    Its event is not pending: its flow publishes the failure.
    """

    def work(session: Session) -> None:
        lock_pipeline(session, pipeline.name)
        of_night = (Run.pipeline == pipeline.name, Run.night == night.date, Run.dry_run.is_(False))
        if session.scalar(sa.select(sa.func.count()).select_from(Run).where(*of_night)) == 0:
            run = _missed(session, pipeline, night, error.reason, error.next_step)
            run.announced_at = run.finished_at
            session.add(run)

    db.write(work)


def _missed(session: Session, pipeline: Pipeline, night: Night, reason: str, next_step: str) -> Run:
    moment = datetime.now(UTC)
    run = new_run(session, new_run_id(pipeline, night), pipeline, night, moment, dry_run=False)
    run.finish(moment)
    run.attempt, run.status, run.closed_at = 0, "missed", moment
    run.reason = reason
    run.next_step = f"{next_step}; to run it now: nightgate run {pipeline.name} --night {night.date}"
    return run


def record_pause(db: Database, pipeline_name: str, moment: datetime) -> None:
    """Record that the pipeline's schedule is off at this `moment` (aware): nights due before it are not missed."""

    def work(session: Session) -> None:
        session.merge(Setting(key=f"{_PAUSED}{pipeline_name}", value=moment.isoformat()))

    db.write(work)


def unannounced(db: Database, now: datetime | None = None) -> list[RunRow]:
    """Runs that have ended, or wait for approval, and whose event was not published; the oldest first."""
    since = (now or datetime.now(UTC)) - NEWS
    query = (
        select_runs()
        .where(Run.announced_at.is_(None), Run.status != "running")
        # Its end, not its start: it may have waited for approval, or been retried, for long.
        .where(sa.or_(Run.status == "waiting", Run.finished_at > since))
        .order_by(Run.started_at, Run.run_id)
    )
    return db.read(lambda session: [RunRow(*row) for row in session.execute(query)])


def unclosed(db: Database, pipeline_name: str) -> list[RunRow]:
    """Runs of the pipeline that have ended, or wait for approval, and are not closed; the oldest first."""
    query = (
        select_runs()
        .where(Run.pipeline == pipeline_name, Run.closed_at.is_(None), Run.status != "running")
        .order_by(Run.started_at, Run.run_id)
    )
    return db.read(lambda session: [RunRow(*row) for row in session.execute(query)])


@dataclass(frozen=True)
class EndedAttempt:
    """The end of a Prefect flow run according to the database."""

    run_id: str
    status: str
    reason: str
    error_type: str | None
    finished_at: datetime
    prefect_flow_run_id: str


def ended_lately(db: Database, now: datetime | None = None) -> list[EndedAttempt]:
    """Flow runs whose newest attempt ended within the last days.

    Attempts, not runs: a flow run may be retried, and another flow run may have resumed the same row.
    """
    since = (now or datetime.now(UTC)) - NEWS
    later = aliased(Attempt)
    query = sa.select(
        Attempt.run_id,
        Attempt.status,
        sa.func.coalesce(Attempt.reason, ""),
        Attempt.error_type,
        Attempt.finished_at,
        Attempt.prefect_flow_run_id,
    ).where(
        Attempt.finished_at > since,
        Attempt.prefect_flow_run_id.is_not(None),
        ~sa.exists().where(
            later.prefect_flow_run_id == Attempt.prefect_flow_run_id, later.started_at > Attempt.started_at
        ),
    )
    return db.read(lambda session: [EndedAttempt(*row) for row in session.execute(query)])


def mark_announced(db: Database, end: RunRow) -> None:
    """Record that the event of this end was published, unless the run has moved on meanwhile."""
    _mark(db, end, announced_at=datetime.now(UTC))


def mark_closed(db: Database, end: RunRow) -> None:
    """Record that everything that follows this end was done, unless the run has moved on meanwhile."""
    _mark(db, end, closed_at=datetime.now(UTC))


def _mark(db: Database, end: RunRow, **values: datetime) -> None:
    same_end = (Run.run_id == end.run_id, Run.attempt == end.attempt, Run.status == end.status)
    db.write(lambda session: session.execute(sa.update(Run).where(*same_end).values(values)))
