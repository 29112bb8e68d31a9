"""Parts of a night as flows of their own: names, tags and states in the list of runs, and the event of a failure."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGINT, default_int_handler, signal
from uuid import uuid4

import pytest
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed

from deployments.catalog import PARTS
from deployments.deploy import prefect_deployment
from flows.evaluate import _summary, evaluate
from flows.events import make_event, send
from flows.nightly import nightly_from_file
from flows.predict import predict
from flows.refresh import refresh
from nightgate import locks
from nightgate.database.transactions import Database
from nightgate.home import Home, existing_home
from nightgate.pipeline_files import load_pipeline
from nightgate.runs.evaluations import Evaluation
from nightgate.schedule import scheduled_night
from tests.support.first_night import copy_first_night
from tests.support.night import write_pipeline
from tests.support.night_rows import within
from tests.support.prefect_api import client, events

pytestmark = [pytest.mark.flow, pytest.mark.process]

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_a_refresh_has_name_tags_and_rows_and_fails_visibly(
    home: Home, prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pipeline(tmp_path, "parts")
    section = f"\n[predict]\nsource = {{ kind = 'sample' }}\noutput = '{tmp_path / 'predicted.csv'}'\n"
    path.write_text(path.read_text() + section)
    monkeypatch.setenv("NIGHTGATE_PIPELINES", str(path))
    with temporary_settings({PREFECT_API_URL: prefect_server}), client(prefect_server) as prefect:
        for part in (evaluate, predict):
            # Its cron fires before any night, and there is not even a database.
            early = part("parts", return_state=True)
            assert (early.is_completed(), early.message) == (True, "no champion yet")
        done = refresh("parts", return_state=True)
        assert done.is_completed(), done.message
        run = prefect.read_flow_run(done.state_details.flow_run_id)
        evaluated = evaluate("parts", return_state=True)
        assert (evaluated.is_completed(), evaluated.message) == (True, "no champion yet")
        path.write_text(path.read_text().replace('text = "text"', 'text = "words"'))
        failed = refresh("parts", return_state=True)
        broken = prefect.read_flow_run(failed.state_details.flow_run_id)
    with Database.open(home) as db:
        rows = db.frame("SELECT status, rows_new, prefect_flow_run_id FROM refreshes ORDER BY started_at")
    assert rows["status"].tolist() == ["completed", "failed"]
    assert rows["prefect_flow_run_id"].tolist() == [str(run.id), str(broken.id)]
    assert run.name == f"parts refresh: {rows['rows_new'][0]:.0f} new rows"
    assert "parts" in run.tags
    assert (failed.is_failed(), broken.name) == (True, "parts refresh: failed")
    [event] = events(prefect_server, "nightgate.failed", "parts")
    assert event["payload"]["error_type"] == "data"


def test_a_prediction_says_what_it_wrote_and_fails_visibly(
    environment: Path, prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = copy_first_night(environment)
    output = tmp_path / "predicted.csv"
    path = tmp_path / "small.toml"
    section = f"\n[predict]\nsource = {{ kind = 'sample', rows_per_day = 3, days = 2 }}\noutput = '{output}'\n"
    path.write_text(first.pipeline.read_text(encoding="utf-8") + section, encoding="utf-8")
    monkeypatch.setenv("NIGHTGATE_PIPELINES", str(path))
    with temporary_settings({PREFECT_API_URL: prefect_server}), client(prefect_server) as prefect:
        done = predict("small", return_state=True)
        assert done.is_completed(), done.message
        run = prefect.read_flow_run(done.state_details.flow_run_id)
        num_rows = len(output.read_text(encoding="utf-8").splitlines()) - 1
        output.write_text("something else\n", encoding="utf-8")
        failed = predict("small", return_state=True)
        for part in (refresh, evaluate, predict):
            for tell in part.on_crashed_hooks or ():
                tell(part, run, Crashed())
        crashes = events(prefect_server, "nightgate.failed", "small", run.id)
    assert run.name == f"small predict: {num_rows} rows by version 1 to {output}"
    assert (failed.is_failed(), output.read_text(encoding="utf-8")) == (True, "something else\n")
    [event] = events(prefect_server, "nightgate.failed", "small", failed.state_details.flow_run_id)
    assert event["payload"]["error_type"] == "data"
    assert {one["payload"]["error_type"] for one in crashes} == {"crashed"}
    assert {one["payload"]["reason"].split()[3] for one in crashes} <= {"refresh", "evaluate", "predict"}


def test_a_champion_that_cannot_be_scored_is_no_evaluation_without_new_rows() -> None:
    night = datetime(2026, 1, 6, 3, 15, tzinfo=UTC)
    found = Evaluation("small", "s-1", 3, "champion", night, night, night, 26, "its weights are damaged")
    assert _summary((found,)) == "version 3, not evaluated on 26 rows"
    assert _summary((replace(found, rows=0),)) == "version 3, no new rows"


def test_a_night_whose_prediction_is_cancelled_stays_what_it_was(
    environment: Path, prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, home = copy_first_night(environment), existing_home()
    output = tmp_path / "predicted.csv"
    more = {"source": {"kind": "sample", "rows_per_day": 3, "days": 2}, "output": str(output)}
    pipeline = load_pipeline(first.pipeline, {"predict": more, "schedule.min_new_rows": 1_000_000})
    lock = f"predict-{hashlib.sha256(str(output).encode()).hexdigest()[:16]}"
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", str(uuid4()))
    signal(SIGINT, default_int_handler)  # a shell that starts the tests in the background has it ignored
    stop = threading.Thread(
        target=lambda: within(120, lambda: locks.queue(home, lock)[1:]) and os.kill(os.getpid(), SIGINT)
    )
    with locks.hold(home, lock, holder="another run"), temporary_settings({PREFECT_API_URL: prefect_server}):
        stop.start()
        night = scheduled_night(pipeline.schedule, datetime(2026, 1, 6, 3, 15, tzinfo=UTC))
        state = nightly_from_file(pipeline, night, return_state=True)
        stop.join()
    assert (state.type.value, state.name, output.exists()) == ("COMPLETED", "Skipped", False)


def test_the_automation_of_the_docs_predicts_with_a_new_champion(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(OPERATIONS.parents[1])
    shared = next(part.shared([load_pipeline("sample")]) for part in PARTS if part.flow == "predict")
    [code] = [block for block in OPERATIONS.read_text().split("```python\n")[1:] if "predict/nightgate" in block]
    with temporary_settings({PREFECT_API_URL: prefect_server}), client(prefect_server) as prefect:
        deployment_id = prefect_deployment(shared).apply()
        exec(code.split("```")[0], {})
        send(make_event("promoted", "sample", {"pipeline": "sample"}, None))
        ours = DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id]))
        try:
            [run] = within(30, lambda: prefect.read_flow_runs(deployment_filter=ours))
        finally:
            prefect.delete_deployment(deployment_id)
            for one in prefect.read_automations_by_name("predict after a promotion"):
                prefect.delete_automation(one.id)
    assert run.parameters == {"pipeline": "sample"}
