"""The anchor moves in the transaction of a promotion, and back with a rollback, on both engines."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from nightgate.config.pipeline import Pipeline
from nightgate.database.gate_schema import Anchor
from nightgate.database.schema import ModelVersion
from nightgate.database.transactions import Database
from nightgate.errors import PromotionLostError, RegistryError
from nightgate.gate.decision import Check, Outcome
from nightgate.registry import anchors, approvals, promotion
from nightgate.registry import versions as version_rows
from nightgate.runs import lifecycle, records
from tests.support import night_rows
from tests.support.night_rows import promote, promote_itself, roll_back


@pytest.fixture
def versions(database: Database) -> Database:
    """Versions 1 to 4, none of them ever promoted."""
    for day in range(4):
        night_rows.held_version(database, day)
    return database


def anchor(database: Database, at: datetime | None = None) -> int | None:
    row = version_rows.anchor(database, "reviews", at)
    return row.version if row else None


def test_the_first_champion_is_the_anchor_and_later_ones_are_not(versions: Database) -> None:
    assert anchor(versions) is None
    promote(versions, 1, None)
    promote(versions, 2, 1)
    promote(versions, 3, 2)
    assert anchor(versions) == 1


def test_a_promotion_moves_the_anchor_at_the_instant_at_which_the_champion_changes(versions: Database) -> None:
    promote(versions, 1, None)
    promote(versions, 2, 1, moves_anchor=True)
    row, champion = night_rows.anchor(versions), night_rows.champion(versions)
    assert champion.valid_from is not None
    assert (row.version, row.valid_from, row.promoted_by, row.reason) == (2, champion.valid_from, "ada", "fit")
    assert anchor(versions, champion.valid_from) == 2
    assert anchor(versions, champion.valid_from - timedelta(microseconds=1)) == 1
    assert anchor(versions, champion.valid_from - timedelta(days=1)) is None


def test_a_promotion_that_loses_moves_no_anchor(versions: Database) -> None:
    promote(versions, 1, None)
    with pytest.raises(PromotionLostError):
        promote(versions, 2, None, moves_anchor=True)
    assert anchor(versions) == 1


def test_the_run_whose_evidence_moved_the_anchor_is_stored(versions: Database) -> None:
    promote(versions, 1, None)
    opened, version = night_rows.judged_version(versions, 4)
    promote_itself(versions, opened, version, 1, moves_anchor=True)
    moved = versions.frame("SELECT model_version, moving_run_id, moved_by FROM anchor_timeline ORDER BY valid_from")
    assert moved.iloc[1].tolist() == [version, opened.run_id, "gate"]


def test_the_anchor_alone_moves_to_the_champion_and_to_no_other_version(versions: Database) -> None:
    promote(versions, 1, None)
    promote(versions, 2, 1)
    anchors.move(versions, "reviews", 2, by="ada", reason="version 1 is lost")
    row = night_rows.anchor(versions)
    assert (row.version, row.promoted_by, row.reason) == (2, "ada", "version 1 is lost")
    with pytest.raises(RegistryError, match="version 2"):
        anchors.move(versions, "reviews", 1, by="ada", reason="no")
    assert anchor(versions) == 2


@pytest.mark.parametrize("other", [["bad", "fine", "good"], {"bad": "good", "good": "bad"}])
def test_an_anchor_with_other_labels_is_replaced_by_the_new_champion(versions: Database, other: Any) -> None:
    promote(versions, 1, None)
    for day, labels, expected_anchor in ((9, ["good", "bad"], 1), (10, other, 6)):
        values = night_rows.pipeline().record() | {"data": {"source": {"kind": "sample"}, "labels": labels}}
        opened = night_rows.open_run(versions, Pipeline.model_validate(values), night_rows.night(day))
        number = promotion.add_version(versions, opened.run_id, 1, lambda number: f"models/reviews/v{number:04d}")
        lifecycle.finish_run(versions, opened.run_id, 1, "held")
        promote(versions, number, number - 1 if number == 6 else 1)
        assert anchor(versions) == expected_anchor


# --- rollbacks ---


def test_a_rollback_from_the_anchor_restores_the_previous_anchor(versions: Database) -> None:
    promote(versions, 1, None)
    promote(versions, 2, 1)
    promote(versions, 3, 2, moves_anchor=True)
    roll_back(versions, 2, 3)
    row = night_rows.anchor(versions)
    assert (row.version, row.promoted_by, row.reason) == (1, "ada", "rolled back from version 3 to 2: worse")


def test_a_rollback_from_a_champion_that_is_not_the_anchor_keeps_the_anchor(versions: Database) -> None:
    promote(versions, 1, None)
    promote(versions, 2, 1, moves_anchor=True)
    promote(versions, 3, 2)
    roll_back(versions, 2, 3)
    assert anchor(versions) == 2
    assert len(versions.frame("SELECT * FROM anchor_timeline")) == 2


@pytest.mark.parametrize("mark", ["quarantined_at", "files_removed_at"])
def test_a_rollback_skips_anchors_that_are_quarantined_or_without_files(versions: Database, mark: str) -> None:
    promote(versions, 1, None)
    promote(versions, 2, 1)
    promote(versions, 3, 2, moves_anchor=True)
    gone = sa.update(ModelVersion).where(ModelVersion.version == 1)
    versions.write(lambda session: session.execute(gone.values({mark: ModelVersion.created_at})))
    roll_back(versions, 2, 3)
    assert anchor(versions) == 2


# --- approvals ---


def waiting(
    database: Database, ci_low: float | None, outcome: Outcome, expected: int = 1, judged_against: int | None = None
) -> str:
    """The run of version 5, which waits for approval after this outcome of its check against the anchor."""
    opened = night_rows.opened(database, 5, trigger="backfill")
    checks = (
        Check(name="anchor", outcome=outcome, reason="-", ci_low=ci_low, ci_high=0.1),
        Check(name="beats_champion", outcome="passed", reason="-", ci_low=0.01, ci_high=0.1),
    )
    # As the gate: an anchor that is the champion has no interval of its own.
    plain = night_rows.evidence(judged_against if outcome == "not_run" else None)
    side = plain.champion or replace(plain.candidate, version=judged_against)
    evidence = replace(plain, anchor=None if judged_against is None else side)
    made_by = dict.fromkeys(("candidate", "champion", "anchor"), opened.run_id)
    decision = replace(night_rows.decision(), checks=checks)
    records.record_decision(database, opened.run_id, 1, decision, evidence, made_by)
    promotion.add_version(database, opened.run_id, 1, lambda number: f"models/reviews/v{number:04d}")
    night_rows.await_approval(database, opened, expected)
    return opened.run_id


@pytest.mark.parametrize(
    ("ci_low", "outcome", "judged_against", "moves"),
    [
        (0.001, "passed", None, True),
        (0.0, "passed", None, False),
        (-0.02, "passed", None, False),
        (None, "not_run", None, False),
        (None, "not_run", 1, True),
    ],
)
def test_an_approved_candidate_moves_the_anchor_if_the_gate_found_it_better(
    versions: Database, ci_low: float | None, outcome: Outcome, judged_against: int | None, moves: bool
) -> None:
    promote(versions, 1, None)
    run_id = waiting(versions, ci_low, outcome, judged_against=judged_against)
    assert anchors.was_beaten(versions, run_id, 1) is moves
    assert approvals.approve(versions, run_id, by="ada", reason="checked").status == "promoted"
    assert anchor(versions) == (5 if moves else 1)


# --- an anchor that was moved meanwhile ---


@pytest.fixture
def unanchored(versions: Database) -> Database:
    """Version 2 is the champion and version 1 the anchor."""
    promote(versions, 1, None)
    promote(versions, 2, 1)
    return versions


def test_an_approval_fails_if_the_anchor_was_moved_since_the_night(unanchored: Database) -> None:
    run_id = waiting(unanchored, 0.001, "passed", expected=2, judged_against=1)
    anchors.move(unanchored, "reviews", 2, by="ada", reason="none may fall behind 2")
    ended = approvals.approve(unanchored, run_id, by="ben", reason="ok")
    assert ended.status == "held"
    assert "anchor version 1" in ended.reason
    assert anchor(unanchored) == 2
    stored = night_rows.one(unanchored, run_id)
    assert stored["status"] == "held"
    assert "nightgate promote reviews 5" in stored["next_step"]
    promote(unanchored, 5, 2)
    assert anchor(unanchored) == 2, "a manual promotion compares no anchor"


@pytest.mark.parametrize("judged_against", [1, None])
def test_an_approval_promotes_if_the_anchor_is_that_of_the_night_or_the_night_stored_none(
    unanchored: Database, judged_against: int | None
) -> None:
    run_id = waiting(unanchored, 0.001, "passed", expected=2, judged_against=judged_against)
    assert anchors.judged_against(unanchored, run_id, 1) == judged_against
    assert approvals.approve(unanchored, run_id, by="ben", reason="ok").status == "promoted"
    assert anchor(unanchored) == 5


def test_a_run_does_not_promote_if_the_anchor_was_moved_since(unanchored: Database) -> None:
    opened, version = night_rows.judged_version(unanchored, 5)
    anchors.move(unanchored, "reviews", 2, by="ada", reason="none may fall behind 2")
    with pytest.raises(PromotionLostError, match="anchor version 1"):
        promote_itself(unanchored, opened, version, 2, expected_anchor=1, moves_anchor=True)
    assert anchor(unanchored) == 2
    unanchored.write(lambda session: session.execute(sa.delete(Anchor)))
    promote_itself(unanchored, opened, version, 2, expected_anchor=1)
    assert night_rows.champion(unanchored).version == version, "no anchor is no obstacle"
