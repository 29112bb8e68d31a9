"""What follows the end of a run, until it is done: the champion link, removal of files, statistics of the
database, the report, and the page.

The end of a run is one transaction; these steps come after it. Each is idempotent, and `closed_at` of the run's row
records that all are done. The end of a night, the same command again, a retry, the next night of the pipeline and
`reconcile` call `close_ended`: each finishes what a killed process or a full disk left. The event of an end needs
Prefect's server and is recorded on its own (`flows.events`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from nightgate.config.pipeline import Pipeline
from nightgate.database.schema import Run
from nightgate.database.transactions import Database
from nightgate.durable_files import remove_drafts
from nightgate.errors import InternalError, NightgateError
from nightgate.operations import reconciliation
from nightgate.registry import champion_link, data_retention, retention
from nightgate.runs.claim import RESUMABLE
from nightgate.runs.run_row import RunRow
from nightgate.training.checkpoints import remove_checkpoints

log = logging.getLogger(__name__)


def close_ended(db: Database, pipeline_name: str, pipeline: Pipeline | None = None) -> list[RunRow]:
    """Do what follows the end of every run of the pipeline that is not closed; returns those that are closed now.

    Args:
        pipeline: its configuration now, for retention; None: as it was for the run.
    """
    if wrong := champion_link.update(db, pipeline_name):
        log.info("repaired: %s", wrong)
    try:
        return [row for row in reconciliation.unclosed(db, pipeline_name) if _close(db, row, pipeline)]
    except NightgateError as error:  # the database is away
        log.warning("ends of %s are left to the next run or `reconcile`: %s", pipeline_name, error.reason)
        return []


def _close(db: Database, row: RunRow, pipeline: Pipeline | None) -> bool:
    """Whether the run is closed. A step that fails is logged and does not keep the others from their work."""
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        # First what frees space: a full disk may be why the rest is missing.
        ("its checkpoints", partial(_remove_files, db, row)),
        ("old versions", lambda: retention.sweep(db, db.home, pipeline or _configured(db, row))),
        # After the versions: those that are left say which snapshots are needed.
        ("old snapshots and runs", lambda: data_retention.sweep(db, pipeline or _configured(db, row))),
        ("the statistics of the database", db.gather_statistics),
        ("its report or the page of its pipeline", partial(_write_pages, db, row)),
    )
    done = True
    for what, step in steps:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - no night may fail for what follows its end
            log.warning("%s of run %s: %s", what, row.run_id, InternalError.of(error).reason)
            # What can be mended is tried again. A bug would fail every time.
            done = done and not isinstance(error, NightgateError | OSError | MemoryError)
    if done:
        reconciliation.mark_closed(db, row)
    return done


def _remove_files(db: Database, row: RunRow) -> None:
    directory, is_final = db.home.runs / row.run_id, row.status not in RESUMABLE
    if is_final:
        remove_checkpoints(directory)
    # The training of a run that can be resumed may still be writing its last checkpoint.
    remove_drafts(directory, nested=is_final)


def _configured(db: Database, row: RunRow) -> Pipeline:
    return Pipeline.model_validate(db.read(lambda session: session.get_one(Run, row.run_id).config))


def _write_pages(db: Database, row: RunRow) -> None:
    if row.status == "superseded" and not (db.home.runs / row.run_id).is_dir():
        return  # it did nothing
    # Here and not above: its import would delay the start of a night.
    from nightgate.pages import page
    from nightgate.reports import report

    report.write(db.home, row.run_id)
    page.write_page(db, db.home.page(row.pipeline), row.pipeline)
