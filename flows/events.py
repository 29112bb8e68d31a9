"""Prefect events for every end of a night and alarm of the champion, to which automations and deployments can react.

An event is made from the run's row, which is marked once the server has accepted it. An event that a dying process
could not publish is published by the next run or `reconcile`. The report precedes it, on the page of the Prefect run.

Suspended runs, which have no process, get heartbeats. Prefect reports once that a run is suspended; a server on SQLite
sometimes loses such an event ('database is locked'), and a last heartbeat may come after it. So `reconcile` sends one
every few minutes for each run that waits for an approval, and the automation that crashes silent runs
(`deployments.automations`) leaves it alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from functools import partial
from typing import Any, Literal
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactFilter
from prefect.events.schemas.events import Event, RelatedResource, Resource

from flows.homes import deployments_of, own, own_tag
from nightgate.database.transactions import Database
from nightgate.errors import InternalError, NightgateError
from nightgate.home import Home, open_home
from nightgate.logs import without_secrets
from nightgate.night.reasons import ALARMS, answer
from nightgate.operations.reconciliation import mark_announced, unannounced
from nightgate.pipeline_files import load_by_name
from nightgate.plain_text import with_form_fields
from nightgate.registry import versions
from nightgate.registry.approvals import open_approvals
from nightgate.registry.versions import VersionRow
from nightgate.runs import evaluations
from nightgate.runs.evaluations import Evaluation
from nightgate.runs.run_row import RunRow
from nightgate.settings import read_settings

log = logging.getLogger("nightgate.flows")

StartingAlarm = Literal["", "champion_dropped", "drifted"]
"""Names of events on which a night is started; '' for none."""
STARTING = {"champion_dropped": "champion_dropped", "drift": "drifted"}
"""The same by their names in `[schedule] train_on`."""


def announce_own_ends() -> None:
    """Publish what is pending in this process's home; what fails here is retried by the next run or by `reconcile`."""
    try:
        with Database.open(open_home()) as db:
            announce_all(db)
    except NightgateError as error:
        log.warning("events were not published, they will be retried: %s", error.reason)


def announce_all(db: Database) -> None:
    """Publish reports and events of all ends and alarms that were not published yet; the next call retries the others.

    The server stores an event once, even if two processes publish it or its mark was lost.
    """
    announce_ends(db)
    announce_alarms(db)


def announce_ends(db: Database) -> None:
    """As `announce_all`, of ends."""
    for end in unannounced(db):
        _show_report(db.home, end)
        if not _publish(f"run {end.run_id}", map(partial(_event_of, db), [end]), partial(mark_announced, db, end)):
            return


def announce_alarms(db: Database) -> None:
    """As `announce_all`, of alarms of evaluations."""
    for one in evaluations.unannounced(db):
        about = f"the evaluation of {one.pipeline} on {one.snapshot_id}"
        if not _publish(about, _events_of_alarms(db, one), partial(evaluations.mark_announced, db, one)):
            return


def _publish(about: str, found: Iterable[Event], mark: Callable[[], object]) -> bool:
    """Send events and mark them as published. False: the server is away, and others would not get there either."""
    try:
        for event in found:
            send(event)
    except Exception as error:  # noqa: BLE001 - an event that cannot be sent must not fail the night
        log.warning("an event of %s was not published, the next run tries again: %s", about, error)
        return _concerns_this_event(error)
    mark()
    return True


def _show_report(home: Home, end: RunRow) -> None:
    """Add the report to the page of the end's Prefect run, if that did anything and its page does not have it.

    A cancel has to be quick.
    """
    did_nothing = not (home.runs / end.run_id).is_dir()
    if end.prefect_flow_run_id is None or did_nothing or end.status == "cancelled":
        return
    try:
        # Here and not above: its import would delay the start of a night.
        from nightgate.reports import report

        artifact = ArtifactCreate(
            key=f"{end.pipeline.replace('_', '-')}-night",  # lowercase letters, digits and dashes
            type="markdown",
            data=report.markdown(home, end.run_id),
            description=f"Night of {end.night}: {end.status}",
            flow_run_id=UUID(end.prefect_flow_run_id),
        )
        there = ArtifactFilter.model_validate(
            {"key": {"any_": [artifact.key]}, "flow_run_id": {"any_": [artifact.flow_run_id]}}
        )
        with get_client(sync_client=True) as client:
            # An end whose event is refused comes here at every reconcile.
            if all(one.data != artifact.data for one in client.read_artifacts(artifact_filter=there)):
                client.create_artifact(artifact)
    except Exception as error:  # noqa: BLE001 - a missing page must not fail the night
        log.warning("the page of run %s has no report: %s", end.run_id, error)


