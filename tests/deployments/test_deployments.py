"""What is deployed: one catalog behind prefect.yaml, `nightgate deploy` and `serve`, against a real Prefect server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import yaml
from prefect import tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Scheduled
from prefect.utilities.callables import parameter_schema

from deployments.catalog import PARTS, as_yaml, catalog, deployable, packaged_pipelines
from deployments.deploy import Outcome, deploy, problems
from deployments.serve import crons_of, make_runner
from deployments.worker import PatientWorker
from flows import manual_promotion
from flows.homes import home_in, tag_of
from flows.nightly import nightly
from flows.reconcile import reconcile
from flows.run_form import show_values
from nightgate.errors import ConfigurationError
from nightgate.home import open_home
from nightgate.pipeline_files import load_pipeline
from tests.conftest import free_port
from tests.support.night import TRAPS, nightgate, set_traps, write_pipeline
from tests.support.prefect_api import client, deployment
from tests.support.production import within

pytestmark = [pytest.mark.process, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SCHEDULE = '\n[schedule]\ncron = "45 4 * * *"\ntimezone = "Europe/Berlin"\n'
NIGHTGATE = [sys.executable, "-m", "nightgate.cli.app"]
FLOWS = (*(part.flow for part in PARTS), "reconcile", "promote", "rollback", "freeze", "unfreeze")
SHARED = [f"{flow}/nightgate" for flow in FLOWS]


def site(folder: Path, *names: str) -> Path:
    """A working directory of these pipelines, as a user has one."""
    text = write_pipeline(folder, "one").read_text(encoding="utf-8")
    pipelines = folder / "deployments" / "pipelines"
    pipelines.mkdir(parents=True)
    for name in names:
        named = text.replace('name = "one"', f'name = "{name}"')
        (pipelines / f"{name}.toml").write_text(named + SCHEDULE, encoding="utf-8")
    return folder


# --- the catalog ---


def test_prefect_yaml_says_what_the_catalog_says() -> None:
    written = (ROOT / "deployments" / "prefect.yaml").read_text(encoding="utf-8")
    assert written == as_yaml(catalog(packaged_pipelines())), (
        "run: python -m deployments.catalog > deployments/prefect.yaml"
    )
    names = {(one["entrypoint"], one["name"]) for one in yaml.safe_load(written)["deployments"]}
    assert ("flows.nightly.nightly", "sample") in names
    assert "template" not in {name for _, name in names}


def test_a_pipeline_gives_its_cron_timezone_tags_and_name_and_runs_once_at_a_time(tmp_path: Path) -> None:
    folder = site(tmp_path, "clothing")
    one = PARTS[0].own(load_pipeline(folder / "deployments/pipelines/clothing.toml"))
    assert (one.full_name, one.cron, one.timezone) == ("nightly/clothing", "45 4 * * *", "Europe/Berlin")
    assert (one.tags, one.parameters) == (("nightgate", "clothing"), {"pipeline": "clothing"})
    [entry] = yaml.safe_load(as_yaml([one]))["deployments"]
    assert entry["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE", "grace_period_seconds": 600}
    assert "pull" not in entry


def test_a_pipeline_that_bears_the_tags_name_has_it_once(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path, "nightgate")
    found = catalog([load_pipeline(path)])
    assert found[0].tags == ("nightgate",)
    assert len({one.full_name for one in found}) == len(found)


def test_a_pipeline_has_deployments_of_its_own_where_it_has_a_cron_and_is_a_choice_of_the_others(
    tmp_path: Path,
) -> None:
    file = '\n[schedule]\ncron = ""\nrefresh = { cron = "*/20 * * * *" }\n'
    path = write_pipeline(tmp_path, "hourly")
    path.write_text(path.read_text() + file, encoding="utf-8")
    pipelines = [load_pipeline(path), load_pipeline("sample")]
    found = {one.full_name: one for one in catalog(pipelines)}
    assert set(found) == {
        *("refresh/hourly", "nightly/sample"),
        *SHARED,
    }
    assert (found["refresh/hourly"].cron, found["refresh/hourly"].collision) == ("*/20 * * * *", "CANCEL_NEW")
    shared = found["refresh/nightgate"]
    assert (shared.pipelines, shared.cron, shared.collision) == (("hourly", "sample"), "", None)
    assert crons_of(pipelines[0]) == "refresh */20 * * * *, UTC"


@pytest.mark.parametrize("one", catalog(packaged_pipelines()), ids=lambda one: str(one.full_name))
def test_every_entry_point_is_the_module_of_a_flow_of_that_name(one: Any) -> None:
    assert ":" not in one.entrypoint
    assert load_flow_from_entrypoint(one.entrypoint, use_placeholder_flow=False).name == one.flow


def test_examples_are_not_deployed_beside_pipelines_of_ones_own_nor_the_template_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "sample" in deployable()
    assert "template" not in deployable()
    shutil.copy(ROOT / "deployments/pipelines/template.toml", site(tmp_path, "mine") / "deployments/pipelines")
    assert deployable() == ["mine"]
    monkeypatch.chdir(ROOT)
    assert {"sample", "amazon-reviews-multi"} <= set(deployable())


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("pipeline", "../sample"),
        ("pipeline", "sample; DROP TABLE run"),
        ("version", "1 OR 1=1"),
        ("version", "-1"),
        ("reason", "  "),
        ("reason", "x" * 501),
        ("requested_by", ""),
        ("requested_by", "x" * 101),
    ],
)
def test_the_forms_of_promote_and_rollback_are_bounded_and_explained(parameter: str, value: str) -> None:
    import jsonschema

    promote = load_flow_from_entrypoint("flows.manual_promotion.promote")
    schema = parameter_schema(promote).model_dump()
    assert all(field["description"] for field in schema["properties"].values())
    good = {"pipeline": "sample", "version": "2", "reason": "checked manually", "requested_by": "Ada"}
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**good, parameter: value}, schema)
    # The form's check can be switched off; the flow's own says the same.
    with pytest.raises(Exception, match=parameter):
        promote.validate_parameters({**good, parameter: value})


# --- nightgate deploy ---


@dataclass(frozen=True)
class Site:
    """A working directory whose pipelines `first`, `second` and `third` are deployed."""

    folder: Path
    made: dict[str, Outcome]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def rewrite(self, name: str, old: str, new: str) -> None:
        path = self.folder / "deployments" / "pipelines" / f"{name}.toml"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="module")
def deployed(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = site(tmp_path_factory.mktemp("site"), "first", "second", "third")
    with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_API_URL: prefect_server}):
        patch.chdir(folder)
        open_home(folder / "home")
        yield Site(folder, outcomes(folder))
        with get_client(sync_client=True) as prefect:
            for one in prefect.read_deployments():
                if one.work_pool_name == "test-pool":
                    prefect.delete_deployment(one.id)
            prefect.delete_work_pool("test-pool")


def outcomes(folder: Path, home: str = "home", **options: Any) -> dict[str, Outcome]:
    """What `nightgate deploy` does there. Other tests have deployed operations of their homes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTGATE_HOME", str(folder / home))
        return {one.deployment: one for one in deploy(**{"pool": "test-pool", "take_over": True, **options})}


