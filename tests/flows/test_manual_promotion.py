"""Moving and holding the champion from the UI: the flows `promote`, `rollback`, `freeze` and `unfreeze`, on a real
server and a real home.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from prefect.client.schemas.objects import State
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.manual_promotion import freeze, promote, rollback, unfreeze
from nightgate.database.transactions import Database
from nightgate.home import Home
from nightgate.registry import freezes, versions
from tests.registry.test_champions import register
from tests.support.trained import write_trained_model

pytestmark = pytest.mark.flow


@pytest.fixture
def two_versions(
    home: Home, migrated: Callable[[str, Any], str], tmp_path_factory: pytest.TempPathFactory, prefect_server: str
) -> Iterator[Home]:
    """A home whose pipeline `reviews` has two versions and no champion; flows talk to the session's server."""
    with (
        closing(sqlite3.connect(migrated("sqlite", None))) as source,
        closing(sqlite3.connect(home.root / "metrics.db")) as copy,
    ):
        source.backup(copy)
    best = write_trained_model(tmp_path_factory.mktemp("trained"), ("bad", "fine", "good"))
    with Database.open(home) as db:
        assert register(db, home, best, count=2) == [1, 2]
    # Without heartbeats: Prefect waits a second for their thread when a run ends.
    with temporary_settings({PREFECT_API_URL: prefect_server, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield home
        APILogHandler().flush()


def champion(home: Home) -> int | None:
    with Database.open(home) as db:
        found = versions.champion(db, "reviews")
    return found.version if found else None


def event(api_url: str, name: str, pipeline: str) -> dict[str, Any]:
    """The one event of this name about a pipeline; the server stores them in the background."""
    asked = {"filter": {"event": {"name": [name]}}, "limit": 50}
    deadline = time.monotonic() + 20
    while True:
        found = httpx.post(f"{api_url}/events/filter", json=asked, timeout=10).json()["events"]
        ours: list[dict[str, Any]] = [one for one in found if one["payload"].get("pipeline") == pipeline]
        if ours:
            [one] = ours
            return one
        assert time.monotonic() < deadline, f"no event {name} about {pipeline}"
        time.sleep(0.3)


def ended(state: State[Any]) -> tuple[str, str | None]:
    return state.type.value, state.name


def test_a_person_promotes_and_rolls_back_from_the_form_and_it_is_audited(
    two_versions: Home, prefect_server: str
) -> None:
    who = {"pipeline": "reviews", "requested_by": "Ada"}
    first = promote(**who, version="1", reason="the only one we trust", return_state=True)
    assert ended(first) == ("COMPLETED", "Promoted")
    assert first.message == "version 1 is the champion of reviews now, the first one"
    assert ended(promote(**who, version="2", reason="checked by hand", return_state=True)) == ("COMPLETED", "Promoted")
    assert champion(two_versions) == 2
    back = rollback(**who, reason="worse on returns", return_state=True)
    assert ended(back) == ("COMPLETED", "Rolled back")
    assert champion(two_versions) == 1
    refused = promote(**who, version="2", reason="after all", return_state=True)
    assert "version 2 of reviews is quarantined" in str(refused.message)
    with Database.open(two_versions) as db:
        timeline = db.frame("SELECT promoted_by, reason FROM champion_timeline ORDER BY valid_from")
    assert set(timeline["promoted_by"]) == {"Ada"}
    assert list(timeline["reason"]) == ["the only one we trust", "checked by hand", "worse on returns"]

    told = event(prefect_server, "nightgate.rolled_back", "reviews")
    assert "worse on returns" in told["payload"]["reason"]
    assert told["resource"]["prefect.resource.id"] == "nightgate.pipeline.reviews"
    assert {one["prefect.resource.role"] for one in told["related"]} >= {"flow-run", "tag"}


def test_a_person_freezes_and_unfreezes_from_the_form_and_it_is_told(two_versions: Home, prefect_server: str) -> None:
    who = {"pipeline": "reviews", "requested_by": "Ada"}
    assert ended(freeze(**who, reason="a holiday", return_state=True)) == ("COMPLETED", "Frozen")
    again = freeze(**who, reason="again", return_state=True)
    assert ended(again) == ("FAILED", "Failed")
    assert "by Ada: a holiday\n  next: " in str(again.message)
    with Database.open(two_versions) as db:
        assert freezes.frozen(db, "reviews") is not None
    assert "a holiday" in event(prefect_server, "nightgate.frozen", "reviews")["payload"]["reason"]
    assert ended(unfreeze(**who, reason="it is over", return_state=True)) == ("COMPLETED", "Unfrozen")
    with Database.open(two_versions) as db:
        assert freezes.frozen(db, "reviews") is None
    assert "it is over" in event(prefect_server, "nightgate.unfrozen", "reviews")["payload"]["reason"]


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"version": "7"}, "reviews has no version 7; it has 1, 2"),
        ({"pipeline": "nobody", "version": "1"}, "the database knows no pipeline 'nobody'"),
    ],
)
def test_what_cannot_be_done_fails_in_words(two_versions: Home, parameters: dict[str, str], told: str) -> None:
    given = {"pipeline": "reviews", "reason": "because", "requested_by": "Ada", **parameters}
    state = promote(**given, return_state=True)
    assert ended(state) == ("FAILED", "Failed")
    assert told in str(state.message)
    assert "\n  next: " in str(state.message)
    assert champion(two_versions) is None


def test_where_there_is_no_home_the_flow_says_so_and_makes_none(environment: Any, prefect_server: str) -> None:
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        state = rollback("reviews", "because", "Ada", return_state=True)
    assert ended(state) == ("FAILED", "Failed")
    assert "there is no home of Nightgate" in str(state.message)
    assert not environment.exists()


def test_what_is_told_of_a_refusal_shows_no_secret(two_versions: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    del two_versions
    monkeypatch.setenv("SOME_TOKEN", "pasted-by-mistake")
    state = promote("pasted-by-mistake", "1", "because", "Ada", return_state=True)
    assert "the database knows no pipeline '***'" in str(state.message)


def test_a_value_that_the_form_refuses_fails_the_run_in_words_when_its_check_is_off(two_versions: Home) -> None:
    state = promote("reviews", "1 OR 1=1", "because", "Ada", return_state=True)
    assert state.type.value == "FAILED"
    assert "version" in str(state.message)
    assert "Traceback" not in str(state.message)
    assert champion(two_versions) is None
