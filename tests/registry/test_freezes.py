"""Freezes and quarantines keep runs from promoting; manual decisions override them. On both engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nightgate.database.schema import ModelVersion
from nightgate.database.transactions import Database
from nightgate.errors import PromotionLostError, RegistryError
from nightgate.registry import approvals, freezes, versions
from nightgate.runs.run_row import read_run
from tests.support import night_rows
from tests.support.night_rows import champion, promote, promote_itself, roll_back


@pytest.fixture
def promoted(database: Database) -> Database:
    """Version 2 is the champion after version 1."""
    for day in range(2):
        night_rows.held_version(database, day)
    promote(database, 1, None)
    promote(database, 2, 1)
    return database


@pytest.fixture
def rolled_back(promoted: Database) -> Database:
    """Version 2 was the champion, and 1 is again."""
    roll_back(promoted, 1, 2)
    return promoted


# --- freezes ---


def test_no_run_promotes_itself_until_its_pipeline_is_unfrozen(database: Database) -> None:
    opened, version = night_rows.judged_version(database)
    freezes.freeze(database, "reviews", by="ada", reason="look at the labels first")
    with pytest.raises(PromotionLostError, match="by ada: look at") as caught:
        promote_itself(database, opened, version)
    assert "nightgate unfreeze reviews" in caught.value.next_step
    assert versions.champion(database, "reviews") is None
    assert read_run(database, opened.run_id).status == "running"
    freezes.unfreeze(database, "reviews", by="ada", reason="they are fine")
    promote_itself(database, opened, version)
    assert champion(database).version == 1


def test_a_freeze_stops_no_manual_decision(database: Database) -> None:
    night_rows.held_version(database)
    opened, version = night_rows.judged_version(database, 1)
    night_rows.await_approval(database, opened, 1)
    freezes.freeze(database, "reviews", by="ada", reason="manual promotions only")
    promote(database, 1, None)
    assert approvals.approve(database, opened.run_id, by="ada", reason="checked").status == "promoted"
    assert champion(database).version == version


def test_a_freeze_holds_one_pipeline_only(database: Database) -> None:
    night_rows.held_version(database, name="other")
    opened, version = night_rows.judged_version(database)
    freezes.freeze(database, "other", by="ada", reason="not this one")
    assert freezes.frozen(database, "reviews") is None
    promote_itself(database, opened, version)


def test_a_pipeline_has_one_freeze_at_a_time_and_every_one_is_kept(database: Database) -> None:
    night_rows.held_version(database)
    for why in ("first", "second"):
        freezes.freeze(database, "reviews", by=" ada ", reason=f" {why} ")
        with pytest.raises(RegistryError, match=f"by ada: {why}"):
            freezes.freeze(database, "reviews", by="ben", reason="again")
        ended = freezes.unfreeze(database, "reviews", by="ben", reason="done")
        assert (ended.frozen_by, ended.reason) == ("ada", why)
        with pytest.raises(RegistryError) as caught:
            freezes.unfreeze(database, "reviews", by="ben", reason="again")
        assert "nightgate history reviews" in caught.value.next_step
    kept = database.frame("SELECT reason, ended_by, end_reason FROM freezes ORDER BY frozen_at")
    assert kept.to_numpy().tolist() == [["first", "ben", "done"], ["second", "ben", "done"]]


@pytest.mark.parametrize(
    ("pipeline", "by", "reason", "named"),
    [
        ("review", "ada", "why not", "'reviews'"),
        ("reviews", "ada", " \n", "reason"),
        ("reviews", "", "why not", "name"),
    ],
)
def test_an_unknown_pipeline_and_a_blank_name_or_reason_are_errors(
    database: Database, pipeline: str, by: str, reason: str, named: str
) -> None:
    night_rows.held_version(database)
    for change in (freezes.freeze, freezes.unfreeze):
        with pytest.raises(RegistryError, match=named) as caught:
            change(database, pipeline, by=by, reason=reason)
        assert caught.value.next_step
    assert database.frame("SELECT * FROM freezes").empty


def test_freeze_and_unfreeze_are_idempotent_when_the_answer_of_the_database_is_lost(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    night_rows.held_version(database)
    once = Database.write

    def twice(self: Database, work: Callable[[Any], Any]) -> Any:
        once(self, work)
        return once(self, work)

    monkeypatch.setattr(Database, "write", twice)
    freezes.freeze(database, "reviews", by="ada", reason="look")
    assert freezes.frozen(database, "reviews") is not None
    freezes.unfreeze(database, "reviews", by="ada", reason="looked")
    assert len(database.frame("SELECT * FROM freezes WHERE ended_at IS NOT NULL")) == 1


# --- rollbacks ---


def test_a_rollback_quarantines_the_champion_and_freezes(rolled_back: Database) -> None:
    bad = versions.versions(rolled_back, "reviews")[1]
    assert (bad.status, bad.quarantined_by, bad.quarantine_reason) == ("quarantined", "ada", "worse")
    freeze = freezes.frozen(rolled_back, "reviews")
    assert freeze is not None
    assert (freeze.frozen_by, freeze.reason) == ("ada", "rolled back from version 2 to 1: worse")
    [night] = rolled_back.frame("SELECT quarantined_at FROM model_versions WHERE version = 2")["quarantined_at"]
    [since] = rolled_back.frame("SELECT valid_from FROM champion_timeline WHERE valid_to IS NULL")["valid_from"]
    assert night == since


def test_a_rollback_of_a_frozen_pipeline_keeps_its_freeze(promoted: Database) -> None:
    freezes.freeze(promoted, "reviews", by="ben", reason="a holiday")
    roll_back(promoted, 1, 2)
    freeze = freezes.frozen(promoted, "reviews")
    assert freeze is not None
    assert (freeze.frozen_by, freeze.reason) == ("ben", "a holiday")


def test_a_rollback_that_loses_changes_nothing(rolled_back: Database) -> None:
    freezes.unfreeze(rolled_back, "reviews", by="ada", reason="mended")
    night_rows.held_version(rolled_back, 2)
    with pytest.raises(PromotionLostError):
        roll_back(rolled_back, 3, 2)
    assert freezes.frozen(rolled_back, "reviews") is None
    assert [row.status for row in versions.versions(rolled_back, "reviews")] == ["champion", "quarantined", "held"]


def test_a_quarantined_version_is_promoted_only_if_it_is_released(rolled_back: Database) -> None:
    with pytest.raises(RegistryError, match="by ada: worse") as caught:
        promote(rolled_back, 2, 1)
    assert "nightgate promote reviews 2 --despite-quarantine" in caught.value.next_step
    assert champion(rolled_back).version == 1
    promote(rolled_back, 2, 1, despite_quarantine=True)
    row = champion(rolled_back)
    assert (row.version, row.quarantined_at, row.quarantined_by, row.quarantine_reason) == (2, None, None, None)
    assert row.reason is not None
    assert row.reason.startswith("fit (")
    assert row.reason.endswith("by ada: worse)")


def test_a_released_version_whose_promotion_fails_stays_quarantined(rolled_back: Database) -> None:
    with pytest.raises(PromotionLostError):
        promote(rolled_back, 2, None, despite_quarantine=True)
    assert versions.versions(rolled_back, "reviews")[1].status == "quarantined"


def test_the_promotion_of_a_run_whose_version_is_quarantined_fails_without_ending_the_run(database: Database) -> None:
    opened, version = night_rows.judged_version(database)

    def quarantine(session: Any) -> None:
        row = session.get_one(ModelVersion, ("reviews", version))
        row.quarantined_at, row.quarantined_by, row.quarantine_reason = row.created_at, "ben", "it is rude"

    database.write(quarantine)
    with pytest.raises(PromotionLostError, match="by ben: it is rude"):
        promote_itself(database, opened, version)
    assert read_run(database, opened.run_id).status == "running"
