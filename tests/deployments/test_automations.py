"""Automations on a real server: the webhook is called, and runs without a heartbeat are ended."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.events.schemas.events import Event, RelatedResource, Resource
from prefect.server.events.schemas.automations import AutomationCore as ServerAutomation
from prefect.server.events.schemas.automations import EventTrigger as ServerTrigger
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Completed, Late, Pending, Running, Suspended

from deployments.automations import FORMER_NAMES, SILENCE, WEBHOOK, install, lost_runs
from deployments.deploy import FLOW_ENVIRONMENT
from flows import reconcile
from flows.events import (
    ENDED_NIGHTS,
    HEARTBEAT,
    LATE_NIGHTS,
    LOST_CANCELLATIONS,
    LOST_RUNS,
    STARTED_NIGHTS,
    heartbeat,
    make_event,
    send,
    send_heartbeats,
)
from nightgate.database.transactions import Database
from nightgate.errors import ConfigurationError
from nightgate.registry import approvals
from nightgate.runs import lifecycle
from tests.support.night_rows import judged_version
from tests.support.production import within

pytestmark = [pytest.mark.flow, pytest.mark.process]

TAG = "automations-under-test"
SECRET = "s3cret-path"


ENDS = ["Completed", "Failed", "Cancelled", "Crashed", "Promoted", "Held", "Skipped", "Superseded"]
"""Names of the states in which our runs end."""


def test_a_run_may_miss_several_heartbeats_before_it_counts_as_crashed() -> None:
    beat = int(FLOW_ENVIRONMENT["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    # Prefect's least is 30, and its default of 180 would do.
    assert 30 <= beat < 180 < SILENCE.total_seconds() / 3
    assert 3 * timedelta(seconds=reconcile.INTERVAL_SECONDS) <= SILENCE


@pytest.mark.parametrize("name", ["Suspended", "Paused", "AwaitingRetry", "Cancelling", *ENDS])
def test_a_run_that_ended_or_waits_needs_no_heartbeat(name: str) -> None:
    """Checked by the server's own code, with the automation as it stores it."""
    trigger = ServerAutomation.model_validate(lost_runs().model_dump()).trigger
    assert isinstance(trigger, ServerTrigger)
    assert trigger.expects(f"prefect.flow-run.{name}")
    assert not trigger.starts_after(f"prefect.flow-run.{name}")
    for sign in ("prefect.flow-run.heartbeat", "prefect.flow-run.Running"):
        assert trigger.starts_after(sign)
        assert trigger.expects(sign)
    assert trigger.expects(HEARTBEAT)


@flow(name="nightly")
def stand_in(pipeline: str = "", alarm: str = "") -> None:
    """A flow with the name of the nights; never run here."""


