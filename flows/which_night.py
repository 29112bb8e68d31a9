"""Which night a flow run belongs to, and which other runs it waits for or gives way to."""

from __future__ import annotations

import logging
import time
from datetime import date, datetime
from uuid import UUID

from prefect import runtime

from flows.reconcile import due_nights
from nightgate.config.pipeline import Pipeline
from nightgate.database.transactions import Database, prepare
from nightgate.home import open_home
from nightgate.runs import claim
from nightgate.schedule import Night, chosen_night, scheduled_night, tonight

log = logging.getLogger("nightgate.flows")

SECONDS_BETWEEN_CHECKS = 10.0
"""While a manual run is waited for."""


def night_of_this_run(pipeline: Pipeline, chosen: date | None) -> Night:
    """The night that this flow run began with if it is retried or resumed; else `chosen`, the scheduled one, or today.

    A scheduled night waits here for a manual run that is at work.

    Raises:
        ConfigurationError: the schedule has no night on the chosen date, or it is still to come.
        DatabaseError: the database cannot be used.
    """
    home = open_home()
    prepare(home)
    with Database.open(home) as db:
        begun = claim.night_of(db, runtime.flow_run.id)
    if begun is not None:
        return begun
    if chosen is not None:
        return chosen_night(pipeline.schedule, chosen)
    if not _is_scheduled():
        return tonight(pipeline.schedule)
    # Prefect's times are pendulum's, which lose their timezone when a duration is taken from them in stdlib's UTC.
    scheduled_for = datetime.fromisoformat(runtime.flow_run.scheduled_start_time.isoformat())
    night = scheduled_night(pipeline.schedule, scheduled_for)
    wait_for_manual_run(pipeline.name, night.date)
    return night


def wait_for_manual_run(pipeline_name: str, night: date) -> None:
    """Wait for an active dry run or manual run of another night: a scheduled run would be superseded by it, and nothing
    would run the night later.
    """
    logged = ""
    with Database.open(open_home()) as db:
        while active := claim.active_manual_run(db, pipeline_name, night):
            if active != logged:
                log.warning("waiting for %s to end before the night of %s begins", active, night)
            logged = active
            time.sleep(SECONDS_BETWEEN_CHECKS)


def nights_due() -> frozenset[datetime]:
    """Instants (UTC) of this deployment's scheduled nights that Prefect has yet to start or to end; empty for a manual
    run.
    """
    if not _is_scheduled() or runtime.deployment.id is None:
        return frozenset()
    return due_nights(UUID(runtime.deployment.id))


def _is_scheduled() -> bool:
    return "auto-scheduled" in (runtime.flow_run.tags or [])
