"""A run of a night from its claim to its end: a row in SQL before any work, one process a pipeline, and a settled row
whatever ends it. What is done in between is in `nightgate.steps`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from nightgate import gate, ledger, metrics
from nightgate.config import Pipeline
from nightgate.database import Database
from nightgate.errors import NightgateError, StorageError, storage_errors
from nightgate.home import Home, open_home
from nightgate.intervals import Interval
from nightgate.jobs import TrainResult
from nightgate.nights import Night
from nightgate.snapshots import Snapshot

log = logging.getLogger(__name__)


class NightRun:
    """One run of one night: identity, places, and what each step found for the next one."""

    def __init__(self, pipeline: Pipeline, night: Night, home: Home, db: Database, opened: ledger.OpenedRun) -> None:
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
        self.snapshot: Snapshot
        self.started_from: int | None = None
        """The champion's version that training went on from; None: the base model."""
        self.restarts = 0
        """How often a process of this attempt stood still and was started again."""
        self.trained: TrainResult
        self.champion: ledger.VersionRow | None = None
        self.champion_flaw = ""
        """Why the champion's score tonight is no evidence; '' where it is."""
        self.champion_reuse: gate.Reuse | None = None
        """How much of the champion's score tonight is of an earlier night."""
        self.test_rows: pd.DataFrame
        self.predictions: dict[str, NDArray[np.int64]]
        """Class indices of the test rows by `candidate` and, if one reigns, `champion`."""
        self.test_scores: metrics.Scores
        self.test_interval: Interval | None
        self.decision: gate.Decision
        self.version: int

    def __str__(self) -> str:
        return self.run_id

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
) -> Iterator[NightRun]:
    """Claim the night: its row is in SQL before any work starts, and is settled whatever comes.

    One process at a time works on a pipeline: the lock is the kernel's, so a dead owner never holds it. A second run
    is recorded as superseded and handed out closed (`is_open` False), as is a night that has ended already.

    Raises:
        NightgateError: home or database cannot be used. Inside the block, whatever the steps raise.
    """
    home = open_home()
    with Database.open(home) as db:
        # Never the soft kind, whose owner is a file: it would outlive a dead process.
        lock = FileLock(home.locks / f"{pipeline.name}.lock", timeout=0, fallback_to_soft=False)
        try:
            with storage_errors(home.locks):
                lock.acquire()
        except Timeout:
            yield _superseded(pipeline, night, home, db, dry_run, prefect_flow_run_id)
            return
        except (OSError, NotImplementedError) as error:
            raise StorageError(
                f"cannot lock {lock.lock_file}: {error}",
                next_step="put NIGHTGATE_HOME on a file system with locks (flock), and leave that file alone",
            ) from error
        try:
            opened = ledger.open_run(
                db, pipeline, night, force=force, dry_run=dry_run, prefect_flow_run_id=prefect_flow_run_id
            )
            run = NightRun(pipeline, night, home, db, opened)
            with _settled(run):
                yield run
        finally:
            lock.release()


@contextmanager
def _settled(run: NightRun) -> Iterator[None]:
    """Write down how the run ended, whatever ended it."""
    try:
        yield
    except NightgateError as error:
        _finish(run, "failed", error.reason, error.error_type, error.next_step)
        raise
    except Exception as error:
        _finish(
            run,
            "failed",
            f"{type(error).__name__}: {error}",
            "internal",
            "this is a fault of Nightgate: report it with the log, then run the same command again",
        )
        raise
    except BaseException as stop:
        # Ctrl-C, SIGTERM, or a cancel from Prefect, which raises a BaseException too. Closing of generators is none.
        reason = f"stopped by {type(stop).__name__}; the last checkpoint is kept"
        _finish(run, "cancelled", reason, "cancelled", "run the same command again to go on from the last checkpoint")
        raise


def _finish(run: NightRun, status: str, reason: str, error_type: str, next_step: str) -> None:
    if not run.is_open or run.status in {"promoted", "held"}:
        return
    run.status, run.reason = status, reason
    try:
        ledger.finish_run(
            run.db, run.run_id, run.attempt, status, reason=reason, error_type=error_type, next_step=next_step
        )
    except NightgateError as error:
        # The first error is the one to tell; the next run of this pipeline settles the row.
        log.warning("could not write down that run %s %s: %s", run.run_id, status, error)


def _superseded(
    pipeline: Pipeline, night: Night, home: Home, db: Database, dry_run: bool, prefect_flow_run_id: str | None
) -> NightRun:
    first = ledger.running_run(db, pipeline.name)
    named = f"run {first.run_id} (process {first.pid} on {first.host})" if first else "another run"
    reason = f"{named} of {pipeline.name} is at work already; this one ended at once"
    opened = ledger.record_superseded(
        db, pipeline, night, reason, dry_run=dry_run, prefect_flow_run_id=prefect_flow_run_id
    )
    log.warning("superseded: %s", reason)
    return NightRun(pipeline, night, home, db, opened)