@pytest.mark.flow
def test_deploy_registers_every_pipeline_and_the_operations(deployed: Site, prefect_server: str) -> None:
    ours = ["nightly/first", "nightly/second", "nightly/third"]
    assert list(deployed.made) == [*ours, *SHARED]
    assert {deployed.made[name].outcome for name in ours} == {"created"}
    first = deployment(prefect_server, "nightly/second")
    [schedule] = first.schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("45 4 * * *", "Europe/Berlin")
    assert (first.work_pool_name, first.entrypoint) == ("test-pool", "flows.nightly.nightly")
    step = {"prefect.deployments.steps.set_working_directory": {"directory": str(deployed.folder)}}
    assert first.pull_steps == [step]
    assert first.global_concurrency_limit is not None
    assert first.global_concurrency_limit.limit == 1
    reconcile = deployment(prefect_server, "reconcile/nightgate")
    assert [one.schedule.cron for one in reconcile.schedules] == ["*/10 * * * *"]
    assert reconcile.concurrency_options is not None
    assert reconcile.concurrency_options.collision_strategy.value == "CANCEL_NEW"
    assert (first.work_queue_name, reconcile.work_queue_name) == ("default", "operations")


@pytest.mark.flow
def test_deploy_makes_a_queue_of_each_slot_and_priority_with_its_limit_and_operations_go_first(
    deployed: Site, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (deployed.folder / "deployments" / "pipelines" / "first.toml").read_text(encoding="utf-8")
    monkeypatch.setenv("NIGHTGATE_SLOT_LIMITS", "gpu=3")
    for slot, queue in (('slot = "gpu"\npriority = 5', "gpu.5"), ('slot = ""', "operations")):
        deployed.rewrite("first", text, f"{text}\n[resources]\n{slot}\n")
        outcomes(deployed.folder)
        assert deployment(prefect_server, "nightly/first").work_queue_name == queue
        outcomes(deployed.folder, names=["first"])
        assert deployment(prefect_server, "nightly/nightgate").work_queue_name == "operations", "not in its slot"
        deployed.rewrite("first", f"\n[resources]\n{slot}\n", "")
    with client(prefect_server) as prefect:
        found = sorted(prefect.read_work_queues("test-pool"), key=lambda queue: queue.priority)
    limits = [(queue.name, queue.concurrency_limit) for queue in found]
    assert limits[0] == ("operations", None)
    assert {("default", 1), ("gpu.5", 3)} < set(limits)
    outcomes(deployed.folder)


@pytest.mark.flow
def test_serve_starts_as_many_as_the_limit_the_highest_priority_first_then_the_earliest(
    deployed: Site, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTGATE_HOME", str(deployed.home))
    outcomes(deployed.folder)
    found = [deployment(prefect_server, f"nightly/{name}").id for name in ("first", "second", "third")]
    due = [Scheduled(scheduled_time=datetime.now(UTC) - timedelta(minutes=back)) for back in (3, 2, 1)]
    with client(prefect_server) as prefect:
        runs = [prefect.create_flow_run_from_deployment(one, state=at).id for one, at in zip(found, due, strict=True)]

    async def taken(limit: int, at_work: set[UUID]) -> list[int]:
        async with make_runner(limit) as runner:
            runner.priorities[found[2]] = 5
            runner._deployment_registry.get_deployment_ids = lambda: set(found)  # type: ignore[method-assign]
            poller = runner._scheduled_run_poller
            poller._submitting_flow_run_ids |= at_work
            return [runs.index(one.id) for one in await poller._get_scheduled_flow_runs() if one.id in runs]

    with temporary_settings({PREFECT_API_URL: prefect_server}):
        assert asyncio.run(taken(2, set())) == [2, 0]
        assert asyncio.run(taken(2, {runs[2]})) == [0]
        assert asyncio.run(taken(1, {runs[2]})) == []
    with client(prefect_server) as prefect:
        for run in runs:
            prefect.delete_flow_run(run)


@pytest.mark.flow
@pytest.mark.parametrize("variables", [{"command": "id"}, {"env": {"NIGHTGATE_HOME": "/etc"}}, {"working_dir": "/etc"}])
@pytest.mark.usefixtures("deployed")
def test_a_run_can_choose_neither_its_command_nor_its_environment(
    prefect_server: str, variables: dict[str, Any]
) -> None:
    answer = httpx.post(
        f"{prefect_server}/deployments/{deployment(prefect_server, 'nightly/second').id}/create_flow_run",
        json={"parameters": {"pipeline": "second"}, "job_variables": variables},
        timeout=20,
    )
    assert answer.status_code == 422, answer.text
    assert "Additional properties are not allowed" in answer.text


@pytest.mark.flow
def test_deploying_again_follows_the_files_and_leaves_paused_broken_and_gone_deployments_alone(
    deployed: Site, prefect_server: str
) -> None:
    before, reconcile = deployment(prefect_server, "nightly/first"), deployment(prefect_server, "reconcile/nightgate")
    with client(prefect_server) as prefect:
        prefect.update_deployment_schedule(before.id, before.schedules[0].id, active=False)
        prefect.pause_deployment(reconcile.id)
    deployed.rewrite("first", "45 4", "50 4")
    deployed.rewrite("second", "epochs = 2", "epochs = 0")
    (deployed.folder / "deployments/pipelines/third.toml").unlink()

    again = outcomes(deployed.folder)
    assert {name: one.outcome for name, one in again.items()} == {
        "nightly/second": "problem",
        "nightly/first": "updated",
        **dict.fromkeys(SHARED, "updated"),
        "nightly/third": "left over",
    }
    assert [name for name, one in again.items() if "paused" in one.note] == ["nightly/first", "reconcile/nightgate"]
    assert "training.epochs" in again["nightly/second"].note
    assert "--prune" in again["nightly/third"].note
    assert problems(again.values()) is not None

    # A pipeline that is not named here but has a file is not pruned.
    assert outcomes(deployed.folder, names=["first"], prune=True)["nightly/third"].outcome == "removed"
    after = deployment(prefect_server, "nightly/first")
    assert after.id == before.id
    assert [(one.schedule.cron, one.active) for one in after.schedules] == [("50 4 * * *", False)]
    # The form follows the file between two deployments too.
    deployed.rewrite("first", "epochs = 2", "epochs = 4")
    file = load_pipeline(deployed.folder / "deployments/pipelines/first.toml")
    with client(prefect_server) as prefect:
        assert [show_values(prefect, deployment(prefect_server, "nightly/first"), file) for _ in range(2)] == [
            True,
            False,
        ]
    followed = deployment(prefect_server, "nightly/first")
    assert [_epochs_of_form(one) for one in (after, followed)] == [
        f"Passes over the training rows. Empty: {epochs}, as in the file of first." for epochs in (2, 4)
    ]
    assert (followed.schedules, followed.tags, followed.parameters) == (after.schedules, after.tags, after.parameters)
    assert "else 5" in _epochs_of_form(deployment(prefect_server, "nightly/nightgate"))
    assert deployment(prefect_server, "reconcile/nightgate").paused
    assert deployment(prefect_server, "nightly/second").name == "second"
    with pytest.raises(ObjectNotFound):
        deployment(prefect_server, "nightly/third")
    with pytest.raises(ConfigurationError, match="'first'"):
        outcomes(deployed.folder, names=["frist"])
    # Those that were deployed before can be chosen while they have a file; one without a cron has no schedule any more.
    deployed.rewrite("second", "epochs = 0", "epochs = 2")
    deployed.rewrite("second", "45 4 * * *", "")
    assert outcomes(deployed.folder, names=["second"])["nightly/second"].outcome == "removed"
    choices = deployment(prefect_server, "nightly/nightgate").parameter_openapi_schema or {}
    assert choices["properties"]["pipeline"]["enum"] == ["first", "second"]


def _epochs_of_form(found: DeploymentResponse) -> str:
    definitions = (found.parameter_openapi_schema or {})["definitions"]
    return str(definitions["TrainingForm"]["properties"]["epochs"]["description"])


# --- several homes on one server ---


@pytest.mark.slow
@pytest.mark.flow
def test_another_home_is_refused_and_has_names_of_its_own_or_takes_over(
    deployed: Site, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = tag_of(open_home(deployed.home)), tag_of(open_home(deployed.folder / "other"))
    with pytest.raises(ConfigurationError) as refused:
        outcomes(deployed.folder, "other", names=["first"], take_over=False)
    assert [line.split(":")[0] for line in refused.value.problems] == ["nightly/first", *SHARED]
    assert all(theirs in line and str(deployed.home) in line for line in refused.value.problems)
    assert "NIGHTGATE_NAME" in refused.value.next_step
    assert home_in(deployment(prefect_server, "nightly/first").tags) == theirs
    # Nor by a process that does not find its home.
    with pytest.raises(ConfigurationError, match="NIGHTGATE_HOME"):
        outcomes(deployed.folder, "none", names=["first"], take_over=False)

    monkeypatch.setenv("NIGHTGATE_NAME", "shop")
    made = outcomes(deployed.folder, "other", names=["first"], take_over=False, prune=True)
    assert set(made) == {"nightly/first.shop", *(f"{flow}/shop" for flow in FLOWS)}
    assert home_in(deployment(prefect_server, "nightly/first.shop").tags) == ours
    assert deployment(prefect_server, "nightly/first.shop").parameters == {"pipeline": "first"}
    # It prunes its own former names only, and a process without a home none that has no home, as of earlier versions.
    monkeypatch.setenv("NIGHTGATE_NAME", "market")
    with client(prefect_server) as prefect:
        flow_id = deployment(prefect_server, "nightly/first").flow_id
        prefect.create_deployment(flow_id, "gone", tags=["nightgate"], parameters={"pipeline": "gone"})
    assert "nightly/gone" not in outcomes(deployed.folder, "none", names=["first"], prune=True)
    again = outcomes(deployed.folder, "other", names=["first"], take_over=False, prune=True)
    removed = {name for name, one in again.items() if one.outcome == "removed"}
    assert removed == {"nightly/first.shop", *(f"{flow}/shop" for flow in FLOWS)}
    assert home_in(deployment(prefect_server, "nightly/first").tags) == theirs

    monkeypatch.delenv("NIGHTGATE_NAME")
    outcomes(deployed.folder, "other", names=["first"])
    assert home_in(deployment(prefect_server, "nightly/first").tags) == ours
    assert outcomes(deployed.folder, prune=True)["nightly/gone"].outcome == "removed"


@pytest.mark.slow
@pytest.mark.flow
def test_worker_and_serve_leave_runs_of_another_home_to_it(
    deployed: Site, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes(deployed.folder)
    found = deployment(prefect_server, "nightly/first")
    with client(prefect_server) as prefect:
        run = prefect.create_flow_run_from_deployment(found.id)

    async def seen_by_worker(home: Path) -> list[UUID]:
        monkeypatch.setenv("NIGHTGATE_HOME", str(home))
        async with PatientWorker("test-pool") as worker:
            return [one.flow_run.id for one in await worker._get_scheduled_flow_runs()]

    async def seen(home: Path) -> tuple[bool, bool]:
        of_worker = await seen_by_worker(home)
        async with make_runner() as runner:
            runner._deployment_registry.get_deployment_ids = lambda: {found.id}  # type: ignore[method-assign]
            of_serve = [one.id for one in await runner._scheduled_run_poller._get_scheduled_flow_runs()]
        return run.id in of_worker, run.id in of_serve

    with temporary_settings({PREFECT_API_URL: prefect_server}):
        other = open_home(deployed.folder / "third-home").root
        assert (asyncio.run(seen(other)), asyncio.run(seen(deployed.home))) == ((False, False), (True, True))
        # A home that cannot be read for a while ends no worker.
        (other / "home.json").write_text("{}", encoding="utf-8")
        assert asyncio.run(seen_by_worker(other)) == []
        # Where its disk is not mounted, the runs stay for a worker that has the home.
        (other / "home.json").unlink()
        assert asyncio.run(seen_by_worker(other)) == []
    with client(prefect_server) as prefect:
        prefect.delete_flow_run(run.id)


@pytest.mark.flow
def test_a_run_of_another_home_is_refused_before_it_does_anything(prefect_server: str, environment: Path) -> None:
    runs = [
        partial(nightly, "sample"),
        reconcile,
        partial(manual_promotion.freeze, "sample", reason="a test", requested_by="Ada"),
    ]
    with temporary_settings({PREFECT_API_URL: prefect_server}), tags("home:00000000"):
        # Without a home, as where its disk is not mounted, and with another one.
        states = [runs[0](return_state=True)]
        assert not environment.exists()
        open_home(environment)
        states += [run(return_state=True) for run in runs]
    assert {state.type.value for state in states} == {"FAILED"}
    assert all("home:00000000" in state.message and "\n  next: " in state.message for state in states)
    assert not (environment / "metrics.db").exists()


@pytest.mark.flow
def test_deploy_in_a_folder_without_pipelines_removes_none(
    deployed: Site, prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=f"{tmp_path}.*nightly/first"):
        outcomes(deployed.folder, prune=True)
    assert deployment(prefect_server, "nightly/first")


@pytest.mark.flow
def test_deploy_says_who_executes_the_runs(deployed: Site, prefect_server: str) -> None:
    said: list[str] = []
    outcomes(deployed.folder, names=["first"], pool="other-pool", say=said.append)
    [note] = said
    assert note.endswith("`python -m deployments.worker --pool other-pool`")
    with client(prefect_server) as prefect:
        prefect.send_worker_heartbeat("other-pool", "night-worker", heartbeat_interval_seconds=30)
        # As a serving process has it.
        found = deployment(prefect_server, "nightly/first")
        prefect.update_deployment(found.id, DeploymentUpdate(work_pool_name=None))
        prefect.get_scheduled_flow_runs_for_deployments([found.id])
        within(10, lambda: deployment(prefect_server, "nightly/first").status.value == "READY", "ready")
    said.clear()
    outcomes(deployed.folder, names=["first"], pool="other-pool", say=said.append)
    [note] = said
    assert "nightgate serve" in note
    assert "first" in note
    said.clear()
    outcomes(deployed.folder, names=["first"], work_dir=deployed.folder / "gone", say=said.append)
    assert f"there is no folder {deployed.folder / 'gone'} here" in said[-1]
    outcomes(deployed.folder, names=["first"])
    with client(prefect_server) as prefect:
        prefect.delete_work_pool("other-pool")


@pytest.mark.parametrize(
    ("setting", "value"), [("NIGHTGATE_SLOT_LIMITS", "many"), ("PREFECT_API_URL", "http://127.0.0.1:9/api")]
)
def test_a_worker_refuses_a_bad_setting_in_words(setting: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deployments.worker"],
        cwd=ROOT,
        env={**os.environ, "PREFECT_CLIENT_MAX_RETRIES": "0", setting: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert setting in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_server_deploy_names_the_address_and_the_next_step() -> None:
    away = f"http://127.0.0.1:{free_port()}/api"
    with (
        temporary_settings({PREFECT_API_URL: away}),
        pytest.raises(ConfigurationError) as refused,
    ):
        deploy(["sample"])
    assert away in str(refused.value)
    assert "nightgate serve" in str(refused.value)


# --- slow: whole processes ---


@pytest.fixture(scope="module")
def authenticated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server of this module with authentication; yields the environment of an accepted client."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    given = {
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_API_AUTH_STRING": "ada:lovelace",
        "PREFECT_HOME": str(folder / "prefect"),
    }
    server = {
        "PREFECT_SERVER_API_AUTH_STRING": "ada:lovelace",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **given, **server})
    try:
        within(120, lambda: healthy(given["PREFECT_API_URL"]), (folder / "log.txt").read_text())
        yield given
    finally:
        process.terminate()
        process.wait(30)


def healthy(api_url: str) -> bool:
    try:
        return httpx.get(f"{api_url}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.faults
def test_a_server_with_authentication_refuses_strangers_and_runs_nights(
    authenticated: dict[str, str], tmp_path: Path
) -> None:
    pipeline = write_pipeline(tmp_path, "guarded")
    home = {"NIGHTGATE_HOME": str(tmp_path / "home")}
    stranger = {key: value for key, value in authenticated.items() if key != "PREFECT_API_AUTH_STRING"}
    assert httpx.get(f"{authenticated['PREFECT_API_URL']}/admin/version", timeout=5).status_code == 401

    named = {"NIGHTGATE_PIPELINES": str(pipeline)}
    refused = nightgate("deploy", "guarded", cwd=tmp_path, env={**home, **stranger, **named})
    assert refused.returncode == 2, refused.stderr
    assert "(401)" in refused.stderr
    assert "PREFECT_API_AUTH_STRING" in refused.stderr
    assert "Traceback" not in refused.stderr
    served = nightgate("serve", pipeline, cwd=tmp_path, env={**home, **stranger})
    assert served.returncode == 1, served.stderr
    assert "(401)" in served.stderr
    assert "Traceback" not in served.stderr

    done = nightgate("run", pipeline, "--night", "2026-01-05", cwd=tmp_path, env={**home, **authenticated})
    assert done.returncode == 0, done.stderr
    assert f"using the Prefect server at {authenticated['PREFECT_API_URL']}" in done.stderr
    assert "PROMOTED" in done.stdout
    assert "lovelace" not in done.stdout + done.stderr
    runs = httpx.post(
        f"{authenticated['PREFECT_API_URL']}/flow_runs/filter", json={}, auth=("ada", "lovelace"), timeout=5
    ).json()
    assert [(run["name"].split(":")[0], run["state_name"]) for run in runs] == [("guarded 2026-01-05", "Promoted")]


@pytest.mark.faults
def test_prefects_own_command_registers_what_prefect_yaml_says(authenticated: dict[str, str]) -> None:
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    environment = {**os.environ, **authenticated}
    pool = [*prefect, "work-pool", "create", "nightgate", "--type", "process"]
    subprocess.run(pool, check=True, capture_output=True, env=environment)
    file = ["--all", "--prefect-file", "deployments/prefect.yaml"]
    for _ in range(2):
        done = subprocess.run(
            [*prefect, "deploy", *file], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    url, user = authenticated["PREFECT_API_URL"], ("ada", "lovelace")
    for one in catalog(packaged_pipelines()):
        found = httpx.get(f"{url}/deployments/name/{one.full_name}", auth=user, timeout=5).json()
        assert found["entrypoint"] == one.entrypoint
        assert set(found["tags"]) == set(one.tags)
        assert [(each["schedule"]["cron"], each["slug"]) for each in found["schedules"]] == (
            [(one.cron, "nightgate")] if one.cron else []
        )
        assert (found["work_pool_name"], found["work_queue_name"]) == ("nightgate", one.queue.name)
        assert (found["concurrency_options"] or {}).get("collision_strategy") == one.collision
        [step] = found["pull_steps"]
        assert step == {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}


@pytest.mark.faults
def test_a_worker_runs_a_night_in_the_folder_in_which_it_was_deployed(
    prefect_server: str, tmp_path: Path, session_root: Path
) -> None:
    folder = site(tmp_path, "working")
    kept = {name: value for name, value in os.environ.items() if name != "NIGHTGATE_HOME"}
    environment = {
        **kept,
        "PREFECT_API_URL": prefect_server,
        "PREFECT_HOME": str(session_root / "worker"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    prepare = [[*NIGHTGATE, "db", "upgrade"], [*NIGHTGATE, "deploy", "--pool", "working-pool", "--take-over"]]
    for command in prepare:
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    set_traps(folder)
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "deployments.worker", "--pool", "working-pool"],
            cwd=session_root,
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        with client(prefect_server) as prefect:
            run: FlowRun = prefect.create_flow_run_from_deployment(
                prefect.read_deployment_by_name("nightly/working").id, parameters={"pipeline": "working"}
            )

            def ended() -> Any:
                assert worker.poll() is None, log.read_text()
                state = prefect.read_flow_run(run.id).state
                return state if state.is_final() else None

            state = within(180, ended, f"the night's end; {log.read_text()}")
        assert (state.type.value, state.name) == ("COMPLETED", "Promoted"), log.read_text()
        # What it imports is not.
        assert list(folder.glob("*.executed")) == []
        for name in TRAPS:
            (folder / f"{name}.py").unlink()
        # Its home is there, and not in the temporary folder that Prefect gives a process without a pull step.
        history = subprocess.run(
            [*NIGHTGATE, "history", "working", "--format", "json"],
            cwd=folder,
            env=environment,
            check=True,
            capture_output=True,
        )
        assert [night["status"] for night in json.loads(history.stdout)] == ["promoted"]
    finally:
        worker.terminate()
        worker.wait(30)
