"""One run of a night, from claim to end: its row is written before any work, kept alive by a heartbeat, and closed
however the work stops. What happens in between is in `nightgate.night.night`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from nightgate import logs
from nightgate.config.checks import NONE_ALLOWED, Allowed
from nightgate.config.pipeline import Pipeline
from nightgate.database.transactions import Database
from nightgate.errors import ConfigurationError, InternalError, NightgateError
from nightgate.home import Home, open_home
from nightgate.night.closing import close_ended
from nightgate.operations import readiness, reconciliation
from nightgate.runs import claim, lifecycle
from nightgate.runs.heartbeat import Heartbeat
from nightgate.runs.run_row import RunRow, read_run
from nightgate.schedule import Night, without_time
from nightgate.training.checkpoints import has_checkpoint
from nightgate.training.progress import record_progress
from nightgate.training.protocol import Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NightRun:
    """The identity of one attempt at one night, and this process's handles on it."""

    pipeline: Pipeline
    night: Night
    home: Home
    run_id: str
    attempt: int
    dry_run: bool
    force: bool
    alarm: str
    """The alarm that started the run; '' for none."""
    data_until: datetime
    """Aware, of the first attempt: a resumed run sees the same rows."""
    snapshot_path: Path | None
    """The snapshot that an earlier attempt stored; None: make one."""
    ended: RunRow | None
    """How the night had ended before it was opened; None: there is work to do."""
    allowed: Allowed
    """Data checks that may fail tonight."""
    db: Database = field(repr=False, compare=False)
    heartbeat: Heartbeat = field(repr=False, compare=False)
    on_stall: Callable[[NightRun, str], object] = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.run_id

    @property
    def directory(self) -> Path:
        """Checkpoints, logs and predictions of this run: home/runs/<run_id>/."""
        return self.home.runs / self.run_id

    def while_ours(self, on_progress: Callable[[Progress], None] | None = None) -> Callable[[Progress], None]:
        """A callback for progress that raises once another attempt owns the run, and with it the machine.

        Args:
            on_progress: called as well, while the run is ours.
        """

        def check_and_record(progress: Progress) -> None:
            self.heartbeat.check()
            record_progress(self.directory, self.attempt, progress)
            if on_progress is not None:
                on_progress(progress)

        return check_and_record

    def record_restart(self, why: str) -> None:
        """Count a process of this attempt that stalled and is started again, and report it."""
        lifecycle.count_restart(self.db, self.run_id, self.attempt)
        self.on_stall(self, why)

    def row(self) -> RunRow:
        """How the run stands now."""
        return read_run(self.db, self.run_id)

    def finish(self, status: str, reason: str, next_step: str | None = None, error_type: str | None = None) -> RunRow:
        """End the run; a promotion ends it itself.

        Raises:
            RegistryError: another attempt has taken over, or the run has ended.
        """
        lifecycle.finish_run(
            self.db, self.run_id, self.attempt, status, reason=reason, error_type=error_type, next_step=next_step
        )
        return self.row()


def _ignore(run: NightRun, *_: object) -> None:
    """The default of a callback."""


