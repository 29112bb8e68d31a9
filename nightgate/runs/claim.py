"""Claim a night: open a new run, resume an old one as its next attempt, or record why neither happens."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.config.pipeline import Pipeline
from nightgate.database.schema import Approval, Attempt, Run
from nightgate.database.shared_values import document_id
from nightgate.database.transactions import Database
from nightgate.errors import DataCheckError, DataError, SnapshotError
from nightgate.provenance import code_version
from nightgate.runs.lifecycle import attempt_of, end, fail_dead, fail_dead_runs, lock_pipeline
from nightgate.runs.liveness import Owner, now
from nightgate.runs.run_row import RunRow, run_row
from nightgate.schedule import Night

log = logging.getLogger(__name__)

ENDED = ("promoted", "held", "skipped", "waiting")
RESUMABLE = ("running", "failed", "cancelled")
_NO_RUNS = ("superseded", "missed")
"""Status of rows of which no night was run."""

# Built once: that takes longer than to execute them.
_NEWEST_FIRST = (Run.started_at.desc(), Run.run_id.desc())
_OF_NIGHT = sa.and_(Run.night == sa.bindparam("night"), Run.dry_run == sa.bindparam("dry_run"))
_OF_PIPELINE = sa.select(Run).where(Run.pipeline == sa.bindparam("pipeline")).order_by(*_NEWEST_FIRST)
_LATEST = _OF_PIPELINE.where(_OF_NIGHT, Run.status.not_in(_NO_RUNS)).limit(1)
_IN_THE_WAY = _OF_PIPELINE.where(sa.or_(_OF_NIGHT, Run.status == "running")).with_for_update()
_NEWER = (
    sa.select(Run.run_id, Run.night)
    .where(Run.pipeline == sa.bindparam("pipeline"), Run.night > sa.bindparam("night"), Run.dry_run.is_(False))
    .where(Run.status.not_in(_NO_RUNS), Run.data_until <= sa.bindparam("moment"))
    .order_by(Run.night.desc())
    .limit(1)
)


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
    check_ready: Callable[[bool], object] = lambda _: None,
) -> RunRow:
    """Claim a night. The run that is returned is `running` with this attempt, or has ended.

    - A night without a run gets one. A run that failed, was cancelled or died is resumed with the next attempt if its
      configuration is this one; else a new run is opened.
    - A night that has ended stays as it is, unless `force`: a manual run gets its row as it ended, and a second
      Prefect run gets a row of its own with status `superseded`.
    - A run that is not the only one of its pipeline, or older than a night that was run, is `superseded`.
    - A retry of the same Prefect run takes over at once, forced or not: Prefect has given the earlier process up.
    - A resumed Prefect run whose night waits for an approval is returned in state `waiting` even while another run is
      active: a human decision is always accepted. When its night no longer waits, it is returned as it ended.

    Dry runs and real ones do not see each other's nights: a dry run must not keep the night from running.

    Args:
        overtaken: why the scheduler holds that this run is not worth starting; '' where it is.
        check_ready: called where the run would go to work, with whether it goes on with a snapshot; what it raises
            leaves everything as it was.
    """
    claim = _Claim(
        pipeline,
        night,
        owner or Owner.here(),
        datetime.now(UTC),
        new_run_id(pipeline, night),
        force=force,
        dry_run=dry_run,
        prefect_flow_run_id=prefect_flow_run_id,
        overtaken=overtaken,
        check_ready=check_ready,
    )

    def work(session: Session) -> RunRow:
        return run_row(session, _claimed(session, claim).run_id)

    return db.write(work)


def goes_on_with_snapshot(db: Database, pipeline: Pipeline, night: Night, *, dry_run: bool = False) -> bool:
    """Whether a claim of the night resumes a run that has read its rows already."""

    def work(session: Session) -> bool:
        run = _latest(session, pipeline.name, night.date, dry_run)
        return run is not None and _is_resumed(run, pipeline) and run.snapshot_id is not None and not _reads_again(run)

    return db.read(work)


def ended_run(db: Database, pipeline_name: str, night: date) -> RunRow | None:
    """The run of a night that a claim leaves alone, because it has ended or waits for an approval."""

    def work(session: Session) -> RunRow | None:
        run = _latest(session, pipeline_name, night, dry_run=False)
        return run_row(session, run.run_id) if run is not None and run.status in ENDED else None

    return db.read(work)


def night_of(db: Database, prefect_flow_run_id: str) -> Night | None:
    """The night that a Prefect run began with, to which its retries belong."""
    query = (
        sa.select(Run.night, Attempt.trigger, Run.data_until, Run.scheduled_for)
        # Its first attempt has the trigger; a later one is a retry.
        .join(Attempt, (Attempt.run_id == Run.run_id) & (Attempt.attempt == 1))
        .where(Run.prefect_flow_run_id == prefect_flow_run_id)
        .order_by(Run.started_at)
        .limit(1)
    )
    row = db.read(lambda session: session.execute(query).first())
    return Night(row.night, row.trigger, row.data_until, row.scheduled_for) if row else None


def active_manual_run(db: Database, pipeline_name: str, night: date) -> str:
    """Describe the active run of the pipeline if it is a dry run or was started manually for another night, else ''."""

    def work(session: Session) -> str:
        lock_pipeline(session, pipeline_name)
        fail_dead_runs(session, pipeline_name, datetime.now(UTC))
        run = session.scalars(
            sa.select(Run)
            # Its first attempt has the trigger; a later one is a retry.
            .join(Attempt, (Attempt.run_id == Run.run_id) & (Attempt.attempt == 1))
            .where(Run.pipeline == pipeline_name, Run.status == "running")
            .where(sa.or_(Run.dry_run, (Run.night != night) & (Attempt.trigger != "schedule")))
        ).first()
        if run is None:
            return ""
        return f"run {run.run_id} ({'a dry run' if run.dry_run else 'started manually'}, night {run.night})"

    return db.write(work)


# --- inside a transaction ---


@dataclass(frozen=True)
class _Claim:
    """The arguments of `open_run`; `run_id` is that of a run that may have to be opened."""

    pipeline: Pipeline
    night: Night
    owner: Owner
    moment: datetime
    run_id: str
    force: bool
    dry_run: bool
    prefect_flow_run_id: str | None
    overtaken: str
    check_ready: Callable[[bool], object]


def _claimed(session: Session, claim: _Claim) -> Run:
    name = claim.pipeline.name
    lock_pipeline(session, name)
    place = {"pipeline": name, "night": claim.night.date, "dry_run": claim.dry_run}
    runs = session.scalars(_IN_THE_WAY, place).all()
    of_night = [run for run in runs if (run.night, run.dry_run) == (claim.night.date, claim.dry_run)]
    latest = next((run for run in of_night if run.run_id == claim.run_id), None) or next(
        (run for run in of_night if run.status not in _NO_RUNS), None
    )
    known = _awaiting_approval(session, claim.prefect_flow_run_id)
    if known is None and latest is not None and (latest.run_id == claim.run_id or _is_ours(session, latest, claim)):
        known = latest
    if known is not None:
        return known  # it waits, or an earlier try was committed, and its answer was lost
    at_work = [run for run in runs if run.status == "running"]
    fail_dead(session, at_work, claim.moment, given_up=claim.prefect_flow_run_id)
    refused = _active_run(session, at_work) or claim.overtaken or _overtaken(session, claim)
    # A Prefect run that was forced opens one run: its retries go on with that.
    flow_run = claim.prefect_flow_run_id
    is_retry = latest is not None and flow_run is not None and latest.prefect_flow_run_id == flow_run
    if latest is not None and not refused and (is_retry or not claim.force):
        if latest.status in ENDED:
            if flow_run in {None, latest.prefect_flow_run_id}:
                return latest
            refused = (
                f"the night was run already: run {latest.run_id} ended {latest.status}; a forced run opens a new one"
            )
        elif _is_resumed(latest, claim.pipeline):
            _resume(session, latest, claim)
            return latest
    return _open_new(session, claim, refused)


def _latest(session: Session, pipeline_name: str, night: date, dry_run: bool) -> Run | None:
    """The run that a claim of the night begins with."""
    return session.scalars(_LATEST, {"pipeline": pipeline_name, "night": night, "dry_run": dry_run}).first()


def _is_resumed(run: Run, pipeline: Pipeline) -> bool:
    return run.status in RESUMABLE and run.config_hash == pipeline.config_hash


def _reads_again(run: Run) -> bool:
    """Whether the rows of a run that broke are read again when it is resumed: they may have been corrected."""
    return run.error_type in {error.error_type for error in (DataError, SnapshotError, DataCheckError)}


def _open_new(session: Session, claim: _Claim, refused: str) -> Run:
    """A new run; superseded at once where it is `refused`."""
    if not refused:
        claim.check_ready(False)
    run = new_run(
        session,
        claim.run_id,
        claim.pipeline,
        claim.night,
        claim.moment,
        dry_run=claim.dry_run,
        prefect_flow_run_id=claim.prefect_flow_run_id,
    )
    session.add(run)
    session.flush()
    session.add(_new_attempt(session, run, claim))
    if refused:
        session.flush()
        end(session, run, "superseded", claim.moment, refused)
        log.warning("superseded: %s", refused)
    return run


def _active_run(session: Session, at_work: Sequence[Run]) -> str:
    """Why the pipeline is busy; '' where it is not. The caller has failed dead runs."""
    run = next((run for run in at_work if run.status == "running"), None)
    if run is None:
        return ""
    owner = attempt_of(session, run)
    return (
        f"run {run.run_id} (process {owner.pid} on {owner.host}) of {run.pipeline} is at work already; "
        "this one ended at once"
    )


def _overtaken(session: Session, claim: _Claim) -> str:
    """Why a scheduled run comes too late: a newer night was run. Manual runs and backfills may be of an old night.

    A night that is still to come was run while a clock was wrong: it would keep all nights until then from running.
    """
    if claim.night.trigger != "schedule":
        return ""
    place = {"pipeline": claim.pipeline.name, "night": claim.night.date, "moment": claim.moment}
    newer = session.execute(_NEWER, place).first()
    return f"a newer night, {newer.night}, has overtaken it (run {newer.run_id})" if newer else ""


def _awaiting_approval(session: Session, prefect_flow_run_id: str | None) -> Run | None:
    """The run of a Prefect run that waits for an approval, or did until a newer night superseded it."""
    if prefect_flow_run_id is None:
        return None
    return session.scalars(
        sa.select(Run)
        .join(Approval, Approval.run_id == Run.run_id)
        .where(Run.prefect_flow_run_id == prefect_flow_run_id, Run.status.in_(("waiting", "superseded")))
    ).first()


def _resume(session: Session, run: Run, claim: _Claim) -> None:
    if _reads_again(run):
        run.snapshot_id = None
    if run.snapshot_id is None:
        run.data_until, run.scheduled_for = claim.night.data_until, claim.night.scheduled_for
    claim.check_ready(run.snapshot_id is not None)
    run.attempt += 1
    run.status, run.trigger = "running", "retry"
    run.reason = run.error_type = run.next_step = run.verdict = None
    run.finish(None)
    run.announced_at = run.closed_at = None
    run.prefect_flow_run_id = claim.prefect_flow_run_id
    run.code_version = code_version()
    session.flush()
    session.add(_new_attempt(session, run, claim))


def _is_ours(session: Session, run: Run, claim: _Claim) -> bool:
    """Whether an earlier try of this claim resumed the run."""
    current = attempt_of(session, run)
    began = (current.host, current.pid, current.started_at)
    return run.status == "running" and began == (claim.owner.host, claim.owner.pid, claim.moment)


def new_run_id(pipeline: Pipeline, night: Night) -> str:
    return f"{pipeline.name}-{night.date:%Y%m%d}-{secrets.token_hex(3)}"


def new_run(
    session: Session,
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
        min_f1=None if pipeline.gate.min_f1 == "majority" else pipeline.gate.min_f1,
        label_names=list(pipeline.data.label_names),
        base_model=pipeline.training.base_model,
        config_id=document_id(
            session, pipeline.record(), partial(pipeline.model_dump, mode="json", exclude_defaults=True)
        ),
        config_hash=pipeline.config_hash,
        code_version=code_version(),
        started_at=moment,
        prefect_flow_run_id=prefect_flow_run_id,
    )


def _new_attempt(session: Session, run: Run, claim: _Claim) -> Attempt:
    owner = claim.owner
    return Attempt(
        run_id=run.run_id,
        attempt=run.attempt,
        status="running",
        trigger=run.trigger,
        host=owner.host,
        pid=owner.pid,
        owner_started=owner.started,
        owner_ticks=owner.ticks,
        process_space=owner.space,
        heartbeat_at=now(session),
        code_version=code_version(),
        prefect_flow_run_id=run.prefect_flow_run_id,
        started_at=claim.moment,
    )
