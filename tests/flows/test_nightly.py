"""The night as a Prefect flow, on a real server: its rows in SQL, its page in the UI, and the event of its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pandas as pd
import psutil
import pytest
from prefect import flow, runtime
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    LogFilter,
    LogFilterFlowRunId,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, State
from prefect.exceptions import FailedRun
from prefect.flow_engine import run_flow
from prefect.logging.loggers import flow_run_logger
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_SERVER_API_PORT,
    temporary_settings,
)

from flows.events import announce_own_ends
from flows.nightly import nightly, nightly_from_file
from flows.reconcile import due_nights, newer_is_due
from flows.server.connection import answers, stranger
from flows.server.connection import prefect_server as server_for_a_run
from flows.which_night import wait_for_manual_run
from nightgate import logs
from nightgate.config.pipeline import Pipeline
from nightgate.database.connection import database_url
from nightgate.database.transactions import Database, upgrade
from nightgate.errors import DatabaseError, DataError, NightgateError, SourceUnavailableError
from nightgate.home import Home, open_home
from nightgate.models import version_folder
from nightgate.night.run import open_night
from nightgate.pipeline_files import load_pipeline
from nightgate.schedule import Night, chosen_night
from nightgate.sources.kinds import wanted_columns
from nightgate.training import supervisor
from nightgate.training.protocol import Progress
from tasks import progress
from tasks.night import STEPS, step
from tasks.progress import LiveProgress
from tests.conftest import free_port
from tests.support.first_night import first_night
from tests.support.night import NIGHT
from tests.support.prefect_api import client, events
from tests.support.stand_in import stand_in
from tests.support.tiny import tiny_pipeline

pytestmark = [pytest.mark.flow, pytest.mark.process]

PUBLISHED_HEADER = "| Training Loss | Epoch | Step | Validation Loss | Accuracy | F1 | Precision | Recall |"


def migrated_home(path: Path) -> Home:
    """The home at `path`, its database migrated; the environment names it from here on."""
    os.environ["NIGHTGATE_HOME"] = str(path)
    home = open_home()
    upgrade(database_url(home))
    return home


def rows(home: Home, query: str, **parameters: Any) -> pd.DataFrame:
    with Database.open(home) as db:
        return db.frame(query, parameters)


def that_night(pipeline: Pipeline) -> Night:
    return chosen_night(pipeline.schedule, date.fromisoformat(NIGHT))


def run_flow_of(pipeline: Pipeline, api_url: str, **options: Any) -> State[Any]:
    with temporary_settings({PREFECT_API_URL: api_url}):
        return nightly_from_file(pipeline, that_night(pipeline), **options, return_state=True)


def flow_run_id(state: State[Any]) -> UUID:
    assert state.state_details.flow_run_id is not None
    return state.state_details.flow_run_id


def task_runs(api_url: str, run_id: UUID) -> dict[str, str]:
    """Name and state name of each task run of a flow run."""
    ours = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run_id]))
    with client(api_url) as prefect:
        return {str(run.name): str(run.state_name) for run in prefect.read_task_runs(task_run_filter=ours)}


def artifacts(api_url: str, run_id: UUID, key: str) -> list[Artifact]:
    """Those of a flow run that have this key."""
    ours = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]), key=ArtifactFilterKey(any_=[key]))
    with client(api_url) as prefect:
        return prefect.read_artifacts(artifact_filter=ours)


def page_of(api_url: str, run_id: UUID) -> str:
    """What the run's page shows. The handler sends in batches: it is flushed first."""
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()
    ours = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    with client(api_url) as prefect:
        return "\n".join(line.message for line in prefect.read_logs(log_filter=ours))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline(first_night().pipeline)


@dataclass
class Twins:
    state: State[Any]
    """Of the flow run."""
    in_flow: Home
    bare: Home
    results: set[Path]
    """That Prefect stored meanwhile."""


def results() -> set[Path]:
    return set(PREFECT_LOCAL_STORAGE_PATH.value().rglob("*"))


