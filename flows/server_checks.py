"""What a Prefect server tells of itself and of our deployments: for `nightgate doctor` and `nightgate status`."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import prefect
import psutil
from packaging.version import Version
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from flows.server_connection import local_server
from flows.signs import TELL, TELL_LATE, UNCANCELLED, ZOMBIES
from nightgate.errors import NightgateError, without_credentials
from nightgate.operations.findings import Finding, Seen
from nightgate.operations.status import Deployed
from nightgate.pipeline_files import load_by_name

SECONDS = 3.0
"""For which the server is waited for."""
PAGE = 200
LEASES = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
FILES = "prefect.server.concurrency.lease_storage.filesystem"
SETTLE = timedelta(minutes=2)
"""The scheduler looks once a minute: so long a new deployment may be without a run ahead."""


@dataclass
class _Told:
    """A deployment of a pipeline, with its scheduled runs."""

    deployment: DeploymentResponse
    ahead: list[FlowRun] = field(default_factory=list)
    late: list[FlowRun] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.deployment.name

    @property
    def deployed(self) -> Deployed:
        schedules = self.deployment.schedules
        if not schedules:
            return Deployed("none")
        if self.deployment.paused or not any(one.active for one in schedules):
            return Deployed("paused")
        return Deployed("active", self.ahead[0].expected_start_time if self.ahead else None)


def deployed() -> dict[str, Deployed] | None:
    """The deployed pipelines; None where no server answers, or none that lets us in."""
    url = _address()
    if _silence(url):
        return None
    try:
        with _client(url) as client:
            return {one.name: one.deployed for one in _nights(client)}
    except (httpx.HTTPError, PrefectHTTPStatusError, NightgateError):
        return None


def examine() -> Seen:
    """Findings about the server, its workers and its schedules."""
    url = _address()
    shown = without_credentials(url)
    if silence := _silence(url):
        if PREFECT_API_URL.value():
            remedy = "start it, or unset PREFECT_API_URL"
            return Seen([Finding("problem", "prefect server", f"{shown}: {silence}", remedy)])
        told = f"none at {shown}: runs by hand start a temporary one, and nothing is scheduled"
        return Seen([Finding("warning", "prefect server", told, "nightgate serve")])
    with _client(url) as client:
        try:
            version, ahead = _version(client)
        except PrefectHTTPStatusError as error:
            return Seen([_refusal(shown, error.response.status_code)])
        nights = _nights(client)
        findings = [version_finding(shown, version, prefect.__version__)]
        findings += settings_findings(url, client.request("GET", "/admin/settings").json(), _open_database(url), nights)
        findings += [*_hands(client, nights), *(_schedule(one) for one in nights), *_reconciler(client, nights)]
        if any(one.deployment.work_pool_name for one in nights):
            findings.append(automations_finding((one.name, one.enabled) for one in client.read_automations()))
        return Seen(findings, frozenset(one.name for one in nights), ahead)


@contextmanager
def usual_server() -> Iterator[str]:
    """Settings for the server at PREFECT_API_URL, else that of `nightgate serve`; never a temporary one.

    Gives why it cannot be used; '' when it answers.
    """
    url = _address()
    with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: 10}):
        silence = _silence(url)
        yield f"the Prefect server at {without_credentials(url)} does not answer ({silence})" if silence else ""


def _address() -> str:
    return str(PREFECT_API_URL.value() or f"{local_server()}/api").rstrip("/")


def _silence(url: str) -> str:
    """Why the server cannot be used; '' when it answers. Of our own: Prefect's client asks for minutes."""
    try:
        # Nothing secret goes or comes here: whether its certificate is right, Prefect's client sees.
        answer = httpx.get(f"{url}/health", timeout=SECONDS, verify=False)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return (
        "" if answer.status_code == 200 else f"it answers {answer.status_code} where a Prefect server says it is well"
    )


@contextmanager
def _client(url: str) -> Iterator[SyncPrefectClient]:
    with (
        temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(sync_client=True, httpx_settings={"timeout": 2 * SECONDS}) as client,
    ):
        yield client


# --- the server itself ---


def _version(client: SyncPrefectClient) -> tuple[str, timedelta | None]:
    """Its version, and by how much its clock is ahead of ours."""
    before = datetime.now(UTC)
    answer = client.request("GET", "/admin/version")
    moment = before + (datetime.now(UTC) - before) / 2
    told = answer.headers.get("date")
    # The header has no fractions: on average half a second is cut off.
    ahead = parsedate_to_datetime(told) + timedelta(seconds=0.5) - moment if told else None
    return str(answer.json()), ahead


def _refusal(url: str, status: int) -> Finding:
    if status in {401, 403}:
        told = f"{url} answers, and does not let us in ({status})"
        return Finding("problem", "prefect server", told, "set PREFECT_API_AUTH_STRING to the server's user:password")
    return Finding("problem", "prefect server", f"{url} answers {status}", "read its log")


