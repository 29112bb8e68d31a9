"""Checks of the Prefect server, its workers and our deployments, for `nightgate doctor` and `nightgate status`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import prefect
import psutil
from packaging.version import Version
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.events import ENDED_NIGHTS, LATE_NIGHTS, LOST_CANCELLATIONS, LOST_RUNS, STARTED_NIGHTS
from flows.homes import deployments_of, described, is_foreign, nights_of, own, own_tag, pipeline_of
from flows.server.access import access, access_findings, listeners, other_users
from flows.server.connection import SECONDS, client_settings, configured_server, silence, usual_api
from nightgate.errors import NightgateError, without_credentials
from nightgate.home import existing_home
from nightgate.operations.findings import Finding, Seen
from nightgate.operations.status import Deployed, holders
from nightgate.pipeline_files import load_by_name
from nightgate.settings import read_settings

PAGE = 200
LEASES = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
FILES = "prefect.server.concurrency.lease_storage.filesystem"
SCHEDULER_PATIENCE = timedelta(minutes=2)
"""The scheduler runs once a minute; a new deployment may have no scheduled run for this long."""


@dataclass
class Nightly:
    """A deployment of a pipeline, with its scheduled runs."""

    deployment: DeploymentResponse
    ahead: list[FlowRun] = field(default_factory=list)
    late: list[FlowRun] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The pipeline's."""
        return pipeline_of(self.deployment)

    @property
    def deployed(self) -> Deployed:
        schedules = self.deployment.schedules
        if not schedules:
            return Deployed("none")
        if self.deployment.paused or not any(one.active for one in schedules):
            return Deployed("paused")
        late = tuple(_utc(run) for run in self.late)
        return Deployed("active", self.ahead[0].expected_start_time if self.ahead else None, late)


def deployed() -> dict[str, Deployed] | None:
    """The deployed pipelines; None if no server answers or accepts our credentials."""
    url = usual_api()
    if silence(url):
        return None
    try:
        with _client(url) as client:
            return {one.name: one.deployed for one in reversed(nights_of_home(client)[0])}
    except (httpx.HTTPError, PrefectHTTPStatusError, NightgateError):
        return None


def examine() -> Seen:
    """Findings about the server, its workers and its schedules."""
    url = usual_api()
    shown = without_credentials(url)
    if why := silence(url):
        if configured_server():
            remedy = "start it, or unset PREFECT_API_URL"
            return Seen([Finding("problem", "prefect server", f"{shown}: {why}", remedy)])
        found = f"none at {shown}: manual runs start a temporary one, and nothing is scheduled"
        return Seen([Finding("warning", "prefect server", found, "nightgate serve")])
    with _client(url) as client:
        try:
            version, ahead = _version(client)
        except PrefectHTTPStatusError as error:
            return Seen([_refusal(shown, error.response.status_code)])
        nights, others = nights_of_home(client)
        findings = [version_finding(shown, version, prefect.__version__)]
        findings += access_findings(access(url), other_users())
        findings += settings_findings(client.request("GET", "/admin/settings").json(), _open_database(url), nights)
        # Where no pipeline has a cron, nights can be started all the same.
        deployed = nights or [Nightly(one) for one in own(deployments_of(client, "nightly"), own_tag())]
        findings += [
            *_other_homes(nights, others),
            *_workers(client, deployed),
            *_work_queues(client, nights),
            *(_schedule(one) for one in nights),
            *_reconciler(client, deployed),
        ]
        if any(one.deployment.work_pool_name for one in nights):
            findings.append(automations_finding((one.name, one.enabled) for one in client.read_automations()))
        return Seen(findings, frozenset(one.name for one in nights), ahead)


