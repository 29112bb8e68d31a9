"""kill -9 and SIGTERM of every process of a night on a real worker and server.

One night is struck by all of them, one after the other, and retried after each: it must end as an undisturbed one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Suspended

from tests.support.production import Production, is_gone, kill, within

pytestmark = [pytest.mark.flow, pytest.mark.faults, pytest.mark.timeout(900)]

NAME = "reviews"
EPOCHS = 60
SECONDS = 60
"""Time for everything to end: the row ended, slots free, processes gone."""


@dataclass(frozen=True)
class Blow:
    """The state of a night after a strike."""

    state: str
    row: dict[str, Any]
    champion: int | None


@dataclass(frozen=True)
class Target:
    """A night that trains."""

    production: Production
    run: FlowRun
    flow: psutil.Process
    training: psutil.Process


Strike = Callable[[Target], None]


def suffer(production: Production, run: FlowRun, strike: Strike) -> Blow:
    """Wait until the run's current attempt has an epoch, strike, and wait until slots and processes are gone."""
    flow, training = production.training(run)
    strike(Target(production, run, flow, training))

    def over() -> bool:
        ended = production.night(run)["status"] != "running" and production.state(run).is_final()
        return ended and is_gone(flow) and is_gone(training) and not production.held(NAME)

    within(SECONDS, over, f"the end of {run.name}: {production.log('worker.log')[-5000:]}")
    return Blow(production.state(run).name, production.night(run), production.champion(NAME))


def terminate_worker_twice(target: Target) -> None:
    production = target.production
    assert production.worker is not None
    kill(production.worker, number=signal.SIGTERM)
    within(10, lambda: "takes no more runs" in production.log("worker.log"), "the first signal")
    kill(production.worker, number=signal.SIGTERM)
    assert production.worker.wait(SECONDS) == 0
    production.start_worker(ours=False)


def terminate_worker_of_prefects(target: Target) -> None:
    """Prefect's worker kills its runs, which stay Running until `reconcile`."""
    production = target.production
    assert production.worker is not None
    kill(production.worker, number=signal.SIGTERM)
    production.worker.wait(SECONDS)
    assert production.state(target.run).name == "Running"
    assert production.night(target.run)["status"] == "running"
    production.start_worker()
    assert production.reconcile().is_completed()


def kill_all(target: Target) -> None:
    """Like a power cut, followed by a restart and `reconcile`."""
    production = target.production
    kill(target.training, target.flow, production.worker, production.server)
    production.start_server()
    production.start_worker()
    assert production.reconcile().is_completed()


STRIKES: dict[str, Strike] = {
    "kill -9 of the training": lambda target: kill(target.training),
    "SIGTERM to the training": lambda target: kill(target.training, number=signal.SIGTERM),
    "kill -9 of the flow": lambda target: kill(target.flow),
    "SIGTERM to the flow": lambda target: kill(target.flow, number=signal.SIGTERM),
    "Cancel in the UI": lambda target: target.production.cancel(target.run),
    "two SIGTERM to the worker": terminate_worker_twice,
    "SIGTERM to Prefect's own worker": terminate_worker_of_prefects,
    "kill -9 of everything": kill_all,
}


@dataclass(frozen=True)
class Story:
    """The night after all strikes."""

    production: Production
    run: FlowRun
    blows: dict[str, Blow]
    end: Any
    """The state of its flow run."""


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    with Production(tmp_path_factory.mktemp("crashes"), {NAME: ""}) as running:
        first = running.start(NAME, night="2026-01-05", training={"epochs": 1})
        assert running.ended(first).name == "Promoted"
        yield running


@pytest.fixture(scope="module")
def story(production: Production) -> Story:
    run = production.start(NAME, night="2026-01-06", training={"epochs": EPOCHS})
    blows = {}
    for name, strike in STRIKES.items():
        blows[name] = suffer(production, run, strike)
        production.retry(run)
    return Story(production, run, blows, production.ended(run, 240))