def version_finding(url: str, server: str, client: str) -> Finding:
    """Server and client should be of one version; only patches may differ."""
    told = f"{url} answers, version {server}"
    if server == client:
        return Finding("ok", "prefect server", told)
    try:
        same = Version(server).release[:2] == Version(client).release[:2]
    except ValueError:
        same = False
    told += f", and this client is {client}"
    return Finding("warning" if same else "problem", "prefect server", told, f"pip install prefect=={client} there")


def settings_findings(
    url: str, settings: dict[str, Any], open_database: str, nights: Sequence[_Told] = ()
) -> Iterator[Finding]:
    """What the server's own settings (of `GET /admin/settings`) mean for nights."""
    server = settings.get("server") or {}
    api = server.get("api") or {}
    if api.get("auth_string"):
        yield Finding("ok", "authentication", "the server asks for it")
    elif is_loopback(urlsplit(url).hostname or "") and is_loopback(api.get("host") or "127.0.0.1"):
        yield Finding("ok", "authentication", "none, and the server is reached by a loopback address")
    else:
        told = "none: whoever reaches the server may start, change and delete what it runs"
        remedy = "set PREFECT_SERVER_API_AUTH_STRING there, and PREFECT_API_AUTH_STRING wherever it is asked"
        yield Finding("warning", "authentication", told, remedy)
    leases = (server.get("concurrency") or {}).get("lease_storage") or ""
    if leases.endswith(".memory"):
        told = "in the server's memory: when it is restarted, it forgets which runs hold their deployment's place"
        yield Finding("warning", "lease storage", told, f"start the server with {LEASES}={FILES}")
    elif leases:
        yield Finding("ok", "lease storage", leases)
    database = server.get("database") or {}
    kind = database.get("driver") or open_database
    if kind == "sqlite" or str(kind).startswith("sqlite"):
        told = "SQLite under the Prefect server"
        if any(one.deployment.work_pool_name for one in nights):
            remedy = "set PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://user:password@host/prefect there"
            yield Finding("warning", "server database", f"{told}: 'database is locked' with several workers", remedy)
        else:
            yield Finding("ok", "server database", f"{told}: enough for one machine and `nightgate serve`")
    elif kind:
        yield Finding("ok", "server database", str(kind))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _open_database(url: str) -> str:
    """`sqlite` where a server of this machine has such a file open; its settings do not tell. '': unknown."""
    parts = urlsplit(url)
    if not is_loopback(parts.hostname or ""):
        return ""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == parts.port and connection.pid:
                files = psutil.Process(connection.pid).open_files()
                if any(file.path.endswith((".db", ".db-wal", ".sqlite")) for file in files):
                    return "sqlite"
    except (psutil.Error, OSError):
        return ""
    return ""


# --- who works, and when ---


def _nights(client: SyncPrefectClient) -> list[_Told]:
    """The deployments of pipelines, each with its scheduled runs, by name."""
    nightly = FlowFilter(name=FlowFilterName(any_=["nightly"]))
    found: dict[Any, _Told] = {}
    for start in range(0, 10 * PAGE, PAGE):
        page = client.read_deployments(flow_filter=nightly, limit=PAGE, offset=start)
        found |= {one.id: _Told(one) for one in page}
        if len(page) < PAGE:
            break
    if not found:
        return []
    of_ours = DeploymentFilter(id=DeploymentFilterId(any_=list(found)))
    scheduled = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])))
    for start in range(0, 10 * PAGE, PAGE):
        runs = client.read_flow_runs(
            deployment_filter=of_ours,
            flow_run_filter=scheduled,
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            limit=PAGE,
            offset=start,
        )
        for run in runs:
            _sort_in(found[run.deployment_id], run)
        if len(runs) < PAGE:
            break
    return sorted(found.values(), key=lambda one: one.name)


def _sort_in(told: _Told, run: FlowRun) -> None:
    if run.state_name == "Late":
        told.late.append(run)
    elif run.state_name == "Scheduled" and run.expected_start_time is not None:
        told.ahead.append(run)


def _hands(client: SyncPrefectClient, nights: Sequence[_Told]) -> Iterator[Finding]:
    """Whether somebody takes what is due: workers of the pools, or a `nightgate serve`."""
    if not nights:
        told = "no pipeline is deployed on it: nothing is scheduled"
        remedy = "on a laptop `nightgate serve`; for production `nightgate deploy` and a worker"
        yield Finding("warning", "worker", told, remedy)
        return
    for pool in sorted({one.deployment.work_pool_name for one in nights if one.deployment.work_pool_name}):
        yield _pool(client, pool)
    served = [one for one in nights if not one.deployment.work_pool_name]
    tended = [one.name for one in served if str(getattr(one.deployment.status, "value", "")) == "READY"]
    if tended:
        yield Finding("ok", "worker", f"`nightgate serve` looks after {', '.join(tended)}")
    if absent := [one.name for one in served if one.name not in tended]:
        told = f"nobody serves {', '.join(absent)}: what is due stays late"
        yield Finding("problem", "worker", told, f"nightgate serve {' '.join(absent)}")


