"""The findings of `nightgate doctor` about a Prefect server, and what `nightgate status` reads from it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Scheduled

from flows.events import ENDED_NIGHTS, LATE_NIGHTS, LOST_CANCELLATIONS, LOST_RUNS, STARTED_NIGHTS
from flows.reconcile import end_flow_runs, reconcile_now
from flows.server.access import Access, access, access_findings, is_loopback
from flows.server.checks import (
    automations_finding,
    deployed,
    examine,
    settings_findings,
    version_finding,
)
from flows.server.connection import usual_server
from nightgate.database.transactions import prepare
from nightgate.home import Home, open_home
from nightgate.operations.findings import Finding
from tests.conftest import free_port
from tests.support.slots import slot_places

PIPELINE = """
name = "checked-up"
[data]
source = { kind = "sample" }
labels = [1, 2]
[schedule]
cron = "15 3 * * *"
"""
NAME = "checked-up"

Deploy = Callable[..., UUID]


def found(check: str) -> Finding:
    [finding] = [one for one in examine().findings if one.check == check]
    return finding


def findings(check: str) -> list[tuple[str, str]]:
    return [(one.status, one.found) for one in examine().findings if one.check == check]


@pytest.fixture
def server(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """The session's server as the one that PREFECT_API_URL names."""
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def deploy(server: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deploy]:
    """Registers the pipeline `checked-up`, whose file is there; removed again at the end."""
    (tmp_path / f"{NAME}.toml").write_text(PIPELINE, encoding="utf-8")
    monkeypatch.setenv("NIGHTGATE_PIPELINES", str(tmp_path))
    made: list[UUID] = []

    def deploy(cron: str = "15 3 * * *", *, active: bool = True, pool: str | None = None) -> UUID:
        schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron=cron, timezone="UTC"), active=active)
        flow = server.create_flow_from_name("nightly")
        identity = server.create_deployment(flow, NAME, schedules=[schedule], work_pool_name=pool)
        made.append(identity)
        return identity

    yield deploy
    for identity in set(made):
        which = DeploymentFilter(id=DeploymentFilterId(any_=[identity]))
        for run in server.read_flow_runs(deployment_filter=which):
            server.delete_flow_run(run.id)
        server.delete_deployment(identity)


@pytest.fixture
def pool(server: SyncPrefectClient) -> Iterator[str]:
    name = "check-up"
    server.create_work_pool(WorkPoolCreate(name=name, type="process"))
    yield name
    server.delete_work_pool(name)


# --- a real server ---


@pytest.mark.flow
@pytest.mark.usefixtures("server")
def test_a_healthy_server_has_findings_about_version_authentication_leases_database_and_clock() -> None:
    assert found("prefect server").status == "ok"
    assert found("reached by the network").status == "ok"
    assert found("reached by web pages").status == "warning", "it was not started by Nightgate"
    leases = found("lease storage")
    assert leases.status == "warning"
    assert leases.remedy.endswith("=prefect.server.concurrency.lease_storage.filesystem")
    assert "SQLite" in found("server database").found
    ahead = examine().ahead
    assert ahead is not None
    assert abs(ahead) < timedelta(seconds=10)


@pytest.mark.flow
def test_a_served_pipeline_needs_a_process_that_serves_it(deploy: Deploy, server: SyncPrefectClient) -> None:
    identity = deploy()
    assert [status for status, text in findings("worker") if NAME in text] == ["problem"]
    # A serving process makes this request every few seconds.
    server.get_scheduled_flow_runs_for_deployments([identity])
    deadline = time.monotonic() + 10
    while not any(one[0] == "ok" and NAME in one[1] for one in findings("worker")):
        assert time.monotonic() < deadline, findings("worker")


@pytest.mark.flow
def test_a_work_pool_needs_a_worker_that_is_online(deploy: Deploy, pool: str, server: SyncPrefectClient) -> None:
    deploy(pool=pool)
    assert [status for status, text in findings("worker") if pool in text] == ["problem"]
    assert found("server database").status == "warning", "with workers it is production"
    server.send_worker_heartbeat(pool, "night-worker", heartbeat_interval_seconds=30)
    assert ("ok", f"work pool {pool}: night-worker") in findings("worker")
    [(status, text)] = findings("work queue")
    assert (status, "no limit" in text) == ("warning", True), "it was not deployed by Nightgate"
    queue = server.read_work_queue_by_name("default", work_pool_name=pool).id
    server.update_work_queue(queue, concurrency_limit=1)
    assert [status for status, _ in findings("work queue")] == ["ok"]
    server.update_work_queue(queue, is_paused=True)
    assert [status for status, _ in findings("work queue")] == ["warning"]
    server.update_work_pool(pool, WorkPoolUpdate(is_paused=True))
    assert ("warning", f"work pool {pool} is paused") in findings("worker")


@pytest.mark.flow
def test_a_schedule_is_ok_with_runs_ahead_and_a_warning_where_it_is_paused_late_or_another(
    deploy: Deploy, server: SyncPrefectClient
) -> None:
    check = f"schedule {NAME}"
    identity = deploy()
    assert found(check).status == "ok"
    assert found(check).found.startswith("active")
    soon = datetime.now(UTC) + timedelta(minutes=3)
    server.create_flow_run_from_deployment(identity, state=Scheduled(scheduled_time=soon))
    assert f"next {soon:%Y-%m-%d %H:%M} UTC" in found(check).found
    seen = deployed()
    assert seen is not None
    assert seen[NAME].schedule == "active"
    assert seen[NAME].next_at == soon
    past = datetime.now(UTC) - timedelta(hours=2)
    server.create_flow_run_from_deployment(identity, state=Scheduled(scheduled_time=past, name="Late"))
    late = f"1 late since {past:%Y-%m-%d %H:%M} UTC"
    assert found(check).found == f"{late}: no worker starts them"
    with slot_places(open_home(), "default", "other-run"):
        assert (found(check).status, found(check).found) == ("ok", f"{late}: their slot is held by other-run")
    seen = deployed()
    assert seen is not None
    assert seen[NAME].late == (past,)
    deploy("0 1 * * *")
    assert "'0 1 * * *' UTC" in found(check).found
    server.pause_deployment(identity)
    assert found(check).status == "warning"
    assert f"nightly/{NAME}" in found(check).remedy
    assert NAME in examine().used


