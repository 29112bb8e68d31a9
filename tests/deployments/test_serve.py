"""`nightgate serve` with a real Prefect server: schedules, runs of the form, refusals, cancelling and its own end."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import httpx
import psutil
import pytest
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_RUNNER_POLL_FREQUENCY,
    temporary_settings,
)
from prefect.states import Cancelling, Scheduled

from deployments.catalog import PARTS
from deployments.deploy import prefect_deployment
from deployments.serve import make_runner, serve_pipelines
from flows.events import LOST_CANCELLATIONS, LOST_RUNS, STARTED_NIGHTS
from flows.nightly import nightly
from flows.server.connection import answers
from nightgate.database.connection import database_url
from nightgate.database.transactions import upgrade
from nightgate.errors import ConfigurationError, NightgateError
from nightgate.home import open_home
from nightgate.pipeline_files import load_pipeline
from tests.conftest import free_port
from tests.support.first_night import copy_first_night
from tests.support.night import TRAPS, command, nightgate, set_traps, write_pipeline
from tests.support.prefect_api import client, deployment
from tests.support.production import within

pytestmark = [pytest.mark.flow, pytest.mark.process, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def write_served_pipeline(folder: Path, name: str) -> Path:
    """A small pipeline whose cron does not fire while the tests run."""
    path = write_pipeline(folder, name)
    hour = (datetime.now(UTC).hour + 12) % 24
    with path.open("a", encoding="utf-8") as file:
        file.write(f'\n[schedule]\ncron = "30 {hour} * * *"\ntimezone = "Asia/Tokyo"\n')
    return path


@dataclass
class Served:
    """A running `nightgate serve` of one pipeline, and the server's view of it."""

    process: subprocess.Popen[bytes]
    api_url: str
    name: str
    home: Path
    log: Path

    def deployment(self) -> DeploymentResponse:
        return deployment(self.api_url, f"nightly/{self.name}")

    def start(self, parameters: dict[str, Any], **facts: Any) -> FlowRun:
        """Create a run as the form does."""
        with client(self.api_url) as prefect:
            return prefect.create_flow_run_from_deployment(
                self.deployment().id, parameters={"pipeline": self.name, **parameters}, **facts
            )

    def state(self, run: FlowRun) -> Any:
        with client(self.api_url) as prefect:
            return prefect.read_flow_run(run.id).state

    def ended(self, run: FlowRun, seconds: float = 90) -> Any:
        """The final state of a run."""

        def final() -> Any:
            assert self.process.poll() is None, self.log.read_text()
            state = self.state(run)
            return state if state.is_final() else None

        return within(seconds, final, f"the end of {run.name}; {self.log.read_text()[-3000:]}")

    def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        path = self.home / "metrics.db"
        with closing(sqlite3.connect(path, timeout=30)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query, parameters)]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def start_serving(pipeline: Path, home: Path, log: Path, *options: str, **environment: str) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            # Like the installed command, it imports nothing from the working folder.
            [sys.executable, "-P", *command("serve", pipeline, *options)[1:]],
            cwd=home.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NIGHTGATE_HOME": str(home), **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def comes_up(process: subprocess.Popen[bytes], log: Path, seconds: float, *, times: int = 1) -> None:
    """Wait until this log says `times` times that it serves."""
    said = "Ctrl-C ends"
    within(seconds, lambda: log.read_text().count(said) >= times or process.poll() is not None, "nightgate serve")
    assert process.poll() is None, log.read_text()


@pytest.fixture(scope="module")
def served(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "roots").mkdir()
    set_traps(folder)
    pipeline = write_served_pipeline(folder, "served")
    log = folder / "serve.log"
    # Other tests have deployed operations of their homes.
    environment = {"PREFECT_API_URL": prefect_server, "NIGHTGATE_MODEL_ROOTS": str(folder / "roots")}
    process = start_serving(pipeline, folder / "home", log, "--take-over", **environment)
    one = Served(process, prefect_server, "served", folder / "home", log)
    try:
        comes_up(process, log, 60)
        within(30, lambda: process.poll() is not None or _exists(one), "the deployment")
        assert process.poll() is None, log.read_text()
        yield one
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(40)
        finally:
            process.kill()