@contextmanager
def open_night(
    pipeline: Pipeline,
    night: Night,
    *,
    force: bool = False,
    dry_run: bool = False,
    alarm: str = "",
    allowed: Allowed = NONE_ALLOWED,
    prefect_flow_run_id: str | None = None,
    overtaken: str = "",
    still_due: frozenset[datetime] = frozenset(),
    on_stall: Callable[[NightRun, str], object] = _ignore,
) -> Iterator[NightRun]:
    """Claim the night, record how the block ends it, and do what follows: its row is in SQL before any work starts.

    One run at a time works on a pipeline. A second one, and one that comes too late, is recorded as superseded; such a
    run, a night that has ended already and one that waits for an approval have `ended` set.

    Args:
        force: Open a new run for a night that has ended.
        alarm: The alarm that starts the run; it too opens a new run for a night that has ended.
        allowed: Data checks that may fail tonight, and who let them.
        overtaken: Why the scheduler holds that a run is not worth starting; '' where it is.
        still_due: Instants (aware) of other nights that the scheduler has yet to start, and that are not missed.
        on_stall: Called with the run and a sentence whenever a process of it stalled and is started again.

    Raises:
        ConfigurationError: the source or the base model is missing: nothing was claimed. A scheduled night is recorded
            as missed, with this reason.
        NightgateError: home or database cannot be used. Inside the block, whatever the steps raise.
    """
    if not pipeline.data.has_times:
        night = without_time(night)
    due = night.scheduled_for if night.trigger == "schedule" and not dry_run else None
    with Database.open(open_home()) as db:
        try:
            row = claim.open_run(
                db,
                pipeline,
                night,
                force=force or bool(alarm),
                dry_run=dry_run,
                prefect_flow_run_id=prefect_flow_run_id,
                overtaken=overtaken,
                check_ready=readiness.examine(pipeline, db).check,
            )
        except ConfigurationError as error:
            if due is not None:
                reconciliation.record_missed(db, pipeline, due, still_due=still_due)
                reconciliation.record_not_begun(db, pipeline, night, error)
            raise
        with logs.night_context(
            pipeline=pipeline.name,
            night=night.date,
            run_id=row.run_id,
            attempt=row.attempt,
            directory=None if row.ended else db.home.runs / row.run_id,
        ):
            run = _open(db, pipeline, night, row, force, alarm, allowed, on_stall)
            if run.ended:
                close_ended(db, pipeline.name, pipeline)
                yield run
                return
            try:
                with run.heartbeat:
                    if due is not None:
                        reconciliation.record_missed(db, pipeline, due, still_due=still_due)
                    close_ended(db, pipeline.name, pipeline)
                    yield run
            except Exception as error:
                broken = InternalError.of(error)
                _record_end(run, "failed", broken.reason, broken.error_type, broken.next_step)
                close_ended(db, pipeline.name, pipeline)
                raise
            except BaseException as stop:
                # A cancel has to be quick: the next night or `reconcile` closes this run.
                _stopped(run, stop)
                raise
            close_ended(db, pipeline.name, pipeline)


def _open(
    db: Database,
    pipeline: Pipeline,
    night: Night,
    row: RunRow,
    force: bool,
    alarm: str,
    allowed: Allowed,
    on_stall: Callable[[NightRun, str], object],
) -> NightRun:
    return NightRun(
        pipeline=pipeline,
        night=night,
        home=db.home,
        run_id=row.run_id,
        attempt=row.attempt,
        dry_run=row.dry_run,
        force=force,
        alarm=alarm,
        data_until=row.data_until,
        snapshot_path=db.home.absolute(row.snapshot) if row.snapshot else None,
        ended=row if row.ended else None,
        allowed=allowed,
        db=db,
        heartbeat=Heartbeat(db, row.run_id, row.attempt),
        on_stall=on_stall,
    )


_COMMAND = "run the same command again, without --force"
_RETRY = "retry in the UI, or run the same command again"
_STOPS = {
    "KeyboardInterrupt": ("Ctrl-C or SIGTERM", _COMMAND),
    "TerminationSignal": ("Cancel in the UI or SIGTERM", _RETRY),
    "CancelledError": ("Prefect", _RETRY),
    "Pause": ("Pause", "resume in the UI"),
}
"""What stopped a run and what resumes it, by the name of the exception; the library does not import Prefect's two."""


def _stopped(run: NightRun, stop: BaseException) -> None:
    """Record Ctrl-C, SIGTERM, or a cancel from Prefect, which raises a BaseException too; note how to go on."""
    name = type(stop).__name__
    source, resume = _STOPS.get(name, (name, _COMMAND))
    if has_checkpoint(run.directory):
        kept, next_step = "; the last checkpoint is kept", f"{resume}: it goes on from the last checkpoint"
    else:
        kept, next_step = " before the first checkpoint: there is nothing to resume", f"{resume}: it starts anew"
    stop.add_note(next_step)
    if name == "CancelledError":
        # Prefect raises it in a synchronous flow at no other time.
        lost = "its lease on the deployment was not renewed, because the server was away or restarted"
        _record_end(run, "failed", f"Prefect ended the run{kept}: {lost}", "crashed", next_step)
        return
    _record_end(run, "cancelled", f"stopped by {source}{kept}", "cancelled", next_step)


def _record_end(run: NightRun, status: str, reason: str, error_type: str, next_step: str) -> None:
    try:
        run.finish(status, logs.without_secrets(reason), logs.without_secrets(next_step), error_type)
    except NightgateError as error:
        # The first error is the one to report; the next run of this pipeline reconciles the row.
        log.warning("the row of run %s does not say %s: %s", run, status, error)