@dataclass
class Receiver:
    """A webhook on loopback and the messages that it received."""

    url: str = ""
    posts: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def sent(self, **facts: Any) -> dict[str, Any] | None:
        """The one message with these values."""
        found = [body for _, _, body in self.posts if all(body.get(key) == value for key, value in facts.items())]
        assert len(found) <= 1, found
        return found[0] if found else None


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    received = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.posts.append((self.path, self.headers["Content-Type"], body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received.url = f"http://127.0.0.1:{server.server_address[1]}/{SECRET}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield received
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def api(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """The session's server; automations that a test leaves there are removed."""
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as client:
        yield client
        for one in client.read_automations():
            client.delete_automation(one.id)


def test_without_an_address_the_webhook_is_not_installed_and_the_rest_is(api: SyncPrefectClient) -> None:
    done = {one.name: one for one in install()}
    assert {name: one.outcome for name, one in done.items()} == {
        LOST_RUNS: "created",
        LOST_CANCELLATIONS: "created",
        STARTED_NIGHTS: "created",
        ENDED_NIGHTS: "not installed",
        LATE_NIGHTS: "not installed",
    }
    assert "NIGHTGATE_WEBHOOK_URL" in done[ENDED_NIGHTS].note
    assert {one.name for one in api.read_automations()} == {LOST_RUNS, LOST_CANCELLATIONS, STARTED_NIGHTS}


def test_an_invalid_address_is_refused_and_not_shown(api: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    del api
    monkeypatch.setenv("NIGHTGATE_WEBHOOK_URL", f"ftp://{SECRET}")
    with pytest.raises(ConfigurationError, match="NIGHTGATE_WEBHOOK_URL") as refused:
        install()
    assert SECRET not in str(refused.value)


def test_installing_again_leaves_one_of_each_and_a_disabled_one_disabled(
    api: SyncPrefectClient, receiver: Receiver
) -> None:
    install(webhook_url=receiver.url)
    before = {one.name: one.id for one in api.read_automations()}
    assert set(before) == {LOST_RUNS, LOST_CANCELLATIONS, STARTED_NIGHTS, ENDED_NIGHTS, LATE_NIGHTS}
    assert {one.outcome for one in install()} == {"unchanged"}
    api.pause_automation(before[LOST_RUNS])
    assert [one.note for one in install() if one.name == LOST_RUNS] == ["stays disabled"]
    changed = {one.name: one.outcome for one in install(silence=timedelta(hours=1), late=timedelta(minutes=5))}
    assert changed == {
        LOST_RUNS: "updated",
        LOST_CANCELLATIONS: "updated",
        STARTED_NIGHTS: "unchanged",
        ENDED_NIGHTS: "unchanged",
        LATE_NIGHTS: "updated",
    }
    after = api.read_automations()
    assert {one.name: one.id for one in after} == before
    assert {one.name for one in after if not one.enabled} == {LOST_RUNS}
    api.resume_automation(before[LOST_RUNS])


def test_an_automation_with_its_former_name_is_renamed_and_stays_disabled(api: SyncPrefectClient) -> None:
    for one in api.read_automations():
        api.delete_automation(one.id)
    former = lost_runs().model_copy(update={"name": FORMER_NAMES[LOST_RUNS], "enabled": False})
    installed_id = api.create_automation(former)
    assert [one.outcome for one in install() if one.name == LOST_RUNS] == ["updated"]
    [renamed] = api.read_automations_by_name(LOST_RUNS)
    assert (renamed.id, renamed.enabled) == (installed_id, False)
    assert not api.read_automations_by_name(FORMER_NAMES[LOST_RUNS])


def test_neither_automation_nor_server_shows_the_address(
    api: SyncPrefectClient, receiver: Receiver, prefect_server: str
) -> None:
    assert SECRET not in repr(install(webhook_url=receiver.url))
    assert SECRET not in httpx.post(f"{prefect_server}/automations/filter", json={}, timeout=10).text
    [block] = [one for one in api.read_block_documents_by_type("webhook", include_secrets=False) if one.name == WEBHOOK]
    assert SECRET not in repr(block)
    # What docs/operations.md warns of: a client may ask for it.
    [shown] = [one for one in api.read_block_documents_by_type("webhook", include_secrets=True) if one.name == WEBHOOK]
    assert SECRET in repr(shown.data)


def test_an_end_of_a_night_reaches_the_webhook_with_reason_and_next_step(
    api: SyncPrefectClient, receiver: Receiver, prefect_server: str
) -> None:
    del api
    install(webhook_url=receiver.url)
    run_id = uuid4()
    night = {
        "pipeline": "shop",
        "night": "2026-01-05",
        "run_id": "r-1",
        "reason": 'F1 0.41 is below "min_f1" 0.54 & <others>',
        "next_step": "try --set training.epochs=3",
        "test_f1": 0.41,
        "model_version": 3,
    }
    # The server loads a new automation within a second or so.
    time.sleep(1)
    send(make_event("held", "shop", night, str(run_id)))
    sent = within(20, lambda: receiver.sent(pipeline="shop", status="held"), "the webhook")
    link = f"{prefect_server.removesuffix('/api')}/runs/flow-run/{run_id}"
    assert sent == {
        **night,
        "event": "nightgate.held",
        "status": "held",
        "error_type": None,
        "champion_version": None,
        "run_url": link,
        "text": f"shop, night of 2026-01-05: held. {night['reason']}. Next: {night['next_step']} {link}",
    }
    [(path, kind, _)] = [one for one in receiver.posts if one[2] is sent]
    assert (path, kind) == (f"/{SECRET}", "application/json")

    long = "a slice is worse. " * 100
    send(make_event("failed", "shop", {**night, "reason": long}, None))
    sent = within(20, lambda: receiver.sent(pipeline="shop", status="failed"), "the webhook")
    assert sent["reason"] == long
    assert len(sent["text"]) < 400
    assert sent["text"].endswith(f"... Next: {night['next_step']}")

    send(make_event("skipped", "shop", night, None))
    send(make_event("rolled_back", "shop", {"pipeline": "shop", "reason": "By Ada."}, None))
    sent = within(20, lambda: receiver.sent(pipeline="shop", status="rolled_back"), "the webhook")
    assert sent["text"] == "shop: rolled back. By Ada."
    assert (sent["night"], sent["run_url"]) == (None, None)
    send(make_event("frozen", "shop", {"pipeline": "shop", "reason": "A holiday."}, None))
    sent = within(20, lambda: receiver.sent(pipeline="shop", status="frozen"), "the webhook")
    assert sent["text"] == "shop: frozen. A holiday."
    assert receiver.sent(pipeline="shop", status="skipped") is None


def test_an_alarm_starts_the_night_that_it_names_once_and_other_events_start_none(api: SyncPrefectClient) -> None:
    install()
    deployed = api.create_deployment(api.create_flow(stand_in), name="alarmed", tags=["home:1"])
    time.sleep(1)
    alarm = make_event("drifted", "shop", {}, None, starts=deployed)
    for event in (make_event("drifted", "other", {}, None), make_event("held", "shop", {}, None, starts=deployed)):
        send(event)
    for _ in range(2):  # as by two processes at once
        send(alarm)
    of_it = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployed]))
    within(20, lambda: api.read_flow_runs(flow_run_filter=of_it), "the night")
    time.sleep(2)
    [run] = api.read_flow_runs(flow_run_filter=of_it)
    assert run.parameters == {"pipeline": "shop", "alarm": "drifted"}


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_heartbeat_is_sent_for_a_run_that_waits_and_not_for_one_that_ended(
    api: SyncPrefectClient, database: Database
) -> None:
    waits, ended = uuid4(), uuid4()
    for day, flow_run_id in enumerate((ended, waits)):
        run, _ = judged_version(database, day, prefect_flow_run_id=str(flow_run_id))
        if flow_run_id == ended:
            lifecycle.finish_run(database, run.run_id, run.attempt, "held")
        else:
            words = {"reason": "it passed", "next_step": "-"}
            approvals.request(database, run.run_id, run.attempt, expected=None, patience=timedelta(hours=18), **words)
    send_heartbeats(database)

    def heartbeats() -> list[dict[str, Any]]:
        # By id: other modules' tests, at the same server, may send heartbeats of their own runs.
        ours = {"id": [f"prefect.flow-run.{one}" for one in (waits, ended)]}
        asked = {"filter": {"event": {"name": [HEARTBEAT]}, "resource": ours}, "limit": 50}
        return list(api.request("POST", "/events/filter", json=asked).json()["events"])

    [sent] = within(20, heartbeats, "the heartbeat")
    assert sent["resource"]["prefect.resource.id"] == f"prefect.flow-run.{waits}"
    # By which the automation finds it.
    assert [one["prefect.resource.id"] for one in sent["related"]] == ["prefect.tag.nightgate"]


# --- slow: they wait for silence ---

SHORT = timedelta(seconds=10)
"""The least that Prefect accepts."""


def started(api: SyncPrefectClient, name: str, tags: tuple[str, ...] = (TAG,)) -> FlowRun:
    """A running run of a deployment; without a deployment it could not be suspended, nor crashed while it is."""
    flow_id = api.create_flow(stand_in)
    deployment_id = api.create_deployment(flow_id, name="stand-in")
    run = api.create_flow_run_from_deployment(deployment_id, name=name, state=Pending(), tags=tags)
    api.set_flow_run_state(run.id, Running(), force=True)
    return run


def beat(run: FlowRun, *tags: str) -> None:
    """Send a heartbeat as the process of a flow does."""
    resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name}
    related = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in tags or (TAG,)]
    send(
        Event(
            occurred=datetime.now(UTC),
            event="prefect.flow-run.heartbeat",
            resource=Resource(root=resource),
            related=[RelatedResource(root=one) for one in related],
            payload={},
            id=uuid4(),
        )
    )


