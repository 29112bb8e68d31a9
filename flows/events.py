"""Every end of a night as a Prefect event `nightgate.<status>`, on which automations and other deployments key.

An end is announced from its row and marked there once the server has taken the event: what a dying process could not
tell, the next run or `reconcile` tells.
"""

from __future__ import annotations

import logging
from datetime import UTC, date, datetime
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import httpx
from prefect.client.orchestration import get_client
from prefect.events.schemas.events import Event, RelatedResource, Resource

from nightgate.database.transactions import Database
from nightgate.errors import InternalError
from nightgate.logs import without_secrets
from nightgate.operations.reconciliation import mark_announced, unannounced
from nightgate.runs.run_row import RunRow

log = logging.getLogger("nightgate.flows")


def announce_ends(db: Database) -> None:
    """Send the event of every end that was not announced yet. A server that is away loses none: they stay marked so.

    One that two processes send at once, or that is sent again because its mark was lost, is one event for the server.
    """
    for end in unannounced(db):
        try:
            send(_event_of(end))
        except Exception as error:  # noqa: BLE001 - whatever keeps it from being sent, the night itself has ended well
            log.warning("the end of run %s was not announced, the next run tries again: %s", end.run_id, error)
            if not _is_about_one(error):
                return
        else:
            mark_announced(db, end)


def _is_about_one(error: Exception) -> bool:
    """Whether the server would not have this one event: the others may be taken all the same."""
    if not isinstance(error, httpx.HTTPStatusError):
        return isinstance(error, ValueError)
    # Those three are about us, or about how much we ask.
    return error.response.is_client_error and error.response.status_code not in {401, 403, 429}


def announce_unclaimed(pipeline: str, night: date | None, error: Exception, flow_run_id: str | None) -> None:
    """A night failed before it had a row from which its end would be told."""
    told = InternalError.of(error)
    payload = {
        "pipeline": pipeline,
        "night": night.isoformat() if night else None,
        "status": "failed",
        "reason": without_secrets(told.reason),
        "error_type": told.error_type,
        "next_step": without_secrets(told.next_step) or "look at the log of its run",
    }
    announce("failed", pipeline, payload, flow_run_id)


def announce_stall(pipeline: str, night: date, run_id: str, reason: str, flow_run_id: str | None) -> None:
    """A training stood still and was started again: the night goes on, and somebody may want to look."""
    payload = {
        "pipeline": pipeline,
        "night": night.isoformat(),
        "run_id": run_id,
        "status": "stalled",
        "reason": without_secrets(reason),
        "next_step": "look at the machine's load",
    }
    announce("stalled", pipeline, payload, flow_run_id)


def announce(name: str, pipeline: str, payload: dict[str, Any], flow_run_id: str | None) -> None:
    """Send what has no row to be told from, at once or never: it is as it is, whether or not somebody is told."""
    try:
        send(make_event(name, pipeline, payload, flow_run_id))
    except Exception as error:  # noqa: BLE001 - as above
        log.warning("that %s was %s could not be announced: %s", pipeline, name.replace("_", " "), error)


def make_event(
    name: str, pipeline: str, payload: dict[str, Any], flow_run_id: str | None, event_id: UUID | None = None
) -> Event:
    """`nightgate.<name>` about a pipeline, with what belongs to it."""
    related = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in ("nightgate",)]
    if flow_run_id:
        related.append(
            {"prefect.resource.id": f"prefect.flow-run.{UUID(flow_run_id)}", "prefect.resource.role": "flow-run"}
        )
    return Event(
        occurred=datetime.now(UTC),
        event=f"nightgate.{name}",
        resource=Resource(
            root={"prefect.resource.id": f"nightgate.pipeline.{pipeline}", "prefect.resource.name": pipeline}
        ),
        related=[RelatedResource(root=one) for one in related],
        payload=payload,
        id=event_id or uuid4(),
    )


def send(event: Event) -> None:
    """Hand an event to the server, and know that it was taken: Prefect's own client sends in the background."""
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/events", json=[event.model_dump(mode="json")])
        answer.raise_for_status()


_WHERE_NOTHING_IS_AMISS = {
    "promoted": "nothing to do; nightgate rollback {pipeline} --reason TEXT undoes it",
    "held": "nothing to do: the champion reigns on",
    "skipped": "nothing to do: the next night with news is run",
    "superseded": "nothing to do: the newer run counts",
}
_LOOK = "look at it: nightgate history {pipeline} --run {run_id}"


def next_step(end: RunRow) -> str:
    """What its row says, else that there is nothing to do."""
    usual = _WHERE_NOTHING_IS_AMISS.get(end.status, _LOOK)
    return end.next_step or usual.format(pipeline=end.pipeline, run_id=end.run_id)


def _event_of(end: RunRow) -> Event:
    payload = {
        "pipeline": end.pipeline,
        "night": end.night.isoformat(),
        "run_id": end.run_id,
        "status": end.status,
        "reason": end.reason,
        "error_type": end.error_type,
        "next_step": next_step(end),
        "dry_run": end.dry_run,
        "test_f1": end.test_f1,
        "model_version": end.model_version,
        "champion_version": end.champion_version,
    }
    event_id = uuid5(NAMESPACE_URL, f"nightgate:{end.run_id}/{end.attempt}/{end.status}")
    return make_event(end.status, end.pipeline, payload, end.prefect_flow_run_id, event_id)
