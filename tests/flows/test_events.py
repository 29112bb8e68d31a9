"""The events of nights: their content, and which are sent again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.events import announce_alarms, announce_ends, announce_stall, next_step
from flows.homes import own_tag
from flows.nightly import nightly
from nightgate.config.schedule import Schedule
from nightgate.database.schema import STATUSES, Run
from nightgate.database.transactions import Database
from nightgate.runs import evaluations, lifecycle
from nightgate.runs.evaluations import Evaluation
from nightgate.runs.run_row import RunRow
from nightgate.schedule import tonight
from tests.support import night_rows
from tests.support.night import write_pipeline
from tests.support.prefect_api import client, events


@pytest.mark.parametrize("status", sorted(set(STATUSES) - {"running"}))
def test_every_end_has_a_next_step(status: str) -> None:
    end = RunRow(
        run_id="r-1",
        pipeline="reviews",
        night=date(2026, 1, 5),
        attempt=1,
        status=status,
        reason="why",
        error_type=None,
        next_step=None,
        dry_run=False,
        data_until=datetime(2026, 1, 5, 3, 15, tzinfo=UTC),
        snapshot=None,
        test_f1=None,
        model_version=None,
        champion_version=None,
        prefect_flow_run_id=None,
    )
    assert next_step(end).startswith(("nothing to do", "look at it: nightgate history reviews --run r-1"))
    assert next_step(replace(end, next_step="do that")) == "do that"


@pytest.mark.flow
def test_a_stalled_training_is_an_event_with_reason_and_next_step_and_no_secret(prefect_server: str) -> None:
    flow_run_id = str(uuid4())
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        announce_stall(
            "slow-shop",
            date(2026, 1, 5),
            "r-1",
            "no step for 600 s; hub token hf_abcdefghijklmnopqrstuvwx",
            flow_run_id,
        )
    [event] = events(prefect_server, "nightgate.stalled", "slow-shop")
    assert event["resource"]["prefect.resource.name"] == "slow-shop"
    assert {f"prefect.flow-run.{flow_run_id}", "prefect.tag.nightgate"} == {
        one["prefect.resource.id"] for one in event["related"]
    }
    assert event["payload"] == {
        "pipeline": "slow-shop",
        "night": "2026-01-05",
        "run_id": "r-1",
        "status": "stalled",
        "reason": "no step for 600 s; hub token ***",
        "next_step": "check the machine's load",
    }


@contextmanager
def refusing(night: str, status: int) -> Iterator[list[dict[str, Any]]]:
    """A server that answers `status` to the event of one night and accepts all others; yields the events sent to it."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            [event] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(event)
            self.send_response(status if event["payload"]["night"] == night else 204)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_error(404, "this server asks for no CSRF token")

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/api"
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            yield asked
    finally:
        server.shutdown()
        server.server_close()


def nights(sent: list[dict[str, Any]]) -> list[str]:
    return [event["payload"]["night"] for event in sent]


@pytest.mark.parametrize(
    ("status", "days"),
    [
        pytest.param(422, ["01", "02", "03"], id="this event is refused"),
        pytest.param(401, ["01", "02"], id="the client is refused"),
        pytest.param(429, ["01", "02"], id="too many requests"),
        pytest.param(503, ["01", "02"], id="the server is away"),
    ],
)
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_an_event_that_was_not_accepted_is_sent_again_and_a_refused_one_stops_no_other(
    status: int, days: list[str], database: Database
) -> None:
    for day in range(3):
        run = night_rows.open_run(database, night_rows.pipeline(), night_rows.night(day))
        lifecycle.finish_run(database, run.run_id, run.attempt, "held", reason="not better")
    with refusing("2026-03-02", status) as asked:
        announce_ends(database)
    assert nights(asked) == [f"2026-03-{day}" for day in days]
    with refusing("", 204) as again:
        announce_ends(database)
    assert nights(again) == [f"2026-03-{day}" for day in ("02", "03") if day not in days or day == "02"]
    announced = database.frame("SELECT night FROM run WHERE announced_at IS NOT NULL")
    assert len(announced) == 3


def evaluation(database: Database, *, snapshot: str, run_id: str | None = None) -> Evaluation:
    """A stored evaluation of the champion that raised two alarms."""
    found = Evaluation(
        pipeline="reviews",
        snapshot_id=snapshot,
        model_version=1,
        role="champion",
        evaluated_at=datetime.now(UTC),
        rows_from=None,
        rows_to=None,
        rows=400,
        reason="F1 fell to 0.3",
        f1=0.3,
        alarms=("below_min_f1", "drifted"),
        run_id=run_id,
    )
    return evaluations.record(database, found, {}, [], "weighted")


