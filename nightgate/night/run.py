"""A run of a night from its claim to its end: a row in SQL before any work, signs of life while it works, and a settled
row whatever ends it. What is done in between is in `nightgate.night.steps`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from nightgate import logs
from nightgate.config import Pipeline
from nightgate.data.golden_rows import GoldenSet
from nightgate.data.snapshots import Snapshot
from nightgate.database.transactions import Database
from nightgate.errors import InternalError, NightgateError
from nightgate.gate.decision import Decision
from nightgate.gate.evidence import Evidence
from nightgate.home import Home, open_home
from nightgate.metrics.confusion import Scores
from nightgate.operations import reconciliation
from nightgate.registry import champion_link
from nightgate.registry.versions import VersionRow
from nightgate.runs import claim, lifecycle
from nightgate.runs.claim import OpenedRun
from nightgate.runs.heartbeat import Heartbeat
from nightgate.schedule import Night
from nightgate.training.progress import record_progress
from nightgate.training.protocol import Progress, ScoreResult, TrainResult

log = logging.getLogger(__name__)


class NightRun:
    """One run of one night: identity, places, and what each step found for the next one."""

    def __init__(self, pipeline: Pipeline, night: Night, home: Home, db: Database, opened: OpenedRun) -> None:
        self.pipeline = pipeline
        self.night = night
        self.home = home
        self.db = db
        self.run_id = opened.run_id
        self.attempt = opened.attempt
        self.status = opened.status
        self.reason = opened.reason
        self.is_open = not opened.ended
        self.dry_run = opened.dry_run
        self.data_until = opened.data_until
        self.snapshot_path = opened.snapshot_path
        """Of a resumed run, which keeps the snapshot that it began with."""
        self.heartbeat: Heartbeat
        self.snapshot: Snapshot
        self.started_from: int | None = None
        """The champion's version that training went on from; None: the base model."""
        self.started_revision: str | None = None
        """What that version's base model was."""
        self.restarts = 0
        """How often a process of this attempt stood still and was started again."""
        self.on_stall: Callable[[str], None] = log.debug
        """Told whenever that happens."""
        self.trained: TrainResult
        self.champion: VersionRow | None = None
        self.anchor: VersionRow | None = None
        self.golden: GoldenSet
        self.folders: dict[str, Path]
        """By side the model that is scored."""
        self.scored: ScoreResult
        self.evidence: Evidence
        """All that the verdict follows from."""
        self.test_scores: Scores
        """Of the candidate, on the test rows that decide."""
        self.decision: Decision
        self.version: int

    def __str__(self) -> str:
        return self.run_id

    def while_ours(self, on_progress: Callable[[Progress], None] | None = None) -> Callable[[Progress], None]:
        """Told where the work stands, it raises once the run was given to another attempt: the machine is that one's.

        Args:
            on_progress: told as well, while the run is ours.
        """

        def tell(progress: Progress) -> None:
            self.heartbeat.check()
            record_progress(self.directory, self.attempt, progress)
            if on_progress is not None:
                on_progress(progress)

        return tell

    def count_restart(self, why: str) -> None:
        """A process of this attempt stood still and is started again."""
        self.restarts += 1
        lifecycle.record_attempt(self.db, self.run_id, self.attempt, restarts=self.restarts)
        self.on_stall(why)

    @property
    def directory(self) -> Path:
        """Checkpoints, logs and predictions of this run: home/runs/<run_id>/."""
        return self.home.runs / self.run_id


