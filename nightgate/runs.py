"""The life of a run in the database: opened, taken up again, settled, ended.

Whoever opens a run holds the pipeline's file lock, which the kernel frees when a process dies. So a row that still says
`running` belongs to a dead process, and is settled by the next one that comes. Every write carries its attempt: once
another attempt exists or the run has ended, it is refused.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import psutil
import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.config import Pipeline
from nightgate.database import Database
from nightgate.errors import CrashedError, DataError, RegistryError, SnapshotError
from nightgate.lineage import code_version
from nightgate.nights import Night
from nightgate.schema import STATUSES, Attempt, Run, Snapshot

log = logging.getLogger(__name__)

ENDED = ("promoted", "held", "skipped", "waiting")
_RESUMABLE = ("running", "failed", "cancelled")


@dataclass(frozen=True)
class Owner:
    """The process that works on a run."""

    host: str
    pid: int
    started: datetime
    """Aware. A pid alone may belong to another process by now."""

    @classmethod
    def here(cls) -> Owner:
        started = datetime.fromtimestamp(psutil.Process().create_time(), UTC)
        return cls(socket.gethostname(), os.getpid(), started)


@dataclass(frozen=True)
class OpenedRun:
    run_id: str
    attempt: int
    ended: bool
    """The night has ended already: there is nothing to do."""
    status: str
    reason: str
    dry_run: bool
    data_until: datetime
    """Of the first attempt: a run that is taken up again sees the same rows."""
    snapshot_path: Path | None
    """The snapshot that an earlier attempt stored; None: make one."""


@dataclass(frozen=True)
class RunningRun:
    """The run that is at work, and whose."""

    run_id: str
    night: date
    attempt: int
    host: str
    pid: int
    started_at: datetime
    """Of the attempt."""


def open_run(
    db: Database,
    pipeline: Pipeline,
    night: Night,
    *,
    owner: Owner | None = None,
    force: bool = False,
    dry_run: bool = False,
    prefect_flow_run_id: str | None = None,
) -> OpenedRun:
    """Claim a night. The caller holds the pipeline's file lock.

    A night without a run gets one. A run that failed, was cancelled or died is taken up again with the next attempt,
    if its configuration is this one; else a new run is opened. A night that has ended stays as it is, unless `force`.
    Dry runs and real ones do not see each other: a rehearsal must not keep the night from running.
    """
    owner = owner or Owner.here()
    moment = datetime.now(UTC)
    new_id = _new_id(pipeline, night)

    def work(session: Session) -> OpenedRun:
        lock_pipeline(session, pipeline.name)
        latest = session.scalars(
            sa.select(Run)
            .where(Run.pipeline == pipeline.name, Run.night == night.date, Run.dry_run == dry_run)
            .where(Run.status != "superseded")
            .order_by(Run.started_at.desc(), Run.run_id.desc())
            .limit(1)
        ).first()
        if latest is not None and _is_ours(session, latest, owner, moment):
            return _opened(session, db, latest)  # an earlier try was committed, and its answer was lost
        _settle_running(session, pipeline.name, moment)
        if latest is not None and not force:
            if latest.status in ENDED:
                return _opened(session, db, latest, ended=True)
            if latest.status in _RESUMABLE and latest.config_hash == pipeline.config_hash:
                _take_up(session, latest, night, owner, moment, prefect_flow_run_id)
                return _opened(session, db, latest)
        run = _new_run(new_id, pipeline, night, moment, dry_run=dry_run, prefect_flow_run_id=prefect_flow_run_id)
        session.add(run)
        session.flush()
        session.add(_new_attempt(run, owner, moment))
        return _opened(session, db, run)

    return db.write(work)


def record_superseded(
    db: Database,
    pipeline: Pipeline,
    night: Night,
    reason: str,
    *,
    next_step: str | None = None,
    owner: Owner | None = None,
    dry_run: bool = False,
    prefect_flow_run_id: str | None = None,
) -> OpenedRun:
    """The row of a run that ended at once because another one is at work."""
    owner = owner or Owner.here()
    moment = datetime.now(UTC)
    run_id = _new_id(pipeline, night)

    def work(session: Session) -> OpenedRun:
        run = session.get(Run, run_id)
        if run is None:
            run = _new_run(run_id, pipeline, night, moment, dry_run=dry_run, prefect_flow_run_id=prefect_flow_run_id)
            attempt = _new_attempt(run, owner, moment)
            for row in (run, attempt):
                row.status, row.reason, row.finished_at = "superseded", reason, moment
            run.next_step = next_step
            session.add(run)
            session.flush()
            session.add(attempt)
        return _opened(session, db, run, ended=True)

    return db.write(work)


def running_run(db: Database, pipeline_name: str) -> RunningRun | None:
    """The run that is at work, or was when its process died: only the pipeline's file lock knows which."""

    def work(session: Session) -> RunningRun | None:
        row = session.execute(
            sa.select(Run.run_id, Run.night, Run.attempt, Attempt.host, Attempt.pid, Attempt.started_at)
            .join(Attempt, (Attempt.run_id == Run.run_id) & (Attempt.attempt == Run.attempt))
            .where(Run.pipeline == pipeline_name, Run.status == "running")
            .order_by(Attempt.started_at.desc())
            .limit(1)
        ).first()
        return RunningRun(*row) if row else None

    return db.read(work)


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


