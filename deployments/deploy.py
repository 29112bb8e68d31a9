"""`nightgate deploy`: register the catalog's deployments on a Prefect server, for the workers of a work pool.

It may be repeated: existing deployments are updated, paused schedules stay paused, and deployments whose pipeline is
gone are reported, or removed with `--prune`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner.storage import LocalStorage
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from deployments.catalog import GRACE_SECONDS, NIGHTLY, POOL, SLUG, TAG, Deployment, catalog, deployable
from flows.server_connection import running_server
from nightgate.config import Pipeline
from nightgate.errors import ConfigurationError, NightgateError
from nightgate.pipeline_files import load_by_name, pipeline_files

PROCESS = "process"

FLOW_ENVIRONMENT = {
    # Prefect's default is 180 s; the automations allow 900 s of silence.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # Python and Prefect import from the working folder first, where a tasks.py would be executed in place of ours. The
    # second setting loads flows.import_guard.
    "PYTHONSAFEPATH": "1",
    "PREFECT_PLUGINS_ENABLED": "true",
    "DO_NOT_TRACK": "1",
}
"""Environment of a flow's process, wherever it is started."""


@dataclass(frozen=True)
class Outcome:
    """What was done with one deployment."""

    deployment: str
    outcome: Literal["created", "updated", "removed", "left over", "problem"]
    schedule: str = ""
    note: str = ""


def deploy(
    names: Sequence[str] = (), *, pool: str = POOL, prune: bool = False, work_dir: Path | None = None
) -> list[Outcome]:
    """Register the nights of these pipelines, by default of all, and the operations.

    Args:
        names: Pipelines by name, as workers will look them up.
        pool: Work pool; one of type process is made if there is none of this name.
        prune: Remove deployments of pipelines that are gone.
        work_dir: Folder in which runs work and to which paths of pipeline files are relative. None: for a process pool
            the current one, for others the one of their image.

    Raises:
        NightgateError: No server answers, or no pipeline has one of the names. A broken pipeline file is an outcome,
            and the others are registered.
    """
    outcomes: list[Outcome] = []
    pipelines: list[Pipeline] = []
    for name in names or deployable():
        try:
            pipelines.append(load_by_name(name))
        except NightgateError as error:
            if name not in pipeline_files():
                raise
            outcomes.append(Outcome(f"{NIGHTLY}/{name}", "problem", note=str(error)))
    with running_server(), get_client(sync_client=True) as client:
        work_pool = _work_pool(client, pool)
        folder = work_dir or (Path.cwd() if work_pool.type == PROCESS else None)
        for one in catalog(pipelines):
            before = existing(client, one.full_name)
            registered = prefect_deployment(one, before)
            registered.work_pool_name = pool
            if folder is not None:
                registered.storage = LocalStorage(str(folder.resolve()))
            registered.apply()
            outcomes.append(_outcome(one, before))
        outcomes += _left_over(client, prune)
    return outcomes


def prefect_deployment(one: Deployment, before: DeploymentResponse | None = None) -> RunnerDeployment:
    """An entry of the catalog for Prefect's client. What is paused in `before`, the existing one, stays paused."""
    schedules = before.schedules if before else []
    active = not schedules or any(schedule.active for schedule in schedules)
    # Not Prefect's load_flow_from_entrypoint, which imports from the working folder first.
    module, _, flow = one.entrypoint.rpartition(".")
    return RunnerDeployment.from_flow(
        getattr(import_module(module), flow),
        name=one.name,
        description=one.description,
        schedule=Cron(one.cron, timezone=one.timezone, active=active, slug=SLUG) if one.cron else None,
        paused=bool(before and before.paused),
        parameters=dict(one.parameters),
        tags=list(one.tags),
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1,
            collision_strategy=ConcurrencyLimitStrategy(one.collision),
            grace_period_seconds=GRACE_SECONDS,
        ),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def existing(client: SyncPrefectClient, full_name: str) -> DeploymentResponse | None:
    """The deployment of this name on the server; None if there is none."""
    try:
        return client.read_deployment_by_name(full_name)
    except ObjectNotFound:
        return None


def _work_pool(client: SyncPrefectClient, name: str) -> WorkPool:
    try:
        return client.read_work_pool(name)
    except ObjectNotFound:
        return client.create_work_pool(
            WorkPoolCreate(
                name=name,
                type=PROCESS,
                description="Nights of Nightgate, each in a process of its worker's machine.",
                base_job_template=process_template(),
            )
        )


def process_template() -> dict[str, object]:
    """Base job template of our process pool: a fixed environment, and nothing that a run can change.

    Prefect's own template lets every run choose its command and environment.
    """
    return {
        "job_configuration": {"env": dict(FLOW_ENVIRONMENT), "stream_output": True},
        "variables": {"type": "object", "properties": {}, "additionalProperties": False},
    }


def _outcome(one: Deployment, before: DeploymentResponse | None) -> Outcome:
    schedule = f"{one.cron} {one.timezone}" if one.cron else "manual"
    if before is None:
        return Outcome(one.full_name, "created", schedule)
    paused = before.paused or (before.schedules and not any(schedule.active for schedule in before.schedules))
    return Outcome(one.full_name, "updated", schedule, "stays paused" if paused else "")


def _left_over(client: SyncPrefectClient, prune: bool) -> Iterable[Outcome]:
    """Deployments of nights whose pipeline file is gone."""
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    nightly_id = client.read_flow_by_name(NIGHTLY).id
    known = pipeline_files()
    found = [one for one in _all(client, ours) if one.flow_id == nightly_id and one.name not in known]
    for one in found:
        if prune:
            client.delete_deployment(one.id)
        yield Outcome(
            f"{NIGHTLY}/{one.name}",
            "removed" if prune else "left over",
            note="no pipeline file has this name" + ("" if prune else ": `nightgate deploy --prune` removes it"),
        )


def _all(client: SyncPrefectClient, which: DeploymentFilter) -> list[DeploymentResponse]:
    found: list[DeploymentResponse] = []
    while page := client.read_deployments(deployment_filter=which, limit=200, offset=len(found)):
        found += page
    return found


def problems(outcomes: Iterable[Outcome]) -> ConfigurationError | None:
    """One error for all pipeline files that could not be registered; None if there are none."""
    broken = [one for one in outcomes if one.outcome == "problem"]
    if not broken:
        return None
    return ConfigurationError(
        f"{len(broken)} of the pipelines could not be deployed:",
        [f"{one.deployment}: {one.note}" for one in broken],
        next_step="fix their files and repeat the command; the others are deployed",
    )