def _pool(client: SyncPrefectClient, name: str) -> Finding:
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        return Finding("problem", "worker", f"there is no work pool {name}", "nightgate deploy")
    if pool.is_paused:
        return Finding("warning", "worker", f"work pool {name} is paused", f"prefect work-pool resume {name}")
    if pool.type != "process" and (pool.is_push_pool or pool.is_managed_pool):
        return Finding("ok", "worker", f"work pool {name} ({pool.type}) needs none")
    workers = client.read_workers_for_work_pool(name)
    online = [worker.name for worker in workers if worker.status.value == "ONLINE"]
    if online:
        return Finding("ok", "worker", f"work pool {name}: {', '.join(online)}")
    seen = max((worker.last_heartbeat_time for worker in workers if worker.last_heartbeat_time), default=None)
    last = f", the last one was heard of at {seen:%Y-%m-%d %H:%M} UTC" if seen else ""
    # Ours waits for its runs when it is stopped; the pools of other kinds have no process of theirs at stake.
    start = "python -m deployments.worker" if pool.type == "process" else "prefect worker start"
    remedy = f"{start} --pool {name}, as a service: docs/operations.md"
    return Finding("problem", "worker", f"work pool {name} has no worker{last}: what is due stays late", remedy)


def _schedule(one: _Told) -> Finding:
    """Whether the nights of a deployed pipeline come."""
    check, known = f"schedule {one.name}", one.deployed
    if known.schedule == "none":
        return Finding("warning", check, "deployed without a schedule", "nightgate deploy")
    if known.schedule == "paused":
        return Finding("warning", check, "paused: no night is begun", f"switch it on in the UI (nightly/{one.name})")
    if differs := _differs(one):
        return Finding("warning", check, differs, "deploy again (nightgate deploy), or start `nightgate serve` again")
    if one.late:
        since = min(run.expected_start_time for run in one.late if run.expected_start_time)
        told = f"{len(one.late)} late since {since:%Y-%m-%d %H:%M} UTC: no worker takes them"
        return Finding(
            "warning", check, told, "see the line about workers; the newest one will run, the others give way"
        )
    if known.next_at is None:
        created = one.deployment.updated or one.deployment.created
        if created is not None and datetime.now(UTC) - created < SETTLE:
            return Finding("ok", check, "active since a moment ago; its first runs are still to be scheduled")
        told = "active, and yet no run is scheduled ahead: the server's scheduler is not at work"
        remedy = (
            "read the server's log; with SQLAlchemy 2.1 it fails without a word elsewhere (see above), then restart it"
        )
        return Finding("problem", check, told, remedy)
    return Finding("ok", check, f"active, next {known.next_at:%Y-%m-%d %H:%M} UTC, {len(one.ahead)} runs ahead")


def _differs(one: _Told) -> str:
    """How the schedule on the server differs from the pipeline's file; '' where it does not, or no file is here."""
    try:
        wanted = load_by_name(one.name).schedule
    except NightgateError:
        return ""
    there = {(getattr(s.schedule, "cron", ""), getattr(s.schedule, "timezone", "")) for s in one.deployment.schedules}
    if (wanted.cron, wanted.timezone) in there:
        return ""
    told = ", ".join(f"{cron!r} {zone}" for cron, zone in sorted(there))
    return f"deployed with {told}, and the file says {wanted.cron!r} {wanted.timezone}"


def _reconciler(client: SyncPrefectClient, nights: Sequence[_Told]) -> Iterator[Finding]:
    """Whether what dies is settled without waiting for the next night."""
    if not nights:
        return
    try:
        deployment = client.read_deployment_by_name("reconcile/nightgate")
    except ObjectNotFound:
        told = "reconcile/nightgate is not deployed: what dies is settled by the next night only"
        yield Finding("warning", "reconcile", told, "nightgate deploy")
        return
    if deployment.paused or not any(one.active for one in deployment.schedules):
        told = "its schedule is paused: what dies is settled by the next night only"
        yield Finding("warning", "reconcile", told, "switch it on in the UI (reconcile/nightgate)")
    else:
        yield Finding("ok", "reconcile", "deployed, and its schedule is active")


def automations_finding(known: Iterable[tuple[str, bool]]) -> Finding:
    """Whether lost runs are noticed, and somebody is told of nights. `known` has each automation's name, and whether
    it is enabled.
    """
    check, install = "automations", "python -m deployments.automations"
    ours = {name: enabled for name, enabled in known if name in {ZOMBIES, UNCANCELLED, TELL, TELL_LATE}}
    if not ours:
        told = "none of Nightgate's: the run of a lost machine stays Running on the server"
        return Finding("warning", check, told, install)
    tells = TELL in ours or TELL_LATE in ours
    wanted = (ZOMBIES, UNCANCELLED, TELL, TELL_LATE) if tells else (ZOMBIES, UNCANCELLED)
    if missing := [name for name in wanted if name not in ours]:
        return Finding("warning", check, f"missing: {'; '.join(missing)}", install)
    if off := [name for name, enabled in ours.items() if not enabled]:
        return Finding("warning", check, f"disabled: {'; '.join(off)}", "enable them in the UI (Automations)")
    who = "a webhook is told of nights" if tells else "nobody is told of nights: NIGHTGATE_WEBHOOK_URL was not set"
    return Finding("ok", check, f"{len(ours)} of Nightgate's, all enabled; {who}")
