"""The examples for production agree with the code: settings, services, images and job templates."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any
from uuid import uuid4

import jsonschema
import pytest
import yaml

from deployments.deploy import FLOW_ENVIRONMENT
from flows.server.connection import SERVER_ENVIRONMENT
from tests.conftest import free_port

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
ENV = (ROOT / ".env.example").read_text(encoding="utf-8")
UNITS = sorted((ROOT / "deployments" / "systemd").glob("*.service"))
COMPOSE = ROOT / "deployments" / "docker" / "compose.yaml"
LEASES = "prefect.server.concurrency.lease_storage.filesystem"


def settings() -> dict[str, str]:
    """Name and example of every setting in .env.example, commented out or not."""
    return dict(re.findall(r"^#?([A-Z][A-Z0-9_]+)=(.*)$", ENV, flags=re.MULTILINE))


def in_force() -> dict[str, str]:
    """The settings of an unchanged copy of .env.example."""
    return dict(re.findall(r"^([A-Z][A-Z0-9_]+)=(.*)$", ENV, flags=re.MULTILINE))


# --- settings ---


def test_every_setting_of_prefect_in_the_example_exists() -> None:
    from prefect.settings.legacy import _get_valid_setting_names
    from prefect.settings.models.root import Settings

    known = _get_valid_setting_names(Settings)
    assert {name for name in settings() if name.startswith("PREFECT_")} - {"PREFECT_AUTH"} <= known


def test_every_setting_carries_its_reason_right_above() -> None:
    lines = ENV.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"#?[A-Z][A-Z0-9_]+=", line):
            above = lines[number - 1]
            assert re.match(r"# [^-]", above), f"{line} has no reason"
            assert not lines[number + 1 :] or lines[number + 1] == "", f"{line} shares its reason"


def test_the_example_holds_no_secret_and_binds_to_loopback() -> None:
    secrets = {name for name in settings() if re.search(r"AUTH|_URL$|TOKEN|PASSWORD", name)}
    assert secrets & set(in_force()) == {"PREFECT_API_URL"}
    assert in_force()["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert in_force()["PREFECT_SERVER_API_HOST"] == in_force()["PREFECT_WORKER_WEBSERVER_HOST"] == "127.0.0.1"
    ignored = subprocess.run(["git", "check-ignore", ".env"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ignored.returncode == 0 or not (ROOT / ".git").exists(), ".env must not come under version control"


def test_the_example_has_the_settings_of_serve_and_deploy() -> None:
    assert (FLOW_ENVIRONMENT | SERVER_ENVIRONMENT).items() <= in_force().items()


# --- services ---


def unit(name: str) -> dict[str, list[str]]:
    """The directives of a unit's [Service], each with its values in order."""

    class Collected(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, [*self.get(key, []), *value] if isinstance(value, list) else value)

    parser = ConfigParser(interpolation=None, strict=False, dict_type=Collected, empty_lines_in_values=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    read = (ROOT / "deployments" / "systemd" / f"nightgate-{name}.service").read_text(encoding="utf-8")
    parser.read_string(read)
    return {key: value.split("\n") for key, value in parser["Service"].items()}


def test_a_worker_is_stopped_alone_and_given_the_time_of_a_night() -> None:
    worker = unit("worker")
    assert (worker["KillMode"], worker["KillSignal"]) == (["mixed"], ["SIGTERM"])
    assert worker["TimeoutStopSec"] == ["6h"]
    assert worker["Restart"] == ["always"]
    assert "-m deployments.worker --pool nightgate" in worker["ExecStart"][0]
    # GPUs are devices, and a job that exhausts the memory must not end the worker.
    assert "PrivateDevices" not in worker
    assert worker["OOMPolicy"] == ["continue"]


def test_a_server_listens_on_loopback_by_default_and_keeps_leases_on_disk() -> None:
    server = unit("server")
    # By settings, which /etc/nightgate/env overrides; it could not override an option.
    assert server["ExecStart"] == ["/opt/nightgate/.venv/bin/python -m flows.own_server"]
    assert "PREFECT_SERVER_API_HOST=127.0.0.1" in server["Environment"]
    assert {f"{name}={value}" for name, value in SERVER_ENVIRONMENT.items()} <= set(server["Environment"])
    assert server["Restart"] == ["always"]
    assert "KillMode" not in server


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
def test_systemd_verifies_the_units(tmp_path: Path) -> None:
    for path in UNITS:
        text = path.read_text(encoding="utf-8")
        # The program must exist: this installation's is used in place of /opt/nightgate.
        assert "/opt/nightgate/.venv/bin/" in text
        text = re.sub(r"/opt/nightgate/\.venv/bin/[a-z]+", sys.executable, text)
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    verify = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / path.name) for path in UNITS)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "nightgate" in line]) == (0, [])


# --- containers ---