def _exists(served: Served, full_name: str = "") -> bool:
    try:
        return bool(deployment(served.api_url, full_name or f"nightly/{served.name}"))
    except ObjectNotFound:
        return False


def _choices(served: Served, full_name: str) -> list[str]:
    """The pipelines that a deployment takes; none if it is not there."""
    try:
        schema = deployment(served.api_url, full_name).parameter_openapi_schema or {}
    except ObjectNotFound:
        return []
    found: list[str] = schema["properties"]["pipeline"]["enum"]
    return found


# --- what is deployed ---


def test_a_deployment_with_a_cron_has_scheduled_runs_within_a_minute(prefect_server: str, tmp_path: Path) -> None:
    path = write_pipeline(tmp_path, "scheduled")
    with path.open("a", encoding="utf-8") as file:
        file.write('\n[schedule]\ncron = "45 4 * * *"\ntimezone = "Europe/Berlin"\n')
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        deployment_id: UUID = prefect_deployment(PARTS[0].own(load_pipeline(path))).apply()
    found = deployment(prefect_server, "nightly/scheduled")
    (schedule,) = found.schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone, schedule.active) == (
        "45 4 * * *",
        "Europe/Berlin",
        True,
    )
    assert found.global_concurrency_limit is not None
    assert found.global_concurrency_limit.limit == 1
    assert found.entrypoint == "flows.nightly.nightly"
    assert found.enforce_parameter_schema
    ours = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]))

    def scheduled() -> list[FlowRun]:
        with client(prefect_server) as prefect:
            runs: list[FlowRun] = prefect.read_flow_runs(flow_run_filter=ours)
        return runs

    runs = within(60, scheduled, "scheduled runs")
    assert {run.state_name for run in runs} == {"Scheduled"}
    assert all("auto-scheduled" in run.tags for run in runs)
    starts = [run.expected_start_time.astimezone(ZoneInfo("Europe/Berlin")) for run in runs]
    assert {(start.hour, start.minute) for start in starts} == {(4, 45)}


def test_the_operations_are_served_beside_the_nights(served: Served) -> None:
    names = ("reconcile/nightgate", "promote/nightgate", "rollback/nightgate")
    within(30, lambda: all(_exists(served, name) for name in names), "the deployments")
    # The server may have those of an earlier test, which a work pool runs.
    within(30, lambda: {deployment(served.api_url, name).work_pool_name for name in names} == {None}, "its deployments")
    assert deployment(served.api_url, names[0]).schedules == [], "serve reconciles itself"


def test_a_click_is_answered_soon_unless_a_setting_says_otherwise() -> None:
    assert make_runner().query_seconds == 2
    with temporary_settings({PREFECT_RUNNER_POLL_FREQUENCY: 7}):
        assert make_runner().query_seconds == 7


# --- runs ---


@dataclass
class FormRun:
    run: FlowRun
    state: Any


@pytest.fixture(scope="module")
def form_run(served: Served) -> FormRun:
    """A run that fills in the form, as the scheduler would have made it, late: for 23:30 UTC, the next day in Tokyo."""
    run = served.start(
        {"training": {"epochs": 1}, "gate": {"min_f1": 1.0}},
        state=Scheduled(scheduled_time=datetime(2026, 1, 5, 23, 30, tzinfo=UTC)),
        tags=["auto-scheduled"],
    )
    return FormRun(run, served.ended(run))


def test_a_run_of_the_form_completes_with_the_values_that_were_filled_in(served: Served, form_run: FormRun) -> None:
    assert (form_run.state.type.value, form_run.state.name) == ("COMPLETED", "Held")
    (night,) = served.rows("SELECT * FROM nightly_runs WHERE prefect_flow_run_id = ?", str(form_run.run.id))
    assert (night["status"], night["min_f1"]) == ("held", 1.0)
    epochs = served.rows("SELECT epoch FROM epoch_results WHERE run_id = ?", night["run_id"])
    assert [row["epoch"] for row in epochs] == [1]