@contextmanager
def installed(api: SyncPrefectClient, receiver: Receiver) -> Iterator[None]:
    """Our automations with short times, for runs of this module."""
    for one in api.read_automations():
        api.delete_automation(one.id)
    install(webhook_url=receiver.url, silence=SHORT, late=SHORT, tag=TAG)
    time.sleep(2)
    yield
    for one in api.read_automations():
        api.delete_automation(one.id)


@pytest.mark.faults
def test_runs_without_a_heartbeat_are_ended_and_all_others_are_left_alone(
    api: SyncPrefectClient, receiver: Receiver
) -> None:
    with installed(api, receiver):
        # Three of each, of which one must be found: this server is on SQLite, which sometimes loses an event.
        dead = {f"{name} {number}": started(api, name) for name in ("silent", "cancelled") for number in range(3)}
        alive, held, suspended = (started(api, name) for name in ("alive", "held", "suspended"))
        foreign = started(api, "another team's", tags=())
        for run in (alive, held, suspended, dead["silent 2"]):
            beat(run)
        time.sleep(1)
        for number in range(3):
            api.set_flow_run_state(dead[f"cancelled {number}"].id, Cancelling(), force=True)
        api.set_flow_run_state(held.id, Completed(name="Held"), force=True)
        # In the past, so that the automation ignores its event as if it were lost. `reconcile` sends heartbeats.
        lost = Suspended(timeout_seconds=3600, timestamp=datetime(2026, 1, 1, tzinfo=UTC))
        api.set_flow_run_state(suspended.id, lost, force=True)
        deadline = time.monotonic() + 3 * SHORT.total_seconds()
        while time.monotonic() < deadline:
            beat(alive)
            send(heartbeat(suspended.id, TAG))
            time.sleep(2)

        def state(run: FlowRun) -> str:
            return str(api.read_flow_run(run.id).state_name)

        assert {name: state(run) for name, run in (("alive", alive), ("held", held), ("suspended", suspended))} == {
            "alive": "Running",
            "held": "Held",
            "suspended": "Suspended",
        }
        assert state(foreign) == "Running"
        ends = {name: state(run) for name, run in dead.items()}
        assert "Crashed" in {ends[f"silent {number}"] for number in range(3)}, ends
        assert "Cancelled" in {ends[f"cancelled {number}"] for number in range(3)}, ends
        crashed = next(run for name, run in dead.items() if ends[name] == "Crashed")
        assert "No heartbeat" in str(api.read_flow_run(crashed.id).state.message)


@pytest.mark.faults
def test_a_night_that_no_worker_starts_is_reported_and_one_that_starts_is_not(
    api: SyncPrefectClient, receiver: Receiver
) -> None:
    with installed(api, receiver):
        flow_id = api.create_flow(stand_in)
        late, begun = (
            api.create_flow_run_from_deployment(api.create_deployment(flow_id, name=name), name=name, tags=[TAG])
            for name in ("late", "begun")
        )
        for run in (late, begun):
            api.set_flow_run_state(run.id, Late(scheduled_time=datetime.now(UTC)), force=True)
        time.sleep(1)
        api.set_flow_run_state(begun.id, Pending(), force=True)
        sent = within(60, lambda: receiver.sent(status="late", pipeline="late"), "the report of a late night")
        assert sent["run_url"].endswith(f"/runs/flow-run/{late.id}")
        assert "has not started" in sent["reason"]
        assert "worker" in sent["next_step"]
        assert receiver.sent(status="late", pipeline="begun") is None