@contextmanager
def open_night(
    pipeline: Pipeline,
    night: Night,
    *,
    force: bool = False,
    dry_run: bool = False,
    prefect_flow_run_id: str | None = None,
    overtaken: str = "",
    still_due: frozenset[datetime] = frozenset(),
    on_end: Callable[[NightRun], object] | None = None,
) -> Iterator[NightRun]:
    """Claim the night: its row is in SQL before any work starts, and is settled whatever comes.

    One run at a time works on a pipeline. A second one, and one that comes too late, is recorded as superseded and
    handed out closed (`is_open` False), as is a night that has ended already or waits for a person.

    Args:
        overtaken: why a scheduled run is not worth starting, as the scheduler knows it; '' where it is.
        still_due: instants (aware) of other nights that the scheduler has yet to start, and that are not missed.
        on_end: called with a run that did something, once its row says how it ended; not when it was cancelled, which
            has to be quick, nor when the run is not its own any more.

    Raises:
        NightgateError: home or database cannot be used. Inside the block, whatever the steps raise.
    """
    home = open_home()
    with Database.open(home) as db:
        opened = claim.open_run(
            db,
            pipeline,
            night,
            force=force,
            dry_run=dry_run,
            prefect_flow_run_id=prefect_flow_run_id,
            overtaken=overtaken,
        )
        run = NightRun(pipeline, night, home, db, opened)
        if not run.is_open:
            yield run
            return
        with logs.night_context(
            pipeline=pipeline.name,
            night=night.date,
            run_id=run.run_id,
            attempt=run.attempt,
            directory=run.directory,
        ):
            try:
                with _settled(run), Heartbeat(db, run.run_id, run.attempt) as run.heartbeat:
                    if night.trigger == "schedule" and night.scheduled_for is not None and not dry_run:
                        reconciliation.record_missed(db, pipeline, night.scheduled_for, still_due=still_due)
                    champion_link.update(db, pipeline.name)
                    yield run
            except Exception:
                if on_end is not None and _ended_as_told(run):
                    on_end(run)
                raise
            if on_end is not None:
                on_end(run)


_WORDS = {
    "KeyboardInterrupt": "Ctrl-C or SIGTERM",
    "TerminationSignal": "Cancel in the UI or SIGTERM",
    "Pause": "Pause",
}
"""What stopped a run, by the name of its exception; two are Prefect's, which the library does not import."""
_AGAIN = {
    "KeyboardInterrupt": "run the same command again, without --force, to go on from the last checkpoint",
    "TerminationSignal": "Retry in the UI, or the same command again, goes on from the last checkpoint",
    "Pause": "Resume in the UI goes on from the last checkpoint",
}

_LEASE_LOST = (
    "Prefect ended the run: its lease on the deployment was not renewed, because the server was away or restarted; "
    "the last checkpoint is kept"
)
"""Prefect raises a CancelledError then, and at no other time in a flow that is not asynchronous."""


@contextmanager
def _settled(run: NightRun) -> Iterator[None]:
    """Write down how the run ended, whatever ended it."""
    try:
        yield
    except Exception as error:
        told = InternalError.of(error)
        _finish(run, "failed", told.reason, told.error_type, told.next_step)
        raise
    except BaseException as stop:
        # Ctrl-C, SIGTERM, or a cancel from Prefect, which raises a BaseException too. Closing of generators is none.
        name = type(stop).__name__
        if name == "CancelledError":
            _finish(run, "failed", _LEASE_LOST, "crashed", _AGAIN["TerminationSignal"])
            raise
        reason = f"stopped by {_WORDS.get(name, name)}; the last checkpoint is kept"
        _finish(run, "cancelled", reason, "cancelled", _AGAIN.get(name, _AGAIN["KeyboardInterrupt"]))
        raise


def _ended_as_told(run: NightRun) -> bool:
    """Whether the row says what this process believes: a run that another attempt has taken over, or that was ended
    from outside, is not its to tell of any more.
    """
    try:
        now = lifecycle.outcome(run.db, run.run_id)
    except NightgateError:
        return False
    return (now.attempt, now.status) == (run.attempt, run.status)


def _finish(run: NightRun, status: str, reason: str, error_type: str, next_step: str) -> None:
    if run.status != "running":
        return  # it had come to its end
    reason, next_step = logs.without_secrets(reason), logs.without_secrets(next_step)
    run.status, run.reason = status, reason
    try:
        lifecycle.finish_run(
            run.db, run.run_id, run.attempt, status, reason=reason, error_type=error_type, next_step=next_step
        )
    except NightgateError as error:
        # The first error is the one to tell; the next run of this pipeline settles the row.
        log.warning("could not write down that run %s %s: %s", run.run_id, status, error)