def test_a_late_scheduled_run_belongs_to_the_night_of_its_scheduled_start(served: Served, form_run: FormRun) -> None:
    (night,) = served.rows("SELECT * FROM nightly_runs WHERE prefect_flow_run_id = ?", str(form_run.run.id))
    assert (night["night"], night["trigger"]) == ("2026-01-06", "schedule")
    assert night["scheduled_for"] == night["data_until"] == "2026-01-05T23:30:00.000000Z"


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"training": {"epochs": 0}}, "minimum"),
        ({"training": {"epochs": "many"}}, "not valid"),
        ({"training": {"precision": "fp8"}}, "not one of"),
        ({"gate": {"min_f2": 0.5}}, "min_f2"),
        ({"pipeline": "../served"}, "does not match"),
        ({"pipeline": "/tmp/served.toml"}, "does not match"),
        ({"night": 5}, "not valid"),
    ],
)
def test_the_server_refuses_what_the_schema_forbids(served: Served, parameters: dict[str, Any], named: str) -> None:
    answer = create(served, parameters, enforce=True)
    assert answer.status_code == 409, answer.text
    assert named in answer.text


def create(served: Served, parameters: dict[str, Any], *, enforce: bool) -> httpx.Response:
    """As the UI does it; its form has a switch that turns the check off."""
    return httpx.post(
        f"{served.api_url}/deployments/{served.deployment().id}/create_flow_run",
        json={"parameters": {"pipeline": served.name, **parameters}, "enforce_parameter_schema": enforce},
        timeout=20,
    )