@pytest.mark.parametrize("name", STRIKES)
def test_after_a_strike_the_row_is_ended_slots_are_free_and_the_champion_is_unchanged(story: Story, name: str) -> None:
    blow = story.blows[name]
    assert blow.row["status"] in {"failed", "cancelled"}
    assert blow.row["finished_at"] is not None
    assert blow.row["next_step"]
    assert blow.champion == 1


@pytest.mark.parametrize(
    ("name", "status", "error_type", "reason", "state"),
    [
        ("kill -9 of the training", "failed", "out_of_memory", "was killed (SIGKILL)", "Failed"),
        ("SIGTERM to the training", "failed", "crashed", "died of SIGTERM", "Failed"),
        ("kill -9 of the flow", "failed", "crashed", "in attempt 3", "Crashed"),
        ("SIGTERM to the flow", "cancelled", "cancelled", "the last checkpoint is kept", "Cancelled"),
        ("Cancel in the UI", "cancelled", "cancelled", "the last checkpoint is kept", "Cancelled"),
        ("two SIGTERM to the worker", "cancelled", "cancelled", "the last checkpoint is kept", "Cancelled"),
        ("SIGTERM to Prefect's own worker", "failed", "crashed", "in attempt 7", "Crashed"),
        ("kill -9 of everything", "failed", "crashed", "in attempt 8", "Crashed"),
    ],
)
def test_database_and_prefect_record_the_cause(
    story: Story, name: str, status: str, error_type: str, reason: str, state: str
) -> None:
    blow = story.blows[name]
    assert (blow.row["status"], blow.row["error_type"], blow.state) == (status, error_type, state)
    assert reason in blow.row["reason"]


def test_every_retry_continues_from_the_last_epoch_as_the_next_attempt_of_the_same_run(story: Story) -> None:
    assert (story.end.type.value, story.end.name) in {("COMPLETED", "Promoted"), ("COMPLETED", "Held")}
    row = story.production.night(story.run)
    assert (row["attempts"], str(row["night"])[:10]) == (len(STRIKES) + 1, "2026-01-06")
    found = story.production.epochs(story.run)
    assert [epoch for _, epoch in found] == list(range(1, EPOCHS + 1))
    assert sorted(attempt for attempt, _ in found) == [attempt for attempt, _ in found]
    assert {attempt for attempt, _ in found} == set(range(1, len(STRIKES) + 2))
    resumed = story.production.rows(
        "SELECT attempt, resumed_from_epoch FROM attempt WHERE run_id = :id ORDER BY attempt", id=row["run_id"]
    )
    lasts = [max(epoch for attempt, epoch in found if attempt < one["attempt"]) for one in resumed[1:]]
    assert lasts[-1] == resumed[-1]["resumed_from_epoch"]


def test_an_event_is_published_for_every_end(story: Story) -> None:
    row = story.production.night(story.run)
    failed = [name for name, blow in story.blows.items() if blow.row["status"] == "failed"]
    events = story.production.announced("failed", len(failed))
    events += story.production.announced("cancelled", len(STRIKES) - len(failed))
    assert [one["run_id"] for one in events] == [row["run_id"]] * len(STRIKES)
    assert all(one["next_step"] for one in events)
    # The night of the fixture was promoted before it.
    last = partial(story.production.announced, row["status"])
    within(30, lambda: row["reason"] in [one["reason"] for one in last()], "the event of the last end")


# --- what a night survives ---


def test_a_night_survives_its_worker_and_a_restart_of_the_server(production: Production) -> None:
    run = production.start(NAME, night="2026-01-07", training={"epochs": EPOCHS})
    flow, _ = production.training(run)
    kill(production.worker)
    production.start_worker()
    lease = production.state(run).state_details.deployment_concurrency_lease_id
    kill(production.server)
    production.start_server()
    assert not is_gone(flow)
    with production.client() as client:
        # The request that the flow's process sends every 225 s; a refusal would end it.
        renewed = client.request("POST", f"/v2/concurrency_limits/leases/{lease}/renew", json={"lease_duration": 300})
    assert renewed.status_code == 204
    assert production.ended(run).type.value == "COMPLETED"
    row = production.night(run)
    assert (row["attempts"], row["status"] in {"promoted", "held"}) == (1, True)
    within(SECONDS, lambda: not production.held(NAME), "the deployment's slot")