@contextmanager
def _client(url: str) -> Iterator[SyncPrefectClient]:
    with (
        temporary_settings({**client_settings(url), PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(sync_client=True, httpx_settings={"timeout": 2 * SECONDS}) as client,
    ):
        yield client


# --- the server itself ---


def _version(client: SyncPrefectClient) -> tuple[str, timedelta | None]:
    """The server's version, and how far its clock is ahead of this machine's."""
    before = datetime.now(UTC)
    answer = client.request("GET", "/admin/version")
    moment = before + (datetime.now(UTC) - before) / 2
    header = answer.headers.get("date")
    # The header has no fractions: on average half a second is cut off.
    ahead = parsedate_to_datetime(header) + timedelta(seconds=0.5) - moment if header else None
    return str(answer.json()), ahead


def _refusal(url: str, status: int) -> Finding:
    if status in {401, 403}:
        found = f"{url} answers and refuses these credentials ({status})"
        return Finding("problem", "prefect server", found, "set PREFECT_API_AUTH_STRING to the server's user:password")
    return Finding("problem", "prefect server", f"{url} answers {status}", "read its log")


def version_finding(url: str, server: str, client: str) -> Finding:
    """Compare the versions of server and client; only their patch may differ."""
    found = f"{url} answers, version {server}"
    if server == client:
        return Finding("ok", "prefect server", found)
    try:
        same = Version(server).release[:2] == Version(client).release[:2]
    except ValueError:
        same = False
    found += f", and this client is {client}"
    return Finding("warning" if same else "problem", "prefect server", found, f"pip install prefect=={client} there")


def settings_findings(
    settings: dict[str, Any], open_database: str, nights: Sequence[Nightly] = ()
) -> Iterator[Finding]:
    """Findings about the server's settings, as `GET /admin/settings` returns them."""
    server = settings.get("server") or {}
    leases = (server.get("concurrency") or {}).get("lease_storage") or ""
    if leases.endswith(".memory"):
        found = "in the server's memory: a restart forgets which runs hold their deployment's slot"
        yield Finding("warning", "lease storage", found, f"start the server with {LEASES}={FILES}")
    elif leases:
        yield Finding("ok", "lease storage", leases)
    database = server.get("database") or {}
    kind = database.get("driver") or open_database
    if kind == "sqlite" or str(kind).startswith("sqlite"):
        found = "SQLite under the Prefect server"
        if any(one.deployment.work_pool_name for one in nights):
            remedy = "set PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://user:password@host/prefect there"
            yield Finding("warning", "server database", f"{found}: 'database is locked' with several workers", remedy)
        else:
            yield Finding("ok", "server database", f"{found}: enough for one machine and `nightgate serve`")
    elif kind:
        yield Finding("ok", "server database", str(kind))


def _open_database(url: str) -> str:
    """`sqlite` if a server on this machine has such a file open, which its settings do not show; '': unknown."""
    with suppress(psutil.Error, OSError):
        for one in listeners(url):
            files = psutil.Process(one.pid).open_files() if one.pid else ()
            if any(file.path.endswith((".db", ".db-wal", ".sqlite")) for file in files):
                return "sqlite"
    return ""


# --- workers and schedules ---


def nights_of_home(
    client: SyncPrefectClient, *, only_late: bool = False
) -> tuple[list[Nightly], list[DeploymentResponse]]:
    """The deployments of this home's pipelines by name, each with its scheduled runs, and those of other homes."""
    nightly, ours = nights_of(client), own_tag()
    others = [one for one in nightly if ours and is_foreign(one.tags, ours)]
    found: dict[Any, Nightly] = {one.id: Nightly(one) for one in own(nightly, ours)}
    if not found:
        return [], others
    of_ours = DeploymentFilter(id=DeploymentFilterId(any_=list(found)))
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    if only_late:
        state.name = FlowRunFilterStateName(any_=["Late"])
    scheduled = FlowRunFilter(state=state)
    for start in range(0, 10 * PAGE, PAGE):
        runs = client.read_flow_runs(
            deployment_filter=of_ours,
            flow_run_filter=scheduled,
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            limit=PAGE,
            offset=start,
        )
        for run in runs:
            one = found[run.deployment_id]
            if run.state_name == "Late" and run.expected_start_time is not None:
                one.late.append(run)
            elif run.state_name == "Scheduled" and run.expected_start_time is not None:
                one.ahead.append(run)
        if len(runs) < PAGE:
            break
    return sorted(found.values(), key=lambda one: one.name), others


def _other_homes(nights: Sequence[Nightly], others: Sequence[DeploymentResponse]) -> Iterator[Finding]:
    """The deployments of other homes, which do not schedule this one's nights."""
    if not others:
        return
    found = "; ".join(f"nightly/{one.name} belongs to {described(one)}" for one in others)
    if nights:
        yield Finding("ok", "other homes", found)
    else:
        remedy = "set NIGHTGATE_NAME for names of its own, or `nightgate deploy --take-over` where that home is gone"
        yield Finding("warning", "other homes", f"{found}, and none to this one", remedy)


def worker_command(pool: WorkPool) -> str:
    """The command that starts a worker of a pool."""
    # Ours finishes its runs when it is stopped; workers of other pools run no nights themselves.
    start = "python -m deployments.worker" if pool.type == "process" else "prefect worker start"
    return f"{start} --pool {pool.name}"


def _workers(client: SyncPrefectClient, nights: Sequence[Nightly]) -> Iterator[Finding]:
    """Whether due runs are started: by workers of the pools, or by `nightgate serve`."""
    if not nights:
        found = "no pipeline is deployed on it: nothing is scheduled"
        remedy = "on a laptop `nightgate serve`; for production `nightgate deploy` and a worker"
        yield Finding("warning", "worker", found, remedy)
        return
    for pool in sorted({one.deployment.work_pool_name for one in nights if one.deployment.work_pool_name}):
        yield _pool(client, pool)
    served = [one for one in nights if not one.deployment.work_pool_name]
    started = [one.name for one in served if str(getattr(one.deployment.status, "value", "")) == "READY"]
    if started:
        yield Finding("ok", "worker", f"`nightgate serve` runs {', '.join(started)}")
    if absent := [one.name for one in served if one.name not in started]:
        found = f"nothing starts the runs of {', '.join(absent)}: they stay late"
        yield Finding("problem", "worker", found, f"nightgate serve {' '.join(absent)}")


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
    last = f", the last heartbeat of one was at {seen:%Y-%m-%d %H:%M} UTC" if seen else ""
    remedy = f"{worker_command(pool)}, as a service: docs/operations.md"
    return Finding("problem", "worker", f"work pool {name} has no worker{last}: due runs stay late", remedy)


def _work_queues(client: SyncPrefectClient, nights: Sequence[Nightly]) -> Iterator[Finding]:
    """Whether the work queues hold back the nights that their slot has no room for."""
    slots: dict[tuple[str, str], str] = {}
    for one in nights:
        if one.deployment.work_pool_name and one.deployment.work_queue_name:
            with suppress(NightgateError):
                key = (one.deployment.work_pool_name, one.deployment.work_queue_name)
                slots[key] = load_by_name(one.name).resources.slot
    for (pool, name), slot in sorted(slots.items()):
        queue, limit = client.read_work_queue_by_name(name, pool), read_settings().slot_limit(slot) if slot else None
        found = f"{name}: {'no limit' if queue.concurrency_limit is None else f'{queue.concurrency_limit} at a time'}"
        if queue.is_paused:
            remedy = f"prefect work-queue resume {name} --pool {pool}"
            yield Finding("warning", "work queue", f"{name} is paused: its runs stay late", remedy)
        elif queue.concurrency_limit != limit:
            yield Finding("warning", "work queue", f"{found}, and its slot: {limit or 'no limit'}", "nightgate deploy")
        else:
            yield Finding("ok", "work queue", found)


def _schedule(one: Nightly) -> Finding:
    """Whether the nights of a deployed pipeline are started on time."""
    check, known = f"schedule {one.name}", one.deployed
    if known.schedule == "none":
        return Finding("warning", check, "deployed without a schedule", "nightgate deploy")
    if known.schedule == "paused":
        return Finding(
            "warning", check, "paused: no night is started", f"switch it on in the UI (nightly/{one.deployment.name})"
        )
    if differs := _differs(one):
        return Finding("warning", check, differs, "nightgate deploy, or restart `nightgate serve`")
    if one.late:
        found = f"{len(one.late)} late since {min(known.late):%Y-%m-%d %H:%M} UTC: "
        if held := waits_for(one):
            return Finding("ok", check, f"{found}their slot is held by {', '.join(held)}")
        found += "no worker starts them"
        return Finding(
            "warning", check, found, "see the line about workers; the newest one will run, the others end superseded"
        )
    if known.next_at is None:
        created = one.deployment.updated or one.deployment.created
        if created is not None and datetime.now(UTC) - created < SCHEDULER_PATIENCE:
            return Finding("ok", check, "active for less than two minutes; its first runs are not scheduled yet")
        found = "active, but no run is scheduled: the server's scheduler does not work"
        remedy = "read the server's log, then restart it; SQLAlchemy 2.1 makes it fail in that log only (see above)"
        return Finding("problem", check, found, remedy)
    return Finding("ok", check, f"active, next {known.next_at:%Y-%m-%d %H:%M} UTC, {len(one.ahead)} runs ahead")


def waits_for(one: Nightly) -> list[str]:
    """The runs that hold the slot which late nights wait for; [] where nothing holds them back."""
    with suppress(NightgateError):
        return holders(existing_home(only_read=True), load_by_name(one.name)) if one.late else []
    return []


def _utc(run: FlowRun) -> datetime:
    """When a scheduled run was due, as the standard library's time: Prefect's is pendulum's."""
    assert run.expected_start_time is not None
    return datetime.fromisoformat(run.expected_start_time.isoformat()).astimezone(UTC)


def _differs(one: Nightly) -> str:
    """How the server's schedule differs from the pipeline file's; '' if it does not, or the file is not here."""
    try:
        wanted = load_by_name(one.name).schedule
    except NightgateError:
        return ""
    there = {(getattr(s.schedule, "cron", ""), getattr(s.schedule, "timezone", "")) for s in one.deployment.schedules}
    if (wanted.cron, wanted.timezone) in there:
        return ""
    deployed_with = ", ".join(f"{cron!r} {zone}" for cron, zone in sorted(there))
    return f"deployed with {deployed_with}, and the file says {wanted.cron!r} {wanted.timezone}"


def _reconciler(client: SyncPrefectClient, nights: Sequence[Nightly]) -> Iterator[Finding]:
    """Whether dead runs are reconciled before the next night."""
    if not nights:
        return
    deployment = next(iter(own(deployments_of(client, "reconcile"), own_tag())), None)
    if deployment is None:
        found = "it is not deployed: dead runs are failed by the next night only"
        yield Finding("warning", "reconcile", found, "nightgate deploy")
        return
    if not deployment.work_pool_name:
        yield Finding("ok", "reconcile", "`nightgate serve` does it every five minutes")
    elif deployment.paused or not any(one.active for one in deployment.schedules):
        found = "its schedule is paused: dead runs are failed by the next night only"
        yield Finding("warning", "reconcile", found, f"switch it on in the UI (reconcile/{deployment.name})")
    else:
        yield Finding("ok", "reconcile", "deployed, and its schedule is active")


def automations_finding(known: Iterable[tuple[str, bool]]) -> Finding:
    """Whether lost runs are ended and nights reported. `known` has each automation's name and whether it is enabled."""
    check, install = "automations", "python -m deployments.automations"
    required, webhook = (LOST_RUNS, LOST_CANCELLATIONS, STARTED_NIGHTS), (ENDED_NIGHTS, LATE_NIGHTS)
    ours = {name: enabled for name, enabled in known if name in {*required, *webhook}}
    if not ours:
        found = "none of Nightgate's: the run of a lost machine stays Running on the server"
        return Finding("warning", check, found, install)
    has_webhook = any(name in ours for name in webhook)
    if missing := [name for name in (required + webhook if has_webhook else required) if name not in ours]:
        return Finding("warning", check, f"missing: {'; '.join(missing)}", install)
    if off := [name for name, enabled in ours.items() if not enabled]:
        return Finding("warning", check, f"disabled: {'; '.join(off)}", "enable them in the UI (Automations)")
    calls = "nights call the webhook" if has_webhook else "no webhook: NIGHTGATE_WEBHOOK_URL was not set"
    return Finding("ok", check, f"{len(ours)} of Nightgate's, all enabled; {calls}")