def test_a_value_out_of_bounds_fails_the_run_in_words_when_the_servers_check_is_off(served: Served) -> None:
    answer = create(served, {"training": {"epochs": 0}}, enforce=False)
    assert answer.status_code in {200, 201}, answer.text
    state = served.ended(FlowRun.model_validate(answer.json()))
    assert state.type.value == "FAILED"
    for words in ("training.epochs", "greater than or equal to 1"):
        assert words in state.message
    assert "Traceback" not in state.message


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"training": {"base_model": "/etc"}}, "outside the model roots"),
        ({"pipeline": "serve"}, "there is no pipeline"),
        ({"night": "2999-01-01"}, "2999-01-01"),
    ],
)
def test_what_no_schema_can_say_fails_the_run_in_words(
    parameters: dict[str, Any], named: str, prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTGATE_PIPELINES", str(write_pipeline(tmp_path, "served")))
    given = {"pipeline": "served", **parameters}
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        state = nightly(**given, return_state=True)
    assert (state.type.value, state.name) == ("FAILED", "Failed")
    assert named in str(state.message)
    assert "\n  next: " in str(state.message)


def test_a_run_executes_no_module_of_the_working_folder(served: Served, form_run: FormRun) -> None:
    assert form_run.state.type.value == "COMPLETED"
    folder = served.home.parent
    assert {path.stem for path in folder.glob("*.py")} == set(TRAPS)
    assert list(folder.glob("*.executed")) == []


# --- its end ---


def workers(served: Served) -> list[psutil.Process]:
    """Training processes of a serving process that are alive."""
    found = []
    for child in served.children():
        try:
            if "nightgate.training.worker" in child.cmdline():
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def epochs_of(served: Served, night: str, attempt: int) -> list[int]:
    query = "SELECT epoch FROM epoch_results WHERE night = ? AND attempt = ? ORDER BY epoch"
    return [row["epoch"] for row in served.rows(query, night, attempt)]


@pytest.mark.faults
def test_a_cancelled_run_keeps_its_checkpoint_and_goes_on_from_it_until_ctrl_c_ends_serve_too(served: Served) -> None:
    night = "2026-01-08"
    long = {"night": night, "training": {"epochs": 1000}}
    first = served.start(long)
    within(60, lambda: epochs_of(served, night, 1), "the first epoch's row")
    training = workers(served)
    assert len(training) == 1

    cancelled_at = time.monotonic()
    with client(served.api_url) as prefect:
        prefect.set_flow_run_state(first.id, Cancelling())
    state = served.ended(first, 30)
    assert state.type.value == "CANCELLED", state
    within(30 - (time.monotonic() - cancelled_at), lambda: not any(one.is_running() for one in training), "its end")
    within(5, lambda: workers(served) == [], "no training process")

    (run,) = served.rows("SELECT * FROM nightly_runs WHERE night = ?", night)
    assert (run["status"], run["error_type"]) == ("cancelled", "cancelled")
    assert "checkpoint is kept" in run["reason"]
    done = epochs_of(served, night, 1)
    checkpoint = served.home / "runs" / run["run_id"] / "attempt-1/checkpoint"
    assert list(checkpoint.rglob("*.safetensors"))

    second = served.start(long)
    again = within(60, lambda: epochs_of(served, night, 2), "an epoch of attempt 2")
    (run,) = served.rows("SELECT * FROM nightly_runs WHERE night = ?", night)
    assert (run["status"], run["attempts"], run["prefect_flow_run_id"]) == ("running", 2, str(second.id))
    assert again[0] > 1
    assert epochs_of(served, night, 1) == list(range(1, again[0]))
    # Saved, and on their way to the database: one epoch that was sent, one that waits for its row.
    assert again[0] <= max(done) + 3

    everybody = [psutil.Process(served.process.pid), *served.children()]
    # As a terminal does it: every process in the foreground gets the signal.
    os.killpg(served.process.pid, signal.SIGINT)
    within(40, lambda: served.process.poll() is not None, "the end of serve")
    within(1, lambda: not any(one.is_running() for one in everybody), "the end of its children")
    assert served.process.returncode == 0, served.log.read_text()
    assert served.state(second).is_final(), served.state(second)
    (run,) = served.rows("SELECT * FROM nightly_runs WHERE night = ?", night)
    assert run["status"] == "cancelled"
    assert "checkpoint is kept" in run["reason"]
    (schedule,) = served.deployment().schedules
    assert schedule.active


@pytest.mark.faults
def test_a_night_that_is_cancelled_while_it_predicts_stays_held(prefect_server: str, tmp_path: Path) -> None:
    home, log, output = tmp_path / "home", tmp_path / "serve.log", tmp_path / "predicted.csv"
    first = copy_first_night(home)
    more = f"\n[predict]\nsource = {{ kind = 'sample', rows_per_day = 90000, days = 10 }}\noutput = '{output}'\n"
    pipeline, environment = tmp_path / "small.toml", {"PREFECT_API_URL": prefect_server}
    pipeline.write_text(first.pipeline.read_text(encoding="utf-8") + more, encoding="utf-8")
    process = start_serving(pipeline, home, log, "--take-over", **environment)
    try:
        comes_up(process, log, 60)
        served = Served(process, prefect_server, "small", home, log)
        # The server may have the deployment of an earlier test, whose choices are other pipelines.
        within(30, lambda: "small" in _choices(served, "nightly/nightgate"), "the deployment")
        with client(prefect_server) as prefect:
            deployed = prefect.read_deployment_by_name("nightly/nightgate").id
            run = prefect.create_flow_run_from_deployment(
                deployed, parameters={"pipeline": "small", "night": "2026-01-06", "gate": {"min_f1": 1.0}}
            )
        within(120, lambda: served.rows("SELECT 1 FROM nightly_runs WHERE status = 'held'"), "its end")
        within(60, lambda: [*(home / "predictions").rglob("*.rows")], "its prediction")
        with client(prefect_server) as prefect:
            prefect.set_flow_run_state(run.id, Cancelling())
        # Whoever serves sets that state last, whatever the run returned.
        assert served.ended(run, 60).type.value == "CANCELLED"
        nightgate("reconcile", cwd=tmp_path, env={"NIGHTGATE_HOME": str(home), **environment})
        assert (served.state(run).name, output.exists()) == ("Held", False)
        [last] = served.rows("SELECT status FROM nightly_runs ORDER BY started_at DESC LIMIT 1")
        assert last["status"] == "held"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.faults
def test_without_a_server_serve_starts_one_of_its_own_and_sigterm_ends_both_and_the_night_that_is_at_work(
    tmp_path: Path, session_root: Path
) -> None:
    port, log = free_port(), tmp_path / "serve.log"
    url = f"http://127.0.0.1:{port}"
    pipeline = write_served_pipeline(tmp_path, "alone")
    process = start_serving(
        pipeline,
        tmp_path / "home",
        log,
        *("--port", str(port)),
        PREFECT_HOME=str(session_root / "own-server"),
    )
    try:
        comes_up(process, log, 120)
        assert f"started a Prefect server: UI at {url}" in log.read_text()
        assert f"PREFECT_SERVER_API_PORT={port}" in log.read_text()
        assert f"PREFECT_API_URL=http://127.0.0.1:{port}/api" in log.read_text()
        assert answers(url)

        def deployed() -> bool:
            return httpx.get(f"{url}/api/deployments/name/nightly/alone", timeout=5).status_code == 200

        within(30, deployed, "the deployment")
        settings = httpx.get(f"{url}/api/admin/settings", timeout=5).json()["server"]
        assert settings["concurrency"]["lease_storage"].endswith(".filesystem")
        assert settings["analytics_enabled"] is False
        with client(f"{url}/api") as prefect:
            automations = prefect.request("POST", "/automations/filter", json={}).json()
        assert {one["name"] for one in automations} == {LOST_RUNS, LOST_CANCELLATIONS, STARTED_NIGHTS}
        everybody = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert len(everybody) >= 2
        sockets = [socket for one in everybody for socket in one.net_connections()]
        assert {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        serving, night = Served(process, f"{url}/api", "alone", tmp_path / "home", log), "2026-01-08"
        serving.start({"night": night, "training": {"epochs": 1000}})
        within(90, lambda: epochs_of(serving, night, 1), "the first epoch's row")
        everybody += serving.children()
        process.terminate()
        within(40, lambda: process.poll() is not None, "the end of serve")
        within(5, lambda: not any(one.is_running() for one in everybody), "the end of its server and of the night")
        assert process.returncode == 0, log.read_text()
        assert "Traceback" not in log.read_text()
        (run,) = serving.rows("SELECT * FROM nightly_runs WHERE night = ?", night)
        assert (run["status"], run["error_type"]) == ("cancelled", "cancelled")
        assert "checkpoint is kept" in run["reason"]
        assert not answers(url)
    finally:
        process.kill()
        process.wait()


@pytest.mark.faults
def test_the_server_of_a_serve_that_was_killed_goes_on_and_the_next_serve_finds_it(
    tmp_path: Path, session_root: Path
) -> None:
    port, log = free_port(), tmp_path / "serve.log"
    url = f"http://127.0.0.1:{port}"
    pipeline = write_served_pipeline(tmp_path, "twice")
    environment = {"PREFECT_SERVER_API_PORT": str(port), "PREFECT_HOME": str(session_root / "server-left-behind")}

    def serve(times: int) -> subprocess.Popen[bytes]:
        process = start_serving(pipeline, tmp_path / "home", log, **environment)
        comes_up(process, log, 120, times=times)
        return process

    first = serve(1)
    [server] = [one for one in psutil.Process(first.pid).children() if "flows.own_server" in one.cmdline()]
    try:
        first.kill()
        first.wait()
        assert answers(url)
        second = serve(2)
        assert [line.split()[0] for line in log.read_text().splitlines() if "UI at" in line] == ["started", "joined"]
        assert not [one for one in psutil.Process(second.pid).children() if "flows.own_server" in one.cmdline()]
        second.terminate()
        second.wait(40)
        assert answers(url), "it is not its own"
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.faults
def test_a_night_outlives_kill_9_of_serve_and_the_next_serve_starts_no_second_one_beside_it(
    prefect_server: str, tmp_path: Path
) -> None:
    night, home, log = "2026-01-08", tmp_path / "home", tmp_path / "serve.log"
    upgrade(database_url(open_home(home)))
    pipeline = write_served_pipeline(tmp_path, "orphaned")

    def serve(times: int) -> subprocess.Popen[bytes]:
        process = start_serving(pipeline, home, log, "--take-over", PREFECT_API_URL=prefect_server)
        comes_up(process, log, 90, times=times)
        return process

    one = Served(serve(1), prefect_server, "orphaned", home, log)
    try:
        within(30, lambda: _exists(one), "the deployment")
        run = one.start({"night": night, "training": {"epochs": 40}})
        within(90, lambda: epochs_of(one, night, 1), "the first epoch's row")
        orphans = one.children()
        one.process.kill()
        one.process.wait()
        one.process = serve(2)
        later = one.start({"night": night})
        assert [child for child in orphans if child.is_running()]
        assert one.ended(run, 150).name in {"Promoted", "Held"}
        assert one.ended(later).name == "Superseded"
        (row,) = one.rows("SELECT * FROM nightly_runs WHERE prefect_flow_run_id = ?", str(run.id))
        assert row["attempts"] == 1
        assert epochs_of(one, night, 1) == list(range(1, 41))
        within(30, lambda: not any(child.is_running() for child in orphans), "the end of its processes")
    finally:
        one.process.terminate()
        one.process.wait(40)


@pytest.mark.faults
def test_a_server_with_the_password_of_the_home_is_for_that_home_alone(tmp_path: Path, session_root: Path) -> None:
    port, log, home = free_port(), tmp_path / "serve.log", tmp_path / "home"
    url, path = f"http://127.0.0.1:{port}", write_served_pipeline(tmp_path, "guarded")
    environment = {"PREFECT_SERVER_API_PORT": str(port), "PREFECT_HOME": str(session_root / "guarded-server")}
    process = start_serving(path, home, log, "--auth", **environment)
    try:
        comes_up(process, log, 120)
        file = home / "server-password"
        user, _, password = file.read_text().strip().partition(":")
        assert file.stat().st_mode & 0o777 == 0o600
        assert str(file) in log.read_text()
        assert len(password) > 20
        ours, theirs = {**environment, "NIGHTGATE_HOME": str(home)}, {**environment, "NIGHTGATE_HOME": "another"}

        version = f"{url}/api/admin/version"
        assert [httpx.get(f"{url}{page}", timeout=5).status_code for page in ("/api/health", "/v2/")] == [200, 200]
        assert httpx.get(version, timeout=5).status_code == 401
        assert httpx.get(version, auth=(user, password[:-1]), timeout=5).status_code == 401
        assert httpx.get(version, auth=(user, password), timeout=5).status_code == 200
        # The check of the token comes first.
        assert httpx.post(f"{url}/api/deployments/filter", json={}, timeout=5).status_code == 403

        done = nightgate("run", path, "--night", "2026-01-05", cwd=tmp_path, env=ours)
        assert done.returncode == 0, done.stderr
        assert f"using the Prefect server at {url}/api" in done.stderr
        doctor = nightgate("doctor", "--format", "json", cwd=tmp_path, env=ours)
        found = {one["check"]: one["status"] for one in json.loads(doctor.stdout)}
        assert [found[f"reached by {who}"] for who in ("web pages", "other users", "the network")] == ["ok"] * 3
        assert (found["home access"], found["schedule guarded"]) == ("ok", "ok")

        refused = nightgate("serve", path, cwd=tmp_path, env=theirs)
        assert refused.returncode == 1
        assert "(401)" in refused.stderr
        # Its runs have the password too.
        serving = Served(process, f"{url}/api", "guarded", home, log)
        with temporary_settings({PREFECT_API_AUTH_STRING: f"{user}:{password}"}):
            run = serving.start({"night": "2026-01-05"})
            assert serving.ended(run).type.value == "COMPLETED"
        shown = (done.stdout, done.stderr, doctor.stdout, refused.stderr, log.read_text())
        assert not any(password in text for text in shown)
        assert password not in (home / "prefect-server.log").read_text()
    finally:
        process.terminate()
        process.wait(40)


@pytest.mark.faults
def test_a_second_home_is_refused_names_itself_or_takes_over(prefect_server: str, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    served, other = (write_served_pipeline(tmp_path / name, "shared") for name in ("first", "second"))
    environment = {"PREFECT_API_URL": prefect_server}
    first = start_serving(served, tmp_path / "home-1", tmp_path / "first.log", "--take-over", **environment)
    try:
        comes_up(first, tmp_path / "first.log", 90)
        mine = {**environment, "NIGHTGATE_HOME": str(tmp_path / "home-2")}
        refused = nightgate("serve", other, cwd=tmp_path, env=mine)
        assert refused.returncode == 2, refused.stderr
        assert str(tmp_path / "home-1") in refused.stderr
        assert "NIGHTGATE_NAME" in refused.stderr
        log = tmp_path / "second.log"
        second = start_serving(other, tmp_path / "home-2", log, **environment, NIGHTGATE_NAME="shop")
        try:
            comes_up(second, log, 90)
            within(30, lambda: _exists(Served(second, prefect_server, "shared.shop", tmp_path, log)), "a deployment")
            runs = [
                Served(process, prefect_server, name, tmp_path / home, tmp_path / f"{which}.log")
                for process, name, home, which in (
                    (first, "shared", "home-1", "first"),
                    (second, "shared.shop", "home-2", "second"),
                )
            ]
            for one in runs:
                with client(prefect_server) as prefect:
                    run = prefect.create_flow_run_from_deployment(
                        one.deployment().id, parameters={"pipeline": "shared", "night": "2026-01-05"}
                    )
                assert one.ended(run).type.value == "COMPLETED"
                assert [row["night"] for row in one.rows("SELECT night FROM nightly_runs")] == ["2026-01-05"]
        finally:
            second.terminate()
            second.wait(40)
    finally:
        first.terminate()
        first.wait(40)


def test_serve_starts_its_server_again_that_was_killed(tmp_path: Path, session_root: Path) -> None:
    port, log = free_port(), tmp_path / "serve.log"
    api = f"http://127.0.0.1:{port}/api"
    options = {"PREFECT_SERVER_API_PORT": str(port), "PREFECT_HOME": str(session_root / "killed-server")}
    process = start_serving(write_served_pipeline(tmp_path, "kept"), tmp_path / "home", log, **options)
    everybody: list[psutil.Process] = []
    try:
        comes_up(process, log, 120)
        (killed,) = psutil.Process(process.pid).children()
        # The last that is registered before the runners start.
        within(60, lambda: httpx.get(f"{api}/deployments/name/unfreeze/nightgate").status_code == 200, "deployments")
        time.sleep(3)
        killed.kill()
        within(30, lambda: {*psutil.Process(process.pid).children()} - {killed}, "the start of a new server")
        within(90, lambda: answers(api.removesuffix("/api")), "its answer")
        found = deployment(api, "reconcile/nightgate")
        with client(api) as prefect:
            run = prefect.create_flow_run_from_deployment(found.id)
            within(120, lambda: prefect.read_flow_run(run.id).state.is_final(), "the end of a run")
        everybody = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        within(40, lambda: process.poll() is not None, "the end of serve")
        within(5, lambda: not any(one.is_running() for one in everybody), "the end of its new server")
    finally:
        for one in (process, *everybody):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


@pytest.mark.faults
def test_serve_ends_its_server_when_it_is_stopped_before_that_one_answers(tmp_path: Path, session_root: Path) -> None:
    log = tmp_path / "serve.log"
    process = start_serving(
        write_served_pipeline(tmp_path, "early"),
        tmp_path / "home",
        log,
        PREFECT_SERVER_API_PORT=str(free_port()),
        PREFECT_HOME=str(session_root / "early-server"),
    )
    children: list[psutil.Process] = []
    try:
        parent = psutil.Process(process.pid)
        children = within(60, lambda: parent.children(recursive=True), "the start of its server")
        process.terminate()
        within(30, lambda: process.poll() is not None, "the end of serve")
        within(5, lambda: not any(one.is_running() for one in children), "the end of its server")
        assert "Traceback" not in log.read_text()
    finally:
        for one in (process, *children):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


@pytest.fixture
def handlers_of_signals() -> Iterator[None]:
    """Serving in this process replaces its signal handlers; they are restored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers_of_signals")
def test_a_port_is_for_a_server_that_is_started(prefect_server: str) -> None:
    with temporary_settings({PREFECT_API_URL: prefect_server}), pytest.raises(ConfigurationError, match="--port 4201"):
        serve_pipelines([], port=4201)


@pytest.mark.usefixtures("handlers_of_signals", "environment")
def test_an_open_server_that_runs_already_is_not_joined_with_auth(prefect_server: str) -> None:
    with temporary_settings({PREFECT_API_URL: prefect_server}), pytest.raises(NightgateError, match="no password"):
        serve_pipelines([], auth=True)


@pytest.mark.usefixtures("handlers_of_signals")
def test_a_configured_server_that_does_not_answer_is_reported_and_not_replaced() -> None:
    away = f"http://127.0.0.1:{free_port()}/api"
    with (
        temporary_settings({PREFECT_API_URL: away}),
        pytest.raises(NightgateError, match="PREFECT_API_URL") as refused,
    ):
        serve_pipelines([])
    assert away in str(refused.value)
    assert "unset PREFECT_API_URL" in refused.value.next_step
