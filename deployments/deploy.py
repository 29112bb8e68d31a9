"""`nightgate deploy`: register the catalog's deployments on a Prefect server, for the workers of a work pool.

It may be repeated: existing deployments are updated, paused schedules stay paused, and deployments whose pipeline is
gone are reported, or removed with `--prune`.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner.storage import LocalStorage
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from deployments.catalog import (
    GRACE_SECONDS,
    NIGHTLY,
    PARTS,
    RECONCILE_CRON,
    SLUG,
    TAG,
    Deployment,
    Queue,
    catalog,
    deployable,
    of_user,
    own_name,
    without_cron,
)
from flows.homes import PLACE, deployments_of, described, home_in, is_foreign, pipeline_of, tag_of
from flows.run_form import form_of
from flows.server.checks import worker_command
from flows.server.connection import running_server
from nightgate.config.pipeline import Pipeline
from nightgate.durable_files import user_path
from nightgate.errors import ConfigurationError, NightgateError
from nightgate.home import Home, find_home, home_path
from nightgate.pipeline_files import load_by_name, pipeline_files
from nightgate.settings import read_settings

log = logging.getLogger("nightgate.deployments")

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
    names: Sequence[str] = (),
    *,
    pool: str = "",
    prune: bool = False,
    work_dir: Path | None = None,
    take_over: bool = False,
    say: Callable[[str], object] = log.info,
) -> list[Outcome]:
    """Register the nights and parts of these pipelines, by default of all, and the operations.

    Args:
        names: Pipelines by name, as workers will look them up.
        pool: Work pool; one of type process is made if there is none of this name. Default: `NIGHTGATE_NAME`.
        prune: Remove deployments of pipelines that are gone.
        work_dir: Folder in which runs work and to which paths of pipeline files are relative. None: for a process pool
            the current one, for others the one of their image.
        take_over: Let this home have deployments of another one.
        say: Gets a sentence about who will execute the runs, where that is not the pool's workers alone.

    Raises:
        NightgateError: No server answers, no pipeline has one of the names, or a deployment is another home's. A broken
            pipeline file is an outcome, and the others are registered.
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
    pool = pool or read_settings().name
    with running_server(), get_client(sync_client=True) as client:
        work_pool = _work_pool(client, pool)
        folder = work_dir or (Path.cwd() if work_pool.type == PROCESS else None)
        home = _home_of_runs(folder)
        if not names and not of_user():
            _check_place(client, home)
        # Only our workers, of process pools, reconcile themselves.
        cron = RECONCILE_CRON if work_pool.type == PROCESS else "*/5 * * * *"
        others = _deployed_besides(client, {one.name for one in pipelines})
        found = [(one, existing(client, one.full_name)) for one in catalog(pipelines, cron, others)]
        check_homes(found, home, take_over=take_over)
        _work_queues(client, pool, {one.queue for one, _ in found})
        for one, before in found:
            registered = prefect_deployment(one, before, home)
            registered.work_pool_name, registered.work_queue_name = pool, one.queue.name
            if folder is not None:
                registered.storage = LocalStorage(str(folder.resolve()))
            registered.apply()
            outcomes.append(_outcome(one, before))
        outcomes += [
            Outcome(name, "removed", note="its file has no cron for it") for name in unschedule(client, pipelines, home)
        ]
        outcomes += _left_over(client, home, prune)
        for line in _executors(client, work_pool, [before for _, before in found if before]):
            say(line)
        if folder is not None and not folder.is_dir():
            say(f"there is no folder {folder} here: runs fail where their worker has none of that name either")
        elif home is None and folder is not None:
            say("these deployments belong to no home yet: `nightgate db upgrade` makes one, then deploy again")
    return outcomes


def _home_of_runs(folder: Path | None) -> Home | None:
    """The home of runs that work in `folder`; None where it is not known, as in an image, or is not made yet."""
    if folder is None:
        return None
    return find_home(folder.resolve() / user_path(read_settings().home or ".nightgate"))


def _check_place(client: SyncPrefectClient, home: Home | None) -> None:
    """Refuse to deploy the package's examples where the home has deployments of other pipelines.

    From a wrong folder `--prune` would remove them all, and no night would run any more.

    Raises:
        ConfigurationError: it has.
    """
    if gone := [one.deployment for one in _left_over(client, home, prune=False)]:
        raise ConfigurationError(
            f"no pipeline file is found here (in {Path('deployments/pipelines').resolve()}), and this home has "
            f"deployed {', '.join(gone)}: nothing was changed",
            next_step="go to the folder of their files, or set NIGHTGATE_PIPELINES to it; where they are gone for "
            "good, name a pipeline, as in `nightgate deploy sample --prune`",
        )


def check_homes(
    found: Iterable[tuple[Deployment, DeploymentResponse | None]], home: Home | None, *, take_over: bool
) -> None:
    """Refuse to change deployments of another home.

    Raises:
        ConfigurationError: some are, and they are not to be taken over.
    """
    ours = tag_of(home) if home else ""
    foreign = [(one, before) for one, before in found if before is not None and is_foreign(before.tags, ours)]
    if foreign and not take_over:
        raise ConfigurationError(
            f"deployments of these names belong to another home than {ours or 'that of ' + str(home_path())}:",
            [f"{one.full_name}: {described(before)}" for one, before in foreign],
            next_step=(
                "give this home a name of its own there with NIGHTGATE_NAME=NAME"
                if home
                else "set NIGHTGATE_HOME to the home of the workers"
            )
            + ", or repeat with --take-over where the other is gone",
        )


