"""Heartbeats for suspended runs, which have no process, and the names of the automations that wait for heartbeats.

Prefect reports once that a run is suspended. A server on SQLite sometimes loses such an event ('database is locked'),
and a last heartbeat may come after it. So `reconcile` sends a heartbeat every few minutes for each run that waits for
an approval, and the automation that crashes silent runs (`deployments.automations`) leaves it alone.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from uuid import UUID, uuid4

from prefect.events.schemas.events import Event, RelatedResource, Resource

from flows.events import send
from nightgate.database.transactions import Database
from nightgate.registry.approvals import open_approvals

log = logging.getLogger("nightgate.flows")

HEARTBEAT = "nightgate.sign-of-life"
# Names of the automations that `deployments.automations` installs and the doctor looks for.
LOST_RUNS = "nightgate: a run without a heartbeat has crashed"
LOST_CANCELLATIONS = "nightgate: a run that is being cancelled without a heartbeat is cancelled"
ENDED_NIGHTS = "nightgate: report how a night ended"
LATE_NIGHTS = "nightgate: report that a night does not start"


def send_heartbeats(db: Database) -> None:
    """Send a heartbeat for every run that waits for an approval by its row."""
    for one in open_approvals(db):
        if one.prefect_flow_run_id is None:
            continue
        try:
            send(heartbeat(UUID(one.prefect_flow_run_id)))
        except Exception as error:  # noqa: BLE001 - the next reconcile sends it again
            log.warning("no heartbeat was sent for run %s, which waits for an approval: %s", one.run_id, error)
            return


def heartbeat(flow_run_id: UUID, tag: str = "nightgate") -> Event:
    """The event about one flow run, with the tag of all our runs."""
    related = {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}
    return Event(
        occurred=datetime.now(UTC),
        event=HEARTBEAT,
        resource=Resource(root={"prefect.resource.id": f"prefect.flow-run.{flow_run_id}"}),
        related=[RelatedResource(root=related)],
        payload={},
        id=uuid4(),
    )