# --- a server that is away or refuses the credentials ---


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server whose health check succeeds and that answers everything else with this status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.endswith("/health") else status)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"null")

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with temporary_settings({PREFECT_API_URL: f"http://me:hush-hush@127.0.0.1:{server.server_port}/api"}):
            yield f"http://***@127.0.0.1:{server.server_port}/api"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "set PREFECT_API_AUTH_STRING"),
        (500, "read its log"),
    ],
)
def test_a_server_that_refuses_is_a_problem_that_shows_no_secret(status: int, remedy: str) -> None:
    with answering(status) as url:
        finding = found("prefect server")
        assert deployed() is None
    assert finding.status == "problem"
    assert finding.found.startswith(f"{url} ")
    assert str(status) in finding.found
    assert finding.remedy.startswith(remedy)


def test_a_server_that_was_configured_must_answer() -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        finding = found("prefect server")
        assert deployed() is None
        with usual_server() as silence:
            assert url in silence
    assert finding.status == "problem"
    assert url in finding.found
    assert finding.remedy == "start it, or unset PREFECT_API_URL"


def test_a_server_that_refuses_the_credentials_stops_neither_reconcile_nor_a_decision(home: Home) -> None:
    prepare(home)
    with answering(401) as url, usual_server() as silence:
        assert url in silence
        assert reconcile_now().failed == []
        for why in (silence, end_flow_runs()):
            assert "PREFECT_API_AUTH_STRING" in why


# --- its settings ---


def settings() -> dict[str, Any]:
    files = {"lease_storage": "prefect.server.concurrency.lease_storage.filesystem"}
    return {"server": {"concurrency": files, "database": {"driver": "postgresql+asyncpg"}}}


OPEN = Access("http://127.0.0.1:4200/api", False, False, False, ("127.0.0.1",))


@pytest.mark.parametrize(
    ("answers", "users", "warned"),
    [
        ({}, [], set()),
        ({}, ["ada"], {"other users"}),
        ({"listens_on": ("0.0.0.0",)}, [], {"the network"}),
        ({"url": "http://nights.example:4200/api", "listens_on": ()}, ["ada"], {"the network"}),
        ({"read_by_pages": True}, [], {"web pages"}),
        ({"changed_by_pages": True}, [], {"web pages"}),
        ({"needs_password": True, "listens_on": ("0.0.0.0",), "changed_by_pages": True}, ["ada"], set()),
    ],
)
def test_each_way_to_a_server_without_a_password_is_a_warning_of_its_own(
    answers: dict[str, Any], users: list[str], warned: set[str]
) -> None:
    found = list(access_findings(replace(OPEN, **answers), users))
    assert {one.check.removeprefix("reached by ") for one in found if one.status == "warning"} == warned
    assert all(one.remedy for one in found if one.status == "warning")


@pytest.mark.flow
def test_a_server_of_prefects_own_command_is_judged_by_what_it_answers(prefect_server: str) -> None:
    found = access(prefect_server)
    assert (found.needs_password, found.read_by_pages, found.changed_by_pages) == (False, True, True)
    assert found.listens_on == ("127.0.0.1",)


def test_settings_for_production_are_ok() -> None:
    findings = list(settings_findings(settings(), ""))
    assert {one.status for one in findings} == {"ok"}
    assert {one.check for one in findings} == {"lease storage", "server database"}


@pytest.mark.parametrize(
    ("server", "client", "status"),
    [("3.8.8", "3.8.8", "ok"), ("3.8.2", "3.8.8", "warning"), ("3.9.0", "3.8.8", "problem"), ("?", "3.8.8", "problem")],
)
def test_server_and_client_should_be_of_one_version(server: str, client: str, status: str) -> None:
    finding = version_finding("http://x/api", server, client)
    assert finding.status == status
    assert bool(finding.remedy) == (status != "ok")


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback_addresses_are_recognised(host: str, is_ours: bool) -> None:
    assert is_loopback(host) is is_ours


REQUIRED, WEBHOOK = [LOST_RUNS, LOST_CANCELLATIONS, STARTED_NIGHTS], [ENDED_NIGHTS, LATE_NIGHTS]


@pytest.mark.parametrize(
    ("enabled", "disabled", "status", "named"),
    [
        ([], ["another's"], "warning", "none"),
        (REQUIRED, ["another's"], "ok", "NIGHTGATE_WEBHOOK_URL"),
        (REQUIRED + WEBHOOK, [], "ok", "5"),
        ([*REQUIRED[1:], *WEBHOOK], [], "warning", f"missing: {LOST_RUNS}"),
        ([*REQUIRED, LATE_NIGHTS], [], "warning", f"missing: {ENDED_NIGHTS}"),
        (REQUIRED[1:], [LOST_RUNS], "warning", f"disabled: {LOST_RUNS}"),
    ],
)
def test_missing_and_disabled_automations_are_warnings(
    enabled: list[str], disabled: list[str], status: str, named: str
) -> None:
    known = [(name, True) for name in enabled] + [(name, False) for name in disabled]
    finding = automations_finding(known)
    assert finding.status == status
    assert named in finding.found