def _concerns_this_event(error: Exception) -> bool:
    """Whether the server refused this one event, so that it may accept others."""
    if not isinstance(error, httpx.HTTPStatusError):
        return isinstance(error, ValueError)
    # These three concern the client or its rate, not the event.
    return error.response.is_client_error and error.response.status_code not in {401, 403, 429}


def announce_unclaimed(pipeline: str, night: date | None, error: Exception, flow_run_id: str | None) -> None:
    """Publish the failure of a night that has no row yet."""
    failure = InternalError.of(error)
    payload = {
        "pipeline": pipeline,
        "night": night.isoformat() if night else None,
        "status": "failed",
        "reason": without_secrets(failure.reason),
        "error_type": failure.error_type,
        "next_step": without_secrets(failure.next_step) or "read the log of its run",
    }
    announce("failed", pipeline, payload, flow_run_id)


def announce_stall(pipeline: str, night: date, run_id: str, reason: str, flow_run_id: str | None) -> None:
    """Publish that a training stalled and was restarted; its night goes on."""
    payload = {
        "pipeline": pipeline,
        "night": night.isoformat(),
        "run_id": run_id,
        "status": "stalled",
        "reason": without_secrets(reason),
        "next_step": "check the machine's load",
    }
    announce("stalled", pipeline, payload, flow_run_id)


def announce(name: str, pipeline: str, payload: dict[str, Any], flow_run_id: str | None) -> None:
    """Publish an event that belongs to no row, once: it is not retried."""
    try:
        send(make_event(name, pipeline, payload, flow_run_id))
    except Exception as error:  # noqa: BLE001 - as above
        log.warning("the event nightgate.%s of %s was not published: %s", name, pipeline, error)


def make_event(
    name: str,
    pipeline: str,
    payload: dict[str, Any],
    flow_run_id: str | None,
    event_id: UUID | None = None,
    starts: UUID | None = None,
) -> Event:
    """The event `nightgate.<name>` about a pipeline, with the tag and the flow run as related resources.

    Args:
        starts: The deployment that the automation for alarms starts on it.
    """
    related = [{"prefect.resource.id": "prefect.tag.nightgate", "prefect.resource.role": "tag"}]
    if flow_run_id:
        related.append(
            {"prefect.resource.id": f"prefect.flow-run.{UUID(flow_run_id)}", "prefect.resource.role": "flow-run"}
        )
    if starts:
        related.append({"prefect.resource.id": f"prefect.deployment.{starts}", "prefect.resource.role": "deployment"})
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
    """Post an event and raise if the server does not accept it; Prefect's own client sends in the background."""
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/events", json=[event.model_dump(mode="json")])
        answer.raise_for_status()


_WITHOUT_A_PROBLEM = {
    "promoted": "nothing to do; `nightgate rollback {pipeline} --reason TEXT` undoes it",
    "held": "nothing to do: the champion stays",
    "skipped": "nothing to do: the next night that has a reason trains",
    "superseded": "nothing to do: the newer run counts",
}
_LOOK = "look at it: nightgate history {pipeline} --run {run_id}"


def next_step(end: RunRow) -> str:
    """The next step from the run's row, else the usual one for its status."""
    usual = _WITHOUT_A_PROBLEM.get(end.status, _LOOK)
    return end.next_step or usual.format(pipeline=end.pipeline, run_id=end.run_id)


def hand_over(db: Database, version: VersionRow) -> dict[str, Any]:
    """What another system needs to fetch a version, for the event of its promotion."""
    return {
        "model_version": version.version,
        "run_id": version.run_id,
        "test_f1": version.f1,
        "base_model": version.base_model,
        "base_model_revision": version.base_model_revision,
        "home": str(db.home.root),
        "path_in_home": version.path,
        "path": str(db.home.absolute(version.path)),
    }


