"""What is deployed: one catalog behind prefect.yaml, `nightgate deploy` and `serve`, against a real Prefect server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema

from deployments.catalog import POOL, as_yaml, catalog, deployable, night_of, packaged_pipelines
from deployments.deploy import Outcome, deploy, problems
from nightgate.errors import ConfigurationError
from nightgate.pipeline_files import load_pipeline
from tests.conftest import free_port
from tests.support.night import TRAPS, nightgate, set_traps, write_pipeline
from tests.support.production import within

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
SCHEDULE = '\n[schedule]\ncron = "45 4 * * *"\ntimezone = "Europe/Berlin"\n'
NIGHTGATE = [sys.executable, "-m", "nightgate.cli.app"]
OPERATIONS = [f"{flow}/nightgate" for flow in ("reconcile", "promote", "rollback", "freeze", "unfreeze")]


def site(folder: Path, *names: str) -> Path:
    """A working directory of these pipelines, as a user has one."""
    text = write_pipeline(folder, "one").read_text(encoding="utf-8")
    pipelines = folder / "deployments" / "pipelines"
    pipelines.mkdir(parents=True)
    for name in names:
        named = text.replace('name = "one"', f'name = "{name}"')
        (pipelines / f"{name}.toml").write_text(named + SCHEDULE, encoding="utf-8")
    return folder


@contextmanager
def client(api_url: str) -> Iterator[Any]:
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as prefect:
        yield prefect


def deployment(api_url: str, full_name: str) -> DeploymentResponse:
    with client(api_url) as prefect:
        found: DeploymentResponse = prefect.read_deployment_by_name(full_name)
    return found


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
    one = night_of(load_pipeline(folder / "deployments/pipelines/clothing.toml"))
    assert (one.full_name, one.cron, one.timezone) == ("nightly/clothing", "45 4 * * *", "Europe/Berlin")
    assert (one.tags, one.parameters) == (("nightgate", "clothing"), {"pipeline": "clothing"})
    [entry] = yaml.safe_load(as_yaml([one]))["deployments"]
    assert entry["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE", "grace_period_seconds": 600}
    assert "pull" not in entry


def test_a_pipeline_that_bears_the_tags_name_has_it_once(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path, "nightgate")
    assert night_of(load_pipeline(path)).tags == ("nightgate",)


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
        yield Site(folder, outcomes())
        with get_client(sync_client=True) as prefect:
            for one in prefect.read_deployments():
                if one.work_pool_name == "test-pool":
                    prefect.delete_deployment(one.id)
            prefect.delete_work_pool("test-pool")


def outcomes(**options: Any) -> dict[str, Outcome]:
    return {one.deployment: one for one in deploy(pool="test-pool", **options)}


@pytest.mark.flow
def test_deploy_registers_every_pipeline_and_the_operations(deployed: Site, prefect_server: str) -> None:
    ours = ["nightly/first", "nightly/second", "nightly/third"]
    assert list(deployed.made) == [*ours, *OPERATIONS]
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
    assert [one.schedule.cron for one in reconcile.schedules] == ["*/5 * * * *"]
    assert reconcile.concurrency_options is not None
    assert reconcile.concurrency_options.collision_strategy.value == "CANCEL_NEW"


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

    again = outcomes()
    assert {name: one.outcome for name, one in again.items()} == {
        "nightly/second": "problem",
        "nightly/first": "updated",
        **dict.fromkeys(OPERATIONS, "updated"),
        "nightly/third": "left over",
    }
    assert [name for name, one in again.items() if "paused" in one.note] == ["nightly/first", "reconcile/nightgate"]
    assert "training.epochs" in again["nightly/second"].note
    assert "--prune" in again["nightly/third"].note
    assert problems(again.values()) is not None

    # A pipeline that is not named here but has a file is not pruned.
    assert outcomes(names=["first"], prune=True)["nightly/third"].outcome == "removed"
    after = deployment(prefect_server, "nightly/first")
    assert after.id == before.id
    assert [(one.schedule.cron, one.active) for one in after.schedules] == [("50 4 * * *", False)]
    assert deployment(prefect_server, "reconcile/nightgate").paused
    assert deployment(prefect_server, "nightly/second").name == "second"
    with pytest.raises(ObjectNotFound):
        deployment(prefect_server, "nightly/third")
    with pytest.raises(ConfigurationError, match="'first'"):
        outcomes(names=["frist"])


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
    pool = [*prefect, "work-pool", "create", POOL, "--type", "process"]
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
        assert found["work_pool_name"] == POOL
        assert found["concurrency_options"]["collision_strategy"] == one.collision
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
    prepare = [[*NIGHTGATE, "db", "upgrade"], [*NIGHTGATE, "deploy", "--pool", "working-pool"]]
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