@pytest.fixture
def no_server() -> Iterator[None]:
    """Set an address without a server: rendering needs none, and without an address Prefect would start one."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        yield


def template(kind: str) -> dict[str, Any]:
    path = ROOT / "deployments" / kind / "base-job-template.json"
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


@pytest.mark.parametrize("kind", ["kubernetes", "docker"])
def test_a_job_template_is_one_that_prefect_takes_and_leaves_a_run_its_resources_alone(kind: str) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.server.schemas.actions import WorkPoolCreate as OfTheServer

    one = template(kind)
    for model in (WorkPoolCreate, OfTheServer):
        assert model(name="gpus", type=kind, base_job_template=one).base_job_template == one
    assert set(one["variables"]["properties"]) <= {"gpus", "cpu", "memory"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"image": "another/image"}, one["variables"])
    for variables in ({"gpus": 0.5}, {"memory": "all; rm -rf /"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(variables, one["variables"])
    environment = one["job_configuration"]["env"]
    assert FLOW_ENVIRONMENT.items() <= environment.items()
    assert environment["NIGHTGATE_HOME"] == "/var/lib/nightgate/home"


def kubernetes_job(**variables: Any) -> dict[str, Any]:
    """The manifest of a night, as the worker of Kubernetes makes it."""
    worker = pytest.importorskip("prefect_kubernetes.worker", reason="no prefect-kubernetes: pip install '.[dev]'")
    from prefect.client.schemas.objects import FlowRun

    configuration = asyncio.run(
        worker.KubernetesWorkerJobConfiguration.from_template_and_values(template("kubernetes"), variables)
    )
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="sample 2026-01-05"))
    manifest: dict[str, Any] = configuration.job_manifest
    return manifest


@pytest.mark.usefixtures("no_server")
def test_a_night_on_kubernetes_asks_for_a_gpu_and_has_the_shared_home() -> None:
    pod = kubernetes_job()["spec"]["template"]["spec"]
    [container] = pod["containers"]
    asked = container["resources"]
    assert asked["limits"]["nvidia.com/gpu"] == asked["requests"]["nvidia.com/gpu"] == 1
    assert asked["limits"]["memory"] == asked["requests"]["memory"] == "16Gi"
    assert {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]} == {
        "/var/lib/nightgate": "home",
        "/dev/shm": "shared-memory",
    }
    assert {"name": "home", "persistentVolumeClaim": {"claimName": "nightgate-home"}} in pod["volumes"]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert environment["NIGHTGATE_HOME"].startswith("/var/lib/nightgate/")
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    # Secrets come from a secret, and stand in no template.
    assert container["envFrom"] == [{"secretRef": {"name": "nightgate"}}]
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert (pod["restartPolicy"], kubernetes_job()["spec"]["backoffLimit"]) == ("Never", 0)


@pytest.mark.usefixtures("no_server")
def test_a_deployment_may_ask_for_more_gpus_on_kubernetes() -> None:
    [container] = kubernetes_job(gpus=4, memory="64Gi")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": 4}


@pytest.mark.usefixtures("no_server")
def test_a_night_in_docker_asks_for_all_gpus_and_has_the_shared_home() -> None:
    from prefect.workers.base import BaseJobConfiguration

    class DockerJob(BaseJobConfiguration, extra="allow"):
        """prefect-docker's has these fields; the rendering is of Prefect's own class."""

    job = asyncio.run(DockerJob.from_template_and_values(template("docker"), {})).model_dump()
    assert job["container_create_kwargs"]["device_requests"] == [
        {"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}
    ]
    assert job["volumes"] == ["nightgate-home:/var/lib/nightgate"]
    assert job["mem_limit"] == "16g"


def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return read


def test_containers_publish_on_loopback_alone_and_ask_for_authentication() -> None:
    services = compose()["services"]
    assert [port for one in services.values() for port in one.get("ports", [])] == ["127.0.0.1:4200:4200"]
    server = services["server"]["environment"]
    assert server["PREFECT_SERVER_API_AUTH_STRING"].startswith("${PREFECT_AUTH:?")
    assert server["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] == LEASES
    assert services["server"]["command"] == ["python", "-m", "flows.own_server"]
    # The worker's address of the server has to be one of the server's own.
    assert (
        services["worker"]["environment"]["PREFECT_API_URL"] == f"{server['PREFECT_SERVER_CORS_ALLOWED_ORIGINS']}/api"
    )
    assert "server:/var/lib/nightgate" in services["server"]["volumes"]
    for name in ("deploy", "worker"):
        assert services[name]["environment"]["PREFECT_API_AUTH_STRING"].startswith("${PREFECT_AUTH:?")


def test_the_worker_in_a_container_has_the_gpus_and_the_time_of_a_night() -> None:
    worker = compose()["services"]["worker"]
    [device] = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert worker["stop_grace_period"] == "6h"
    assert worker["command"][:3] == ["python", "-m", "deployments.worker"]


def test_what_compose_asks_of_the_environment_stands_in_the_example() -> None:
    asked = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE.read_text(encoding="utf-8")))
    assert asked <= set(settings())


def test_an_image_is_made_of_files_that_are_there_and_of_all_that_the_package_needs() -> None:
    dockerfile = (ROOT / "deployments" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", dockerfile, flags=re.MULTILINE) for name in line.split()}
    assert all((ROOT / name).exists() for name in copied)
    assert {"pyproject.toml", "README.md", "LICENSE", "nightgate", "tasks", "flows", "deployments", "alembic"} <= copied
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    assert {f"!{name}" for name in copied} <= set(kept.splitlines())
    user = re.search(r"useradd --uid ([0-9]+)", dockerfile)
    pod = template("kubernetes")["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert user is not None
    assert int(user[1]) == pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"]