@pytest.fixture(scope="module")
def twins(pipeline: Pipeline, prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    """The same night twice, in homes of their own: through the flow, and with `--no-prefect`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTGATE_HOME", "")
        in_flow = migrated_home(tmp_path_factory.mktemp("twins") / "flow")
        before = results()
        state = run_flow_of(pipeline, prefect_server)
        yield Twins(state, in_flow, open_home(first_night().home), results() - before)


def test_a_night_that_promotes_completes_under_that_name_and_says_why(twins: Twins) -> None:
    assert (twins.state.type.value, twins.state.name) == ("COMPLETED", "Promoted")
    run = rows(twins.in_flow, "SELECT * FROM nightly_runs").iloc[0]
    assert twins.state.message == f"promoted: {run['reason']} [{run['run_id']}]"
    assert run["prefect_flow_run_id"] == str(flow_run_id(twins.state))


@pytest.mark.parametrize(
    ("query", "least"),
    [
        ("SELECT * FROM epoch_results ORDER BY epoch", 2),
        ("SELECT * FROM gate_checks ORDER BY check_name", 2),
        ("SELECT * FROM slice_metrics ORDER BY split, epoch, slice_name, slice_value", 2),
        ("SELECT status, reason, verdict, test_f1, best_epoch, model_version, snapshot_id FROM nightly_runs", 1),
    ],
)
def test_the_flow_and_its_bare_twin_leave_the_same_rows(twins: Twins, query: str, least: int) -> None:
    in_flow, bare = (
        rows(home, query).drop(
            columns=["run_id", "recorded_at", "examples_per_second", "tokens_per_second"], errors="ignore"
        )
        for home in (twins.in_flow, twins.bare)
    )
    assert len(in_flow) >= least
    pd.testing.assert_frame_equal(in_flow, bare)


def test_each_step_and_each_epoch_is_a_task_run_of_its_own(twins: Twins, prefect_server: str) -> None:
    epochs = rows(twins.in_flow, "SELECT * FROM epoch_results ORDER BY epoch").itertuples()
    [run] = rows(twins.in_flow, "SELECT snapshot_id, best_epoch FROM nightly_runs").to_dict("records")
    expected = [
        "refresh",
        "evaluate the champion",
        "decide whether to train: no champion",
        f"fine-tune on snapshot {run['snapshot_id']}",
    ]
    expected += [f"epoch {one.epoch}: F1 {one.f1:.4f}, validation loss {one.validation_loss:.4f}" for one in epochs]
    expected += [f"score on test: 2 epochs, the best one is epoch {run['best_epoch']}"]
    expected += ["serve in a fresh process: candidate", "judge", "register: promote", "finish version 1: promote"]
    assert task_runs(prefect_server, flow_run_id(twins.state)) == dict.fromkeys(expected, "Completed")


def test_no_result_is_persisted(twins: Twins) -> None:
    assert twins.state.is_completed()
    # Prefect itself stores the error of a run whose parameters it refuses, as other tests have some.
    assert twins.results == set()
    tasks = [getattr(STEPS, field.name) for field in fields(STEPS)]
    assert {(one.persist_result, one.cache_policy is NO_CACHE) for one in tasks} == {(False, True)}
    assert {one.persist_result for one in (nightly, nightly_from_file)} == {False}


def test_the_runs_page_shows_the_report_with_its_pictures(twins: Twins, prefect_server: str) -> None:
    (artifact,) = artifacts(prefect_server, flow_run_id(twins.state), "small-night")
    assert artifact.type == "markdown"
    page = str(artifact.data)
    lines = page.splitlines()
    at = lines.index(PUBLISHED_HEADER)
    epochs = rows(twins.in_flow, "SELECT * FROM epoch_results ORDER BY epoch")
    # The best epoch's row is bold.
    shown = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines[at + 2 : at + 4]]
    assert [row[0] for row in shown] == [f"{loss:.4f}" for loss in epochs["training_loss"]]
    assert "](data:image/svg+xml;base64," in page
    assert len(page) < 400_000
    run_id = rows(twins.in_flow, "SELECT run_id FROM nightly_runs")["run_id"][0]
    assert (twins.in_flow.runs / run_id / "report.html").is_file()


def test_the_runs_name_says_pipeline_night_and_verdict(twins: Twins, prefect_server: str) -> None:
    f1 = rows(twins.in_flow, "SELECT test_f1 FROM nightly_runs")["test_f1"][0]
    with client(prefect_server) as prefect:
        assert prefect.read_flow_run(flow_run_id(twins.state)).name == f"small {NIGHT}: promoted, F1 {f1:.4f}"


def test_the_end_of_a_night_is_an_event_that_carries_the_reason(twins: Twins, prefect_server: str) -> None:
    (event,) = events(prefect_server, "nightgate.promoted", "small", flow_run_id(twins.state))
    assert event["payload"]["night"] == NIGHT
    assert event["payload"]["reason"] in str(twins.state.message)
    assert event["payload"]["next_step"] == "nothing to do; `nightgate rollback small --reason TEXT` undoes it"
    assert version_folder.verify_version(Path(event["payload"]["path"]))["version"] == event["payload"]["model_version"]
    assert rows(twins.in_flow, "SELECT announced_at FROM nightly_runs")["announced_at"].notna().all()


def test_the_runs_page_shows_the_progress_up_to_its_end(twins: Twins, prefect_server: str) -> None:
    (artifact,) = artifacts(prefect_server, flow_run_id(twins.state), "small-progress")
    assert (artifact.type, artifact.data) == ("progress", 100.0)
    assert artifact.task_run_id is not None
    best = rows(twins.in_flow, "SELECT best_epoch FROM nightly_runs")["best_epoch"][0]
    assert artifact.description == f"2 epochs, the best one is epoch {best}"


def test_progress_is_shown_while_the_training_runs_and_a_server_that_is_away_does_no_harm(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", 0.2)
    monkeypatch.setattr(progress, "SECONDS_TO_END", 1)
    half = Progress("train", 1, 1, 10, 20, loss=0.5, eta_seconds=60)

    @flow
    def trains() -> None:
        with LiveProgress("live") as live:
            live.show(half)
            run_id = UUID(str(runtime.flow_run.id))
            deadline = time.monotonic() + 30
            while not (found := artifacts(prefect_server, run_id, "live")) or not found[0].data:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert found[0].data == pytest.approx(47.5)
            assert found[0].description == "epoch 1/1, step 10/20, loss 0.5, 1:00 left"
        began = time.monotonic()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}), LiveProgress("away") as live:
            live.end("all")
        assert time.monotonic() - began < 5

    with temporary_settings({PREFECT_API_URL: prefect_server}):
        trains()


def test_the_logs_of_the_library_reach_the_runs_page(twins: Twins, prefect_server: str) -> None:
    page = page_of(prefect_server, flow_run_id(twins.state))
    for line in ("epoch 1: F1 ", "epoch 2: F1 ", "verdict: promote"):
        assert page.count(line) == 1, page


def test_the_rows_of_epochs_are_committed_while_the_training_process_runs(twins: Twins) -> None:
    recorded = rows(twins.in_flow, "SELECT recorded_at FROM epoch_results ORDER BY epoch")["recorded_at"]
    (run_id,) = rows(twins.in_flow, "SELECT run_id FROM nightly_runs")["run_id"]
    lines = [json.loads(line) for line in (twins.in_flow.runs / run_id / logs.FILE).read_text().splitlines()]
    training = (supervisor.LIFE % ("training", 0, "")).partition(" ended")[0]
    [ended] = [line["time"] for line in lines if line["message"].startswith(f"{training} ended")]
    assert (pd.to_datetime(recorded) < pd.Timestamp(ended)).all()


@pytest.mark.slow
def test_a_held_night_completes_under_that_name(pipeline: Pipeline, prefect_server: str, environment: Path) -> None:
    home = migrated_home(environment)
    strict = pipeline.model_copy(update={"gate": pipeline.gate.model_copy(update={"min_f1": 1.0})})
    state = run_flow_of(strict, prefect_server)
    assert (state.type.value, state.name) == ("COMPLETED", "Held")
    assert "min_f1" in str(state.message) or "below" in str(state.message)
    [night] = rows(home, "SELECT * FROM nightly_runs").to_dict("records")
    assert night["status"] == "held"
    assert "--set training." in night["next_step"]
    assert rows(home, "SELECT * FROM champion_timeline").empty


def test_a_run_that_fails_has_no_traceback_of_prefects_on_its_page(prefect_server: str, environment: Path) -> None:
    del environment
    with client(prefect_server) as prefect:
        run = prefect.create_flow_run(nightly, parameters={"pipeline": "no-such"})
        # As the process of a worker does it.
        with pytest.raises(FailedRun):
            run_flow(nightly, flow_run=run, error_logger=flow_run_logger(run, nightly))
        page = page_of(prefect_server, run.id)
    assert "'no-such'" in page
    assert "Traceback" not in page


def test_a_night_whose_file_is_broken_is_announced_as_failed_with_reason_and_next_step(
    prefect_server: str, environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del environment
    (tmp_path / "mistyped.toml").write_text('name = "mistyped"\n[dta]\n', encoding="utf-8")
    monkeypatch.setenv("NIGHTGATE_PIPELINES", str(tmp_path))
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        state = nightly("mistyped", date.fromisoformat(NIGHT), return_state=True)
    assert state.is_failed()
    [event] = [one["payload"] for one in events(prefect_server, "nightgate.failed", "mistyped")]
    assert (event["night"], event["status"], event["error_type"]) == (NIGHT, "failed", "configuration")
    assert "dta" in event["reason"]
    assert event["next_step"]


def test_a_night_that_cannot_be_claimed_is_announced_as_failed(
    pipeline: Pipeline, prefect_server: str, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del environment
    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", "mysql://127.0.0.1/gone")
    unclaimed = pipeline.model_copy(update={"name": "unclaimed"})
    assert run_flow_of(unclaimed, prefect_server).is_failed()
    [event] = [one["payload"] for one in events(prefect_server, "nightgate.failed", "unclaimed")]
    assert (event["night"], event["error_type"]) == (NIGHT, "database")
    assert event["next_step"]


def test_a_database_that_is_away_when_ends_are_announced_changes_no_end(
    environment: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    del environment
    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", "mysql://127.0.0.1/gone")
    announce_own_ends()
    assert [one.levelname for one in caplog.records if one.name == "nightgate.flows"] == ["WARNING"]


def test_a_server_that_is_away_keeps_no_night_from_starting(caplog: pytest.LogCaptureFixture) -> None:
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        assert newer_is_due(due_nights(uuid4()), datetime.now(UTC)) == ""
    assert [one.levelname for one in caplog.records if one.name == "nightgate.flows"] == ["WARNING"]


def with_file(pipeline: Pipeline, path: Path) -> Pipeline:
    source = {"kind": "files", "paths": [str(path)]}
    return Pipeline.model_validate({**(usual := pipeline.record()), "data": {**usual["data"], "source": source}})


def unusable(path: Path, pipeline: Pipeline) -> Path:
    """A file with the columns of the pipeline and no row that can be used."""
    header = ",".join(wanted_columns(pipeline.data, pipeline.split.column))
    path.write_text(f"{header}\n{header}\n")
    return path


def test_bad_data_ends_the_flow_failed_in_words(
    pipeline: Pipeline,
    prefect_server: str,
    environment: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    home = migrated_home(environment)
    gone = tmp_path / "gone.csv"
    state = run_flow_of(with_file(pipeline, gone), prefect_server)
    assert (state.type.value, state.name) == ("FAILED", "Failed")
    assert str(gone) in str(state.message)
    assert rows(home, "SELECT * FROM nightly_runs").empty, "nothing was claimed"
    assert task_runs(prefect_server, flow_run_id(state)) == {}

    state = run_flow_of(with_file(pipeline, unusable(gone, pipeline)), prefect_server)
    assert (state.type.value, state.name) == ("FAILED", "Failed")
    assert str(gone) in str(state.message)
    assert "\n  next: " in str(state.message)
    run = rows(home, "SELECT * FROM nightly_runs").iloc[0]
    assert (run["status"], run["error_type"]) == ("failed", "data")
    assert str(gone) in run["reason"]
    assert run["next_step"]
    assert task_runs(prefect_server, flow_run_id(state)) == {"refresh": "Failed"}
    for text in (caplog.text, page_of(prefect_server, flow_run_id(state))):
        assert str(gone) in text
        assert "Traceback" not in text


def test_a_second_run_while_one_is_at_work_completes_as_superseded_and_names_the_first(
    pipeline: Pipeline, prefect_server: str, environment: Path
) -> None:
    home = migrated_home(environment)
    with open_night(pipeline, that_night(pipeline)) as first:
        state = run_flow_of(pipeline, prefect_server)
        assert (state.type.value, state.name) == ("COMPLETED", "Superseded")
        assert first.run_id in str(state.message)
        assert str(os.getpid()) in str(state.message)
        assert task_runs(prefect_server, flow_run_id(state)) == {}
        found = rows(home, "SELECT run_id, status FROM nightly_runs ORDER BY started_at")
        assert list(found["status"]) == ["running", "superseded"]
        assert found["run_id"][0] == first.run_id


def test_a_scheduled_night_begins_when_the_rehearsal_that_is_at_work_has_ended(
    pipeline: Pipeline, environment: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    migrated_home(environment)
    monkeypatch.setattr("flows.which_night.SECONDS_BETWEEN_CHECKS", 0.05)
    waits = threading.Thread(target=wait_for_manual_run, args=(pipeline.name, date(2026, 1, 6)))
    with open_night(pipeline, that_night(pipeline), dry_run=True) as rehearsal:
        waits.start()
        waits.join(1)
        assert waits.is_alive()
        rehearsal.finish("held", "not better")
    waits.join(10)
    assert not waits.is_alive()
    assert [rehearsal.run_id in one.message for one in caplog.records if one.name == "nightgate.flows"] == [True]


@pytest.mark.slow
def test_a_training_that_stalls_is_announced_while_the_night_goes_on(
    prefect_server: str, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(database_url(home))
    impatient = partial(supervisor.train, python=stand_in(tmp_path / "python", hangs=1), stall_seconds=1)
    monkeypatch.setattr(supervisor, "train", impatient)
    state = run_flow_of(tiny_pipeline(tmp_path, rows=60, epochs=1), prefect_server)
    assert state.type.value == "COMPLETED"
    [event] = [one["payload"] for one in events(prefect_server, "nightgate.stalled", "tiny")]
    assert (event["night"], event["status"]) == (NIGHT, "stalled")
    assert event["run_id"] in str(state.message)
    assert event["next_step"]


@pytest.mark.parametrize(
    ("due", "reason"),
    [
        ([], ""),
        ([5], ""),
        ([4, 5], ""),
        ([5, 6, 7], "a newer night is due since 2026-01-07 03:15 UTC and runs instead"),
    ],
)
def test_a_scheduled_run_is_overtaken_by_a_newer_night_that_is_due(due: list[int], reason: str) -> None:
    instants = frozenset(datetime(2026, 1, day, 3, 15, tzinfo=UTC) for day in due)
    assert newer_is_due(instants, datetime(2026, 1, 5, 3, 15, tzinfo=UTC)) == reason


@pytest.mark.parametrize(
    ("error", "tries"), [(DatabaseError("away"), 4), (SourceUnavailableError("away"), 4), (DataError("bad"), 1)]
)
def test_a_step_is_tried_again_when_the_database_was_away_and_not_when_the_data_is_bad(
    error: NightgateError, tries: int, prefect_server: str
) -> None:
    tried = []

    @step("try")
    def fails() -> None:
        tried.append(error)
        raise error

    @flow
    def one_step() -> None:
        fails.with_options(retry_delay_seconds=0)()

    with temporary_settings({PREFECT_API_URL: prefect_server}), pytest.raises(type(error)):
        one_step()
    assert len(tried) == tries


def test_a_server_that_answers_is_used(prefect_server: str) -> None:
    messages: list[str] = []
    with temporary_settings({PREFECT_API_URL: prefect_server}), server_for_a_run(messages.append):
        assert PREFECT_API_URL.value() == prefect_server
    assert messages == [f"using the Prefect server at {prefect_server}"]


@pytest.mark.slow
def test_without_a_server_that_answers_a_temporary_one_is_started(
    environment: Path, tmp_path: Path, pipeline: Pipeline, prefect_server: str
) -> None:
    del prefect_server
    home = migrated_home(environment)
    unreachable = f"http://127.0.0.1:{free_port()}/api"
    messages: list[str] = []
    with (
        temporary_settings({PREFECT_API_URL: unreachable, PREFECT_SERVER_API_PORT: free_port()}),
        server_for_a_run(messages.append),
    ):
        own = PREFECT_API_URL.value().removesuffix("/api")
        assert answers(own)
        assert stranger(f"{own}/api", path="/health", Origin="http://evil.example").status_code == 403
        assert stranger(f"{own}/api").status_code == 401
        file = unusable(tmp_path / "gone.csv", pipeline)
        state = nightly_from_file(with_file(pipeline, file), that_night(pipeline), return_state=True)
    (message,) = messages
    assert unreachable in message
    assert "gone.csv" in str(state.message)
    assert list(rows(home, "SELECT status FROM nightly_runs")["status"]) == ["failed"]


@pytest.mark.slow
def test_a_temporary_server_that_does_not_come_up_is_an_error_with_a_next_step(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////no/such/folder/prefect.db")
    settings = {PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api", PREFECT_SERVER_API_PORT: free_port()}
    with (
        temporary_settings(settings),
        pytest.raises(NightgateError, match="did not come up") as refused,
        server_for_a_run(lambda _: None),
    ):
        pytest.fail("there is no server")
    assert "--no-prefect" in refused.value.next_step
    assert str(environment / "prefect-server.log") in refused.value.next_step


PARENT = """
import time
from flows.server.connection import started_server
with started_server(temporary=True) as server:
    print(server.process.pid, flush=True)
    time.sleep(100)
"""


def test_a_temporary_server_ends_with_the_process_that_started_it_even_when_that_is_killed(environment: Path) -> None:
    del environment
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert psutil.wait_procs([server], timeout=30)[1] == []
