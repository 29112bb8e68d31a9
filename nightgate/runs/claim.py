"""How a run begins: a night is claimed, taken up again, or left alone with a reason."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.config import Pipeline
from nightgate.database.schema import Approval, Attempt, Run, Snapshot
from nightgate.database.transactions import Database
from nightgate.errors import DataError, SnapshotError
from nightgate.provenance import code_version
from nightgate.runs.lifecycle import attempt_of, end, lock_pipeline, settle_dead
from nightgate.runs.liveness import Owner
from nightgate.schedule import Night

log = logging.getLogger(__name__)

ENDED = ("promoted", "held", "skipped", "waiting")
_RESUMABLE = ("running", "failed", "cancelled")


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


def open_run(
    db: Database,
    pipeline: Pipeline,
    night: Night,
    *,
    owner: Owner | None = None,
    force: bool = False,
    dry_run: bool = False,
    prefect_flow_run_id: str | None = None,
    overtaken: str = "",
) -> OpenedRun:
    """Claim a night, or learn why there is nothing to do (`ended`).

    - A night without a run gets one. A run that failed, was cancelled or died is taken up again with the next attempt,
      if its configuration is this one; else a new run is opened.
    - A night that has ended stays as it is, unless `force`: asked by hand it is handed out as it ended, and a second
      run of Prefect gets a row of its own that says `superseded`.
    - A run that is not the only one of its pipeline, or that a newer night has overtaken, is `superseded`.
    - A retry of the same Prefect run takes over at once: Prefect has given the process before it up.
    - A Prefect run that is resumed is handed out as it waits, whoever works on the pipeline: a person's word is not
      refused. When its night waits no longer it is handed out as it ended.

    Dry runs and real ones do not see each other's nights: a rehearsal must not keep the night from running.

    Args:
        overtaken: why this run is not worth starting, as the caller knows it; '' where it is.
    """
    owner = owner or Owner.here()
    moment = datetime.now(UTC)
    new_id = new_run_id(pipeline, night)

    def work(session: Session) -> OpenedRun:
        lock_pipeline(session, pipeline.name)
        latest = session.scalars(
            sa.select(Run)
            .where(Run.pipeline == pipeline.name, Run.night == night.date, Run.dry_run == dry_run)
            .where(Run.status.not_in(("superseded", "missed")))
            .order_by(Run.started_at.desc(), Run.run_id.desc())
            .limit(1)
        ).first()
        own = session.get(Run, new_id)
        if own is not None:
            return _opened(session, db, own, ended=own.status != "running")
        resumed = _resumed(session, prefect_flow_run_id)
        if resumed is not None:
            return _opened(session, db, resumed, ended=True)
        if latest is not None and _is_ours(session, latest, owner, moment):
            return _opened(session, db, latest)  # an earlier try was committed, and its answer was lost
        settle_dead(session, pipeline.name, moment, given_up=prefect_flow_run_id)
        refused = _at_work(session, pipeline.name) or overtaken or _overtaken(session, pipeline.name, night)
        if not refused and latest is not None and not force:
            if latest.status in ENDED:
                if prefect_flow_run_id in {None, latest.prefect_flow_run_id}:
                    return _opened(session, db, latest, ended=True)
                refused = (
                    f"the night was run already: run {latest.run_id} ended {latest.status}; "
                    "a forced run opens a new one"
                )
            elif latest.status in _RESUMABLE and latest.config_hash == pipeline.config_hash:
                _take_up(session, latest, night, owner, moment, prefect_flow_run_id)
                return _opened(session, db, latest)
        run = new_run(new_id, pipeline, night, moment, dry_run=dry_run, prefect_flow_run_id=prefect_flow_run_id)
        session.add(run)
        session.flush()
        session.add(_new_attempt(run, owner, moment))
        if refused:
            session.flush()
            end(session, run, "superseded", moment, refused)
            log.warning("superseded: %s", refused)
        return _opened(session, db, run, ended=bool(refused))

    return db.write(work)


def night_of(db: Database, prefect_flow_run_id: str) -> Night | None:
    """The night that a Prefect run began with: a retry belongs to it, whatever the clock says by then."""
    query = (
        sa.select(Run.night, Attempt.trigger, Run.data_until, Run.scheduled_for)
        # Of its first attempt: a later one is a retry, of whatever it was.
        .join(Attempt, (Attempt.run_id == Run.run_id) & (Attempt.attempt == 1))
        .where(Run.prefect_flow_run_id == prefect_flow_run_id)
        .order_by(Run.started_at)
        .limit(1)
    )
    row = db.read(lambda session: session.execute(query).first())
    return Night(row.night, row.trigger, row.data_until, row.scheduled_for) if row else None


def by_hand_at_work(db: Database, pipeline_name: str, night: date) -> str:
    """The run that a person started and that works on the pipeline now, for another night or as a rehearsal, in words;
    '' where none does. Dead runs are settled first.
    """

    def work(session: Session) -> str:
        lock_pipeline(session, pipeline_name)
        settle_dead(session, pipeline_name, datetime.now(UTC))
        run = session.scalars(
            sa.select(Run)
            # Its first attempt says how it was started; a later one is a retry.
            .join(Attempt, (Attempt.run_id == Run.run_id) & (Attempt.attempt == 1))
            .where(Run.pipeline == pipeline_name, Run.status == "running")
            .where(sa.or_(Run.dry_run, (Run.night != night) & (Attempt.trigger != "schedule")))
        ).first()
        if run is None:
            return ""
        return f"run {run.run_id} ({'a dry run' if run.dry_run else 'started by hand'}, night {run.night})"

    return db.write(work)


# --- inside a transaction ---


def _at_work(session: Session, pipeline_name: str) -> str:
    """Who works on the pipeline, as a reason not to; '' when nobody does. Dead runs are settled by now."""
    run = session.scalars(sa.select(Run).where(Run.pipeline == pipeline_name, Run.status == "running").limit(1)).first()
    if run is None:
        return ""
    owner = attempt_of(session, run)
    return (
        f"run {run.run_id} (process {owner.pid} on {owner.host}) of {pipeline_name} is at work already; "
        "this one ended at once"
    )


def _overtaken(session: Session, pipeline_name: str, night: Night) -> str:
    """Why a scheduled run comes too late: a newer night was run. By hand and as a backfill an old night may be run."""
    if night.trigger != "schedule":
        return ""
    newer = session.execute(
        sa.select(Run.run_id, Run.night)
        .where(Run.pipeline == pipeline_name, Run.night > night.date, Run.dry_run.is_(False))
        .where(Run.status.not_in(("superseded", "missed")))
        .order_by(Run.night.desc())
        .limit(1)
    ).first()
    return f"a newer night, {newer.night}, has overtaken it (run {newer.run_id})" if newer else ""


def _resumed(session: Session, prefect_flow_run_id: str | None) -> Run | None:
    """The run of a Prefect run that waits for a person, or waited for one until a newer night went to work."""
    if prefect_flow_run_id is None:
        return None
    return session.scalars(
        sa.select(Run)
        .join(Approval, Approval.run_id == Run.run_id)
        .where(Run.prefect_flow_run_id == prefect_flow_run_id, Run.status.in_(("waiting", "superseded")))
    ).first()


def _take_up(
    session: Session, run: Run, night: Night, owner: Owner, moment: datetime, prefect_flow_run_id: str | None
) -> None:
    if run.error_type in {DataError.error_type, SnapshotError.error_type}:
        run.snapshot_id = None  # what was wrong with the rows may be mended: read them again
    if run.snapshot_id is None:
        run.data_until, run.scheduled_for = night.data_until, night.scheduled_for
    run.attempt += 1
    run.status, run.trigger = "running", "retry"
    run.reason = run.error_type = run.next_step = run.verdict = run.finished_at = run.announced_at = None
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


def new_run_id(pipeline: Pipeline, night: Night) -> str:
    return f"{pipeline.name}-{night.date:%Y%m%d}-{secrets.token_hex(3)}"


def new_run(
    run_id: str,
    pipeline: Pipeline,
    night: Night,
    moment: datetime,
    *,
    dry_run: bool,
    prefect_flow_run_id: str | None = None,
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
        process_space=owner.space,
        code_version=code_version(),
        prefect_flow_run_id=run.prefect_flow_run_id,
        started_at=moment,
    )