def unschedule(client: SyncPrefectClient, pipelines: Iterable[Pipeline], home: Home | None) -> list[str]:
    """Remove this home's deployments of these pipelines for which their files have a cron no longer; the names."""
    found = [(name, existing(client, name)) for name in without_cron(pipelines)]
    gone = {name: one.id for name, one in found if one and not is_foreign(one.tags, tag_of(home) if home else "")}
    for one in gone.values():
        client.delete_deployment(one)
    return list(gone)


def prefect_deployment(
    one: Deployment, before: DeploymentResponse | None = None, home: Home | None = None
) -> RunnerDeployment:
    """An entry of the catalog for Prefect's client. What is paused in `before`, the existing one, stays paused."""
    place = f"{PLACE}{platform.node()}:{home.root}" if home else ""
    schedules = before.schedules if before else []
    active = not schedules or any(schedule.active for schedule in schedules)
    # Not Prefect's load_flow_from_entrypoint, which imports from the working folder first.
    module, _, flow = one.entrypoint.rpartition(".")
    deployment = RunnerDeployment.from_flow(
        getattr(import_module(module), flow),
        name=one.name,
        description=one.description + place,
        schedule=Cron(one.cron, timezone=one.timezone, active=active, slug=SLUG) if one.cron else None,
        paused=bool(before and before.paused),
        parameters=dict(one.parameters),
        tags=[*one.tags, *([tag_of(home)] if home else [])],
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1,
            collision_strategy=ConcurrencyLimitStrategy(one.collision),
            grace_period_seconds=GRACE_SECONDS,
        )
        if one.collision
        else None,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    form = deployment._parameter_openapi_schema
    if one.pipelines:
        form.properties["pipeline"].pop("default", None)
        form.properties["pipeline"]["enum"] = sorted({*one.pipelines, *_choices(before)})
        form.required = sorted({*form.required, "pipeline"})
    if one.form_of is not None:
        form.definitions = form_of(one.form_of, form.definitions)
    return deployment


def _deployed_besides(client: SyncPrefectClient, names: set[str]) -> list[Pipeline]:
    """Other pipelines that can be chosen by an earlier call; their slots count for the queue that all share."""
    before = existing(client, f"{NIGHTLY}/{read_settings().name}")
    found = []
    for name in sorted(_choices(before) - names):
        with suppress(NightgateError):  # a broken file
            found.append(load_by_name(name))
    return found


def _choices(before: DeploymentResponse | None) -> set[str]:
    """The pipelines that can be chosen now, of those whose files are still there: others were deployed before."""
    schema = (before and before.parameter_openapi_schema) or {}
    return {*schema.get("properties", {}).get("pipeline", {}).get("enum", ())} & {*pipeline_files()}


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


def _work_queues(client: SyncPrefectClient, pool: str, queues: Iterable[Queue]) -> None:
    """Make the queues, with their limits, in the order of their priority; one that is paused stays so."""
    for place, queue in enumerate(sorted(queues, key=lambda queue: queue.order), 1):
        try:
            found = client.read_work_queue_by_name(queue.name, work_pool_name=pool)
        except ObjectNotFound:
            client.create_work_queue(queue.name, work_pool_name=pool, concurrency_limit=queue.limit, priority=place)
            continue
        if (found.concurrency_limit, found.priority) != (queue.limit, place):
            client.update_work_queue(found.id, concurrency_limit=queue.limit, priority=place)


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


def _left_over(client: SyncPrefectClient, home: Home | None, prune: bool) -> Iterable[Outcome]:
    """This home's deployments whose pipeline file is gone, or which have its earlier name."""
    known = {f"{part.flow}/{own_name(name)}" for name in pipeline_files() for part in PARTS}
    known |= {one.full_name for one in catalog(())}
    ours = tag_of(home) if home else ""
    for flow in dict.fromkeys(name.partition("/")[0] for name in [f"{NIGHTLY}/", *sorted(known)]):
        for one in deployments_of(client, flow):
            full_name = f"{flow}/{one.name}"
            # Without a home's tag, as of an earlier version, it is ours by the form of its name.
            is_named_as_ours = flow in {part.flow for part in PARTS} and own_name(pipeline_of(one)) == one.name
            is_ours = home_in(one.tags) == ours if home_in(one.tags) else is_named_as_ours
            if TAG not in one.tags or not is_ours or full_name in known:
                continue
            if prune:
                client.delete_deployment(one.id)
            yield Outcome(
                full_name,
                "removed" if prune else "left over",
                note="no pipeline file has this name" + ("" if prune else ": `nightgate deploy --prune` removes it"),
            )


def _executors(client: SyncPrefectClient, pool: WorkPool, before: Iterable[DeploymentResponse]) -> Iterable[str]:
    """Who will execute the runs, where it is not the pool's workers alone."""
    served = [one for one in before if not one.work_pool_name and one.status and one.status.value == "READY"]
    if served:
        names = ", ".join(dict.fromkeys(map(pipeline_of, served)))
        yield (
            f"`nightgate serve` polls for {names}, or did within the last minute: while it runs, it executes their "
            f"runs beside the workers of {pool.name}\n  next: stop it to leave the runs to the workers"
        )
    if pool.is_push_pool or pool.is_managed_pool:
        return
    if not any(worker.status.value == "ONLINE" for worker in client.read_workers_for_work_pool(pool.name)):
        start = worker_command(pool)
        yield f"work pool {pool.name} has no worker: due runs stay late until one is started\n  next: `{start}`"


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
