"""What has to be put right from outside a run: rows of dead processes, approvals that nobody gave, nights that nobody
started, and ends that were not announced yet.

Every night does this for its own pipeline; `nightgate reconcile` and its flow do it for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from cronsim import CronSim
from sqlalchemy.orm import Session, aliased

from nightgate.config import Pipeline
from nightgate.database.schema import Attempt, Run, Setting
from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.registry.approvals import reject
from nightgate.runs.claim import new_run, new_run_id
from nightgate.runs.lifecycle import fail_dead_runs, finish_run, lock_pipeline
from nightgate.runs.run_row import RunRow, read_run, run_row, select_runs
from nightgate.schedule import scheduled_night

LONGEST_GAP = timedelta(days=60)
"""Older nights than this are not written down as missed: a pipeline that rested for a year has no need of 365 rows."""
_PAUSED = "paused."
"""Key of the setting that holds when a pipeline's schedule was last seen to be off; the name follows."""
NEWS = timedelta(days=7)
"""An end that could not be announced for longer than this is no news any more."""


def settle_running(db: Database, pipeline: str | None = None) -> list[RunRow]:
    """End every run whose process is dead, of one pipeline or of all."""
    query = sa.select(Run.pipeline).where(Run.status == "running").distinct()
    names = [pipeline] if pipeline else db.read(lambda session: list(session.scalars(query)))

    def settle(session: Session, name: str) -> list[RunRow]:
        lock_pipeline(session, name)
        return [run_row(session, run.run_id) for run in fail_dead_runs(session, name, datetime.now(UTC))]

    return [ended for name in names for ended in db.write(partial(settle, name=name))]


def unfinished(db: Database) -> list[RunRow]:
    """Runs that are at work or wait for a person; the processes of those at work may be dead."""
    query = select_runs().where(Run.status.in_(("running", "waiting")))
    return db.read(lambda session: [RunRow(*row) for row in session.execute(query)])


def cancel(db: Database, run: RunRow, by: str, *, deployed: bool) -> RunRow | None:
    """End a run from outside: what waits is held, what is at work may write nothing more. None: it has moved on.

    Args:
        by: who cancelled it, such as 'its run was cancelled in Prefect'.
        deployed: Prefect can start it again; one that was started by hand has nobody there to do it.
    """
    retry = f"Retry in the UI, or `prefect flow-run retry {run.prefect_flow_run_id}`,"
    command = f"`nightgate run {run.pipeline} --night {run.night}{' --dry-run' if run.dry_run else ''}`"
    step = f"{retry if deployed else command} goes on from its last epoch"
    reason = f"{by}, and nobody told its process"
    try:
        if run.status == "waiting":
            return reject(db, run.run_id, by="cancel", reason=by)
        finish_run(db, run.run_id, run.attempt, "cancelled", reason=reason, error_type="cancelled", next_step=step)
    except RegistryError:
        return None
    return read_run(db, run.run_id)


def record_missed(
    db: Database, pipeline: Pipeline, until: datetime, *, still_due: frozenset[datetime] = frozenset()
) -> list[RunRow]:
    """Write down the nights that were due since the last one that is known, before `until` (aware), and never started.

    Only of a pipeline that has run on its schedule before: one that is started by hand misses nothing. Nor does one
    whose schedule was off, as `record_pause` says.

    Args:
        still_due: instants (aware) that a scheduler has yet to start.
    """

    def work(session: Session) -> list[RunRow]:
        lock_pipeline(session, pipeline.name)
        # Nights of the schedule only: a backfill carries a scheduled time too, and says nothing about it.
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
        # A rehearsal keeps no night from being missed.
        nights = sa.select(Run.night).where(Run.pipeline == pipeline.name, Run.dry_run.is_(False))
        known = set(session.scalars(nights))
        missed = []
        for instant in _firings(pipeline, max(last, until - LONGEST_GAP), until):
            night = scheduled_night(pipeline.schedule, instant)
            if night.date in known or night.scheduled_for in still_due:
                continue
            moment = datetime.now(UTC)
            run = new_run(new_run_id(pipeline, night), pipeline, night, moment, dry_run=False)
            run.attempt, run.status, run.finished_at = 0, "missed", moment
            run.reason = f"due at {instant:%Y-%m-%d %H:%M} UTC, and no run started"
            run.next_step = (
                "look whether server and worker were up and the schedule active (nightgate doctor); to run it after "
                f"all: nightgate run {pipeline.name} --night {night.date}"
            )
            session.add(run)
            missed.append(run_row(session, run.run_id))
        return missed

    return db.write(work)


def record_pause(db: Database, pipeline_name: str, moment: datetime) -> None:
    """Nobody was to start the pipeline's nights at this `moment` (aware): those due before it are not missed."""

    def work(session: Session) -> None:
        session.merge(Setting(key=f"{_PAUSED}{pipeline_name}", value=moment.isoformat()))

    db.write(work)


def _firings(pipeline: Pipeline, after: datetime, until: datetime) -> list[datetime]:
    zone = ZoneInfo(pipeline.schedule.timezone)
    found: list[datetime] = []
    for firing in CronSim(pipeline.schedule.cron, after.astimezone(zone)):
        instant = firing.astimezone(UTC)
        if instant >= until:
            return found
        if instant > after:
            found.append(instant)
    return found


def unannounced(db: Database, now: datetime | None = None) -> list[RunRow]:
    """Runs that have ended, or wait for a person, without an event that says so; the oldest first."""
    since = (now or datetime.now(UTC)) - NEWS
    query = (
        select_runs()
        .where(Run.announced_at.is_(None), Run.status != "running")
        # Of its end: it may have begun long before, and waited for a person or been tried again since.
        .where(sa.or_(Run.status == "waiting", Run.finished_at > since))
        .order_by(Run.started_at, Run.run_id)
    )
    return db.read(lambda session: [RunRow(*row) for row in session.execute(query)])


@dataclass(frozen=True)
class EndedAttempt:
    """How the newest attempt of a Prefect run ended."""

    run_id: str
    status: str
    reason: str
    error_type: str | None
    finished_at: datetime
    prefect_flow_run_id: str


def ended_lately(db: Database, now: datetime | None = None) -> list[EndedAttempt]:
    """Runs of Prefect's that ended within the last days, each as its newest attempt says: it may be at work again, and
    its row may have been taken up by another one.
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
    """Write down that the event of this end was sent; not if the run has moved on since."""
    statement = (
        sa.update(Run).where(Run.run_id == end.run_id, Run.status == end.status).values(announced_at=datetime.now(UTC))
    )
    db.write(lambda session: session.execute(statement))