def _event_of(db: Database, end: RunRow) -> Event:
    payload = {
        "pipeline": end.pipeline,
        "night": end.night.isoformat(),
        "run_id": end.run_id,
        "status": end.status,
        "reason": end.reason,
        "error_type": end.error_type,
        "next_step": with_form_fields(next_step(end)),
        "dry_run": end.dry_run,
        "test_f1": end.test_f1,
        "model_version": end.model_version,
        "champion_version": end.champion_version,
    }
    if end.status == "promoted":
        [own] = (one for one in versions.versions(db, end.pipeline) if one.version == end.model_version)
        payload |= hand_over(db, own)
    return make_event(end.status, end.pipeline, payload, end.prefect_flow_run_id, event_id(end))


def event_id(end: RunRow) -> UUID:
    """The id of the event of an end, however often it is sent."""
    return uuid5(NAMESPACE_URL, f"nightgate:{end.run_id}/{end.attempt}/{end.status}")


# --- alarms ---


def _events_of_alarms(db: Database, one: Evaluation) -> Iterator[Event]:
    """An event for each name in `train_on` that an alarm stands for, if that is new or starts a night.

    The first event that starts a night names its deployment.
    """
    payload = {
        "pipeline": one.pipeline,
        "model_version": one.model_version,
        "snapshot_id": one.snapshot_id,
        "evaluated_at": one.evaluated_at.isoformat(),
        "run_id": one.run_id,
        "rows": one.rows,
        "f1": one.f1,
        "f1_ci_low": one.f1_ci_low,
        "f1_ci_high": one.f1_ci_high,
        "alarms": list(one.alarms),
        "reason": one.reason,
        "next_step": f"nightgate run {one.pipeline}",
    }
    starting, news = _starting(db, one), evaluations.news(db, one)
    for name, event in STARTING.items():
        if ALARMS[name].isdisjoint(one.alarms):
            continue
        starts = _deployment_of(one.pipeline) if name in starting else None
        if starts:
            starting = ()
        elif ALARMS[name].isdisjoint(news):
            continue
        event_id = uuid5(NAMESPACE_URL, f"nightgate:{one.pipeline}/{one.model_version}/{one.evaluated_at}/{event}")
        yield make_event(event, one.pipeline, payload, None, event_id, starts)


def _starting(db: Database, one: Evaluation) -> Sequence[str]:
    """The names in `train_on` on whose alarms a night is started now: those that no run has trained for.

    None where a night has evaluated, which trains itself or will not, or the champion has been replaced.
    """
    champion = versions.champion(db, one.pipeline)
    if one.run_id is not None or champion is None or champion.version != one.model_version:
        return ()
    try:
        train_on = load_by_name(one.pipeline).schedule.train_on
    except NightgateError as error:
        log.warning("no night is started on alarms of %s: %s", one.pipeline, error.reason)
        return ()
    return [name for name in train_on if not answer(db, champion, STARTING[name])]


def _deployment_of(pipeline: str) -> UUID | None:
    """The deployment that starts a night of the pipeline: its own, in its queue, else the one for all."""
    with get_client(sync_client=True) as client:
        found = own(deployments_of(client, "nightly"), own_tag())
    ours = [one for one in found if (one.parameters or {}).get("pipeline") == pipeline]
    shared = [one for one in found if one.name == read_settings().name and not (one.parameters or {}).get("pipeline")]
    return next((one.id for one in (*ours, *shared)), None)


# --- heartbeats ---

HEARTBEAT = "nightgate.sign-of-life"
# Names of the automations that `deployments.automations` installs and the doctor looks for.
LOST_RUNS = "nightgate: a run without a heartbeat has crashed"
LOST_CANCELLATIONS = "nightgate: a run that is being cancelled without a heartbeat is cancelled"
ENDED_NIGHTS = "nightgate: report how a night ended"
LATE_NIGHTS = "nightgate: report that a night does not start"
STARTED_NIGHTS = "nightgate: start a night on an alarm"


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
