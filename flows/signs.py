"""A sign of life for runs that cannot give one: those that are suspended until somebody approves their candidate.

The automation that takes silent runs for dead (`deployments.automations`) hears once that a run is suspended. A server
on SQLite loses such an event now and then ('database is locked'), and a last heartbeat may come after it: so
`reconcile` says again, every few minutes, that the run waits.
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

SIGN_OF_LIFE = "nightgate.sign-of-life"
# Names of the automations that `deployments.automations` installs, and the doctor looks for.
ZOMBIES = "nightgate: a run without a sign of life has crashed"
UNCANCELLED = "nightgate: a run that is being cancelled without a sign of life is cancelled"
TELL = "nightgate: tell how a night ended"
TELL_LATE = "nightgate: tell that a night does not start"


def vouch_for_waiting(db: Database) -> None:
    """Say of every run that the ledger knows to wait for a person that it is well."""
    for one in open_approvals(db):
        if one.prefect_flow_run_id is None:
            continue
        try:
            send(sign_of_life(UUID(one.prefect_flow_run_id)))
        except Exception as error:  # noqa: BLE001 - the next reconcile says it again
            log.warning("that run %s waits for a person could not be told: %s", one.run_id, error)
            return


def sign_of_life(flow_run_id: UUID, tag: str = "nightgate") -> Event:
    """The event, about a run of Prefect's and with the tag that all of ours bear."""
    related = {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}
    return Event(
        occurred=datetime.now(UTC),
        event=SIGN_OF_LIFE,
        resource=Resource(root={"prefect.resource.id": f"prefect.flow-run.{flow_run_id}"}),
        related=[RelatedResource(root=related)],
        payload={},
        id=uuid4(),
    )