def test_a_night_survives_a_server_that_shuts_down_and_is_away_when_the_night_ends(
    production: Production,
) -> None:
    run = production.start(NAME, night="2026-01-08", training={"epochs": 5})
    flow, _ = production.training(run)
    kill(production.server, number=signal.SIGTERM)
    assert production.server is not None
    production.server.wait(SECONDS)
    query = "SELECT status FROM nightly_runs WHERE night = '2026-01-08'"
    within(120, lambda: production.rows(query)[0]["status"] in {"promoted", "held"}, "the end of the night")
    production.start_server()
    assert production.ended(run).type.value == "COMPLETED"
    assert is_gone(flow) or within(SECONDS, lambda: is_gone(flow), "the end of the process")


def test_a_worker_after_sigterm_starts_no_more_runs_and_waits_for_the_current_one(
    production: Production,
) -> None:
    run = production.start(NAME, night="2026-01-09", training={"epochs": 20})
    flow, training = production.training(run)
    before = production.log("worker.log").count("takes no more runs")
    kill(production.worker, number=signal.SIGTERM)
    within(10, lambda: production.log("worker.log").count("takes no more runs") > before, "its answer")
    later = production.start(NAME, night="2026-01-10", training={"epochs": 1})
    assert production.ended(run).type.value == "COMPLETED"
    assert production.worker is not None
    assert production.worker.wait(SECONDS) == 0
    assert production.night(run)["attempts"] == 1
    assert is_gone(flow)
    assert is_gone(training)
    assert production.state(later).type.value == "SCHEDULED"
    production.start_worker()
    assert production.ended(later).type.value == "COMPLETED"


def test_reconcile_cancels_a_run_whose_worker_is_gone(production: Production) -> None:
    run = production.start(NAME, night="2026-01-11", training={"epochs": 1000})
    flow, training = production.training(run)
    kill(production.worker)
    production.cancel(run)
    production.start_worker()
    assert production.state(run).name == "Cancelling"
    # `reconcile` leaves a cancelled run to its worker for half a minute.
    time.sleep(31)
    done = production.nightgate("reconcile")
    assert done.returncode == 0, done.stderr
    assert production.state(run).name == "Cancelled"
    assert production.night(run)["status"] == "cancelled"
    # Its next heartbeat, every 15 s, is refused.
    within(30, lambda: is_gone(flow) and is_gone(training), "the end of the process")
    assert production.state(run).name == "Cancelled"
    assert production.champion(NAME) is not None


def test_a_paused_run_stops_after_its_epoch_and_continues_from_there_once_resumed(
    production: Production,
) -> None:
    run = production.start(NAME, night="2026-01-12", training={"epochs": 20})
    flow, training = production.training(run)
    with production.client() as client:
        # Pause in the UI sends this.
        client.set_flow_run_state(run.id, Suspended(timeout_seconds=300), force=True)
    within(SECONDS, lambda: is_gone(flow) and is_gone(training), "the end of its processes")
    within(SECONDS, lambda: not production.held(NAME), "its slots")
    row = production.night(run)
    assert row["status"] == "cancelled"
    assert "Pause" in row["reason"]
    done = production.epochs(run)
    assert len(done) < 20
    assert production.nightgate("reconcile").returncode == 0
    assert production.state(run).name == "Suspended"
    with production.client() as client:
        client.resume_flow_run(run.id)
    assert production.ended(run).type.value == "COMPLETED"
    assert production.night(run)["attempts"] == 2
    found = production.epochs(run)
    assert [epoch for _, epoch in found] == list(range(1, 21))
    assert found[: len(done)] == done
