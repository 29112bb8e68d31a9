"""The flows `promote`, `rollback`, `freeze` and `unfreeze` on a real server and a real home."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.manual_promotion import freeze, promote, rollback, unfreeze
from nightgate.database.transactions import Database
from nightgate.home import Home
from nightgate.registry import freezes, versions
from tests.registry.test_champions import register
from tests.support.prefect_api import events
from tests.support.trained import write_trained_model

pytestmark = [pytest.mark.flow, pytest.mark.process]


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


def ended(state: State[Any]) -> tuple[str, str | None]:
    return state.type.value, state.name


def test_promotions_and_rollbacks_from_the_form_are_audited(two_versions: Home, prefect_server: str) -> None:
    who = {"pipeline": "reviews", "requested_by": "Ada"}
    first = promote(**who, version="1", reason="the only one we trust", return_state=True)
    assert ended(first) == ("COMPLETED", "Promoted")
    assert "version 1" in str(first.message)
    assert ended(promote(**who, version="2", reason="checked manually", return_state=True)) == ("COMPLETED", "Promoted")
    assert champion(two_versions) == 2
    back = rollback(**who, reason="worse on returns", return_state=True)
    assert ended(back) == ("COMPLETED", "Rolled back")
    assert champion(two_versions) == 1
    refused = promote(**who, version="2", reason="after all", return_state=True)
    assert ended(refused) == ("FAILED", "Failed")
    assert "quarantined" in str(refused.message)
    with Database.open(two_versions) as db:
        timeline = db.frame("SELECT promoted_by, reason FROM champion_timeline ORDER BY valid_from")
    assert set(timeline["promoted_by"]) == {"Ada"}
    assert list(timeline["reason"]) == ["the only one we trust", "checked manually", "worse on returns"]

    [sent] = events(prefect_server, "nightgate.rolled_back", "reviews")
    assert "worse on returns" in sent["payload"]["reason"]
    assert sent["resource"]["prefect.resource.id"] == "nightgate.pipeline.reviews"
    handed = {name: sent["payload"][name] for name in ("model_version", "home", "path_in_home", "path")}
    home, path = two_versions.root, sent["payload"]["path_in_home"]
    assert handed == {"model_version": 1, "home": str(home), "path_in_home": path, "path": str(home / path)}
    assert {one["prefect.resource.role"] for one in sent["related"]} >= {"flow-run", "tag"}


def test_freezes_from_the_form_are_audited_and_sent_as_events(two_versions: Home, prefect_server: str) -> None:
    who = {"pipeline": "reviews", "requested_by": "Ada"}
    assert ended(freeze(**who, reason="a holiday", return_state=True)) == ("COMPLETED", "Frozen")
    again = freeze(**who, reason="again", return_state=True)
    assert ended(again) == ("FAILED", "Failed")
    assert "Ada: a holiday" in str(again.message)
    assert "\n  next: " in str(again.message)
    with Database.open(two_versions) as db:
        assert freezes.frozen(db, "reviews") is not None
    [sent] = events(prefect_server, "nightgate.frozen", "reviews")
    assert "a holiday" in sent["payload"]["reason"]
    assert ended(unfreeze(**who, reason="it is over", return_state=True)) == ("COMPLETED", "Unfrozen")
    with Database.open(two_versions) as db:
        assert freezes.frozen(db, "reviews") is None
    [sent] = events(prefect_server, "nightgate.unfrozen", "reviews")
    assert "it is over" in sent["payload"]["reason"]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"version": "7"}, "version 7"),
        ({"pipeline": "other", "version": "1"}, "'other'"),
    ],
)
def test_an_unknown_name_fails_the_run_with_a_next_step(
    two_versions: Home, parameters: dict[str, str], named: str
) -> None:
    given = {"pipeline": "reviews", "reason": "because", "requested_by": "Ada", **parameters}
    state = promote(**given, return_state=True)
    assert ended(state) == ("FAILED", "Failed")
    assert named in str(state.message)
    assert "\n  next: " in str(state.message)
    assert champion(two_versions) is None


def test_without_a_home_the_flow_fails_and_makes_none(environment: Any, prefect_server: str) -> None:
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        state = rollback("reviews", "because", "Ada", return_state=True)
    assert ended(state) == ("FAILED", "Failed")
    assert "home" in str(state.message)
    assert not environment.exists()


def test_a_refusal_shows_no_secret(two_versions: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    del two_versions
    monkeypatch.setenv("SOME_TOKEN", "pasted-by-mistake")
    state = promote("pasted-by-mistake", "1", "because", "Ada", return_state=True)
    assert "'***'" in str(state.message)


def test_an_invalid_value_fails_the_run_without_a_traceback_when_the_check_of_the_form_is_off(
    two_versions: Home,
) -> None:
    state = promote("reviews", "1 OR 1=1", "because", "Ada", return_state=True)
    assert state.type.value == "FAILED"
    assert "version" in str(state.message)
    assert "Traceback" not in str(state.message)
    assert champion(two_versions) is None
