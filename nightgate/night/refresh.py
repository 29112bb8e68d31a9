"""A refresh on its own: take in what is new in the source without a night, which goes on from its snapshot.

refresh(load_pipeline("sample"))                                    # nightgate refresh sample
"""

from __future__ import annotations

import logging
import secrets
from datetime import UTC, datetime
from functools import partial

from nightgate import logs
from nightgate.config.checks import NONE_ALLOWED, Allowed
from nightgate.config.pipeline import Pipeline
from nightgate.data import refresh as data
from nightgate.data.refresh import Refreshed
from nightgate.data.tip import hold_data
from nightgate.database.refresh_schema import Refresh
from nightgate.database.transactions import Database
from nightgate.errors import DataError, InternalError, NightgateError
from nightgate.home import open_home
from nightgate.night.drift import drift_of
from nightgate.registry import data_retention
from nightgate.runs import records
from nightgate.schedule import tonight

log = logging.getLogger(__name__)


def refresh(
    pipeline: Pipeline, *, allowed: Allowed = NONE_ALLOWED, prefect_flow_run_id: str | None = None
) -> Refreshed:
    """Take in what is new in the source up to now, and record what is found as a night does.

    It waits for another refresh of the pipeline, and for nothing else of a night at work.

    Raises:
        NightgateError: the source cannot be read, a data check failed, or home or database cannot be used. Nothing is
            taken in.
    """
    name, began = pipeline.name, datetime.now(UTC)
    refresh_id = f"{name}-refresh-{began:%Y%m%d}-{secrets.token_hex(3)}"
    with Database.open(open_home()) as db:
        with (
            logs.night_context(pipeline=name, night="refresh", run_id=refresh_id),
            hold_data(db.home, name, refresh_id),
        ):
            night = tonight(pipeline.schedule)
            row = Refresh(
                refresh_id=refresh_id,
                pipeline=name,
                night=night.date,
                status="completed",
                data_until=night.data_until,
                started_at=began,
                prefect_flow_run_id=prefect_flow_run_id,
            )
            before = records.previous_snapshot(db, name, before=night.data_until, of_refreshes=True)
            recorded = partial(records.has_refresh, db, name)
            try:
                found = data.refresh(pipeline, night, db.home, before, allowed=allowed.checks, recorded=recorded)
            except DataError as error:
                error.next_step = error.next_step.replace(f"nightgate run {name}", f"nightgate refresh {name}")
                row.status, row.error_type = "failed", error.error_type
                row.reason, row.next_step = logs.without_secrets(error.reason), logs.without_secrets(error.next_step)
                records.record_refresh(db, row, error, allowed)
                raise
            drift = drift_of(db, pipeline, found.snapshot, night.data_until)
            records.record_refresh(db, row, found, allowed, drift)
        try:
            data_retention.sweep(db, pipeline)
        except (NightgateError, OSError) as error:  # the next night does it
            log.warning("old snapshots of %s: %s", name, InternalError.of(error).reason)
    return found