# --- inside a transaction ---


def lock_pipeline(session: Session, pipeline_name: str) -> None:
    """Until the transaction ends, nobody else opens runs, allots versions or moves the champion of this pipeline."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.text("SELECT pg_advisory_xact_lock(7203150, hashtext(:name))"), {"name": pipeline_name})
    # On SQLite a writing transaction is alone from its BEGIN IMMEDIATE on.


def fenced(session: Session, run_id: str, attempt: int, error: type[RegistryError] = RegistryError) -> Run:
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
    if run.status != "running":
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
    """End a run together with its attempt. A reason that is not given leaves the one of the decision."""
    run.next_step = next_step or None
    for row in (run, attempt_of(session, run)):
        row.status, row.error_type, row.finished_at = status, error_type, moment
        row.reason = reason if reason is not None else row.reason


def _settle_running(session: Session, pipeline_name: str, moment: datetime) -> list[str]:
    running = session.scalars(
        sa.select(Run).where(Run.pipeline == pipeline_name, Run.status == "running").with_for_update()
    )
    settled = []
    for run in running:
        owner = attempt_of(session, run)
        reason = f"its process (pid {owner.pid} on {owner.host}) ended without a word in attempt {run.attempt}"
        step = f"run that night again: nightgate run {run.pipeline} --night {run.night}"
        end(session, run, "failed", moment, reason, CrashedError.error_type, step)
        log.warning("run %s is settled as failed: %s", run.run_id, reason)
        settled.append(run.run_id)
    return settled


def _take_up(
    session: Session, run: Run, night: Night, owner: Owner, moment: datetime, prefect_flow_run_id: str | None
) -> None:
    if run.error_type in {DataError.error_type, SnapshotError.error_type}:
        run.snapshot_id = None  # what was wrong with the rows may be mended: read them again
    if run.snapshot_id is None:
        run.data_until, run.scheduled_for = night.data_until, night.scheduled_for
    run.attempt += 1
    run.status, run.trigger = "running", "retry"
    run.reason = run.error_type = run.next_step = run.verdict = run.finished_at = None
    run.prefect_flow_run_id = prefect_flow_run_id
    run.code_version = code_version()
    session.flush()
    session.add(_new_attempt(run, owner, moment))


def _is_ours(session: Session, run: Run, owner: Owner, moment: datetime) -> bool:
    current = attempt_of(session, run)
    return run.status == "running" and (current.host, current.pid, current.started_at) == (
        owner.host,
        owner.pid,
        moment,
    )


def _opened(session: Session, db: Database, run: Run, *, ended: bool = False) -> OpenedRun:
    stored = session.get(Snapshot, (run.pipeline, run.snapshot_id)) if run.snapshot_id else None
    return OpenedRun(
        run_id=run.run_id,
        attempt=run.attempt,
        ended=ended,
        status=run.status,
        reason=run.reason or "",
        dry_run=run.dry_run,
        data_until=run.data_until,
        snapshot_path=db.home.absolute(stored.path) if stored else None,
    )


def _new_id(pipeline: Pipeline, night: Night) -> str:
    return f"{pipeline.name}-{night.date:%Y%m%d}-{secrets.token_hex(3)}"


def _new_run(
    run_id: str,
    pipeline: Pipeline,
    night: Night,
    moment: datetime,
    *,
    dry_run: bool,
    prefect_flow_run_id: str | None,
) -> Run:
    return Run(
        run_id=run_id,
        pipeline=pipeline.name,
        night=night.date,
        status="running",
        attempt=1,
        trigger=night.trigger,
        dry_run=dry_run,
        scheduled_for=night.scheduled_for,
        data_until=night.data_until,
        nonfinite="",
        average=pipeline.gate.average,
        min_f1=pipeline.gate.min_f1,
        label_names=list(pipeline.data.label_names),
        base_model=pipeline.training.base_model,
        config=pipeline.record(),
        config_hash=pipeline.config_hash,
        code_version=code_version(),
        started_at=moment,
        prefect_flow_run_id=prefect_flow_run_id,
    )


def _new_attempt(run: Run, owner: Owner, moment: datetime) -> Attempt:
    return Attempt(
        run_id=run.run_id,
        attempt=run.attempt,
        status="running",
        trigger=run.trigger,
        host=owner.host,
        pid=owner.pid,
        owner_started=owner.started,
        code_version=code_version(),
        prefect_flow_run_id=run.prefect_flow_run_id,
        started_at=moment,
    )