@pytest.mark.flow
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_an_alarm_is_an_event_once_and_again_where_it_starts_a_night_which_it_does_once(
    prefect_server: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, version = night_rows.judged_version(database)
    night_rows.promote_itself(database, run, version)
    file = write_pipeline(tmp_path, "reviews")
    train_on = 'train_on = ["drift", "champion_dropped"]'
    file.write_text(f"{file.read_text()}[schedule]\n{train_on}\n")
    monkeypatch.setenv("NIGHTGATE_PIPELINES", str(tmp_path))
    with client(prefect_server) as prefect:
        own = {"name": "reviews", "parameters": {"pipeline": "reviews"}, "tags": [own_tag()]}
        deployed = prefect.create_deployment(prefect.create_flow(nightly), **own)
    evaluation(database, snapshot="s-1", run_id=run.run_id)
    evaluation(database, snapshot="s-2")
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        announce_alarms(database)
    assert evaluations.unannounced(database) == []

    def starts(name: str) -> dict[str, list[str]]:
        """The deployments that the events of this name start, by snapshot."""
        return {
            event["payload"]["snapshot_id"]: [
                one["prefect.resource.id"] for one in event["related"] if one["prefect.resource.role"] == "deployment"
            ]
            for event in events(prefect_server, name, "reviews")
        }

    # An hour later the alarms are still there, and the night that was started has been held, or waits in its queue.
    held = night_rows.open_run(database, night_rows.pipeline(), tonight(Schedule()), force=True)
    lifecycle.finish_run(database, held.run_id, held.attempt, "held")
    evaluation(database, snapshot="s-2b")
    # Its night may be started any number of days later: the champion is another one then.
    second, better = night_rows.judged_version(database, 1)
    night_rows.promote_itself(database, second, better, expected=version)
    evaluation(database, snapshot="s-3")
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        announce_alarms(database)
        # Events are stored in the order in which they were sent.
        announce_stall("alarmed", date(2026, 3, 1), run.run_id, "-", None)
    assert events(prefect_server, "nightgate.stalled", "alarmed")
    assert evaluations.unannounced(database) == []
    # Of the second a night is started; the others are the same alarms again.
    assert starts("nightgate.champion_dropped") == {"s-1": [], "s-2": [f"prefect.deployment.{deployed}"]}
    assert starts("nightgate.drifted") == {"s-1": []}


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_an_end_keeps_its_event_id_however_often_it_is_sent(database: Database) -> None:
    ids = []
    for attempt in (1, 2):
        run = night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
        lifecycle.finish_run(database, run.run_id, attempt, "failed", reason="no disk")
        for _ in range(2):  # as two processes at once do
            database.write(lambda session: session.execute(sa.update(Run).values(announced_at=None)))
            with refusing("", 204) as sent:
                announce_ends(database)
            ids += [event["id"] for event in sent]
    assert ids[0] == ids[1]
    assert ids[2] == ids[3]
    assert ids[0] != ids[2]


@pytest.mark.flow
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_an_end_that_is_sent_twice_is_stored_once(prefect_server: str, database: Database) -> None:
    run = night_rows.open_run(database, night_rows.pipeline("sent-twice"), night_rows.night())
    lifecycle.finish_run(database, run.run_id, run.attempt, "held", reason="not better")
    flow_run_id = uuid4()
    database.write(lambda session: session.execute(sa.update(Run).values(prefect_flow_run_id=str(flow_run_id))))
    (database.home.runs / run.run_id).mkdir(parents=True)
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        for _ in range(2):
            announce_ends(database)
            assert events(prefect_server, "nightgate.held", "sent-twice")
            database.write(lambda session: session.execute(sa.update(Run).values(announced_at=None)))
        # Events are stored in the order in which they were sent.
        announce_stall("sent-twice", date(2026, 3, 1), run.run_id, "-", None)
    assert events(prefect_server, "nightgate.stalled", "sent-twice")
    assert len(events(prefect_server, "nightgate.held", "sent-twice")) == 1
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as client:
        pages = ArtifactFilter.model_validate({"flow_run_id": {"any_": [flow_run_id]}})
        assert [one.key for one in client.read_artifacts(artifact_filter=pages)] == ["sent-twice-night"]
