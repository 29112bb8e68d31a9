"""Approvals: candidates that wait, decisions about them, and which ends of runs are announced."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from nightgate.database.schema import Run
from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.operations import reconciliation
from nightgate.registry import approvals, versions
from nightgate.runs import lifecycle
from nightgate.runs.liveness import Owner
from nightgate.runs.run_row import RunRow
from tests.support import night_rows
from tests.support.night_rows import one, opened


def waiting_run(database: Database, day: int = 0, **options: Any) -> tuple[str, int]:
    run, version = night_rows.judged_version(database, day, **options)
    night_rows.await_approval(database, run)
    return run.run_id, version


def test_a_waiting_run_is_neither_running_nor_ended(database: Database) -> None:
    run_id, version = waiting_run(database)
    row = one(database, run_id)
    assert (row["status"], row["finished_at"]) == ("waiting", None)
    [waits] = approvals.open_approvals(database)
    assert (waits.run_id, waits.version, waits.champion_version) == (run_id, version, None)
    assert reconciliation.finish_dead_runs(database) == []


def test_an_approval_promotes_and_is_stored_with_who_when_and_why(database: Database) -> None:
    run_id, version = waiting_run(database)
    ended = approvals.approve(database, run_id, by="anna", reason="looked at the slices")
    assert (ended.status, ended.reason) == ("promoted", "approved by anna: looked at the slices")
    champion = night_rows.champion(database)
    assert (champion.version, champion.promoted_by) == (version, "anna")
    [row] = database.frame("SELECT * FROM approvals").to_dict("records")
    assert (row["decision"], row["decided_by"], row["reason"]) == ("approved", "anna", "looked at the slices")
    assert row["decided_at"] is not None
    assert one(database, run_id)["status"] == "promoted"


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_a_version_whose_files_were_damaged_while_it_waited_is_held(database: Database, damage: str) -> None:
    run_id, version = waiting_run(database)
    weights = database.home.models / "reviews" / f"v{version:04d}" / "model.safetensors"
    weights.unlink()
    if damage == "altered":
        weights.write_text("something else")
    ended = approvals.approve(database, run_id, by="anna", reason="fine")
    assert ended.status == "held"
    assert "approved by anna: fine; not promoted: " in ended.reason
    assert "model.safetensors" in ended.reason
    assert f"nightgate promote reviews {version} --reason TEXT" in one(database, run_id)["next_step"]
    assert night_rows.promotions(database) == []
    with pytest.raises(RegistryError, match="does not wait"):
        approvals.approve(database, run_id, by="anna", reason="again")


def test_a_manual_promotion_ends_the_waiting_run_of_its_version(database: Database) -> None:
    other, _ = waiting_run(database, 0)
    run_id, version = waiting_run(database, 1)
    waiting = [one.run_id for one in reconciliation.unannounced(database)]
    for end in reconciliation.unannounced(database):
        reconciliation.mark_announced(database, end)
    night_rows.promote(database, version, by="anna", reason="it cannot wait")
    row = one(database, run_id)
    assert (row["status"], row["next_step"]) == ("promoted", None)
    assert "anna: it cannot wait" in row["reason"]
    assert row["finished_at"] is not None
    stored = database.frame("SELECT run_id, decision, decided_by, reason, decided_at FROM approvals")
    [decided] = stored[stored["run_id"] == run_id].to_dict("records")
    assert (decided["decision"], decided["decided_by"], decided["reason"]) == ("approved", "anna", "it cannot wait")
    assert decided["decided_at"] is not None
    assert [end.run_id for end in reconciliation.unannounced(database)] == [run_id]
    assert waiting.count(run_id) == 1, "its wait was announced, too"
    assert [one.run_id for one in approvals.open_approvals(database)] == [other], "another candidate still waits"
    with pytest.raises(RegistryError, match="anna: it cannot wait"):
        approvals.approve(database, run_id, by="ben", reason="fine")
    assert night_rows.champion(database).promoting_run_id is None


def test_a_late_approval_is_held_if_the_champion_has_changed(database: Database) -> None:
    run_id, _ = waiting_run(database, 1)
    night_rows.held_version(database, 0)
    night_rows.promote(database, 2)
    ended = approvals.approve(database, run_id, by="anna", reason="fine")
    assert ended.status == "held"
    assert "version 2" in ended.reason
    assert "nightgate champion reviews" in one(database, run_id)["next_step"]
    assert night_rows.champion(database).version == 2
    assert database.frame("SELECT decision FROM approvals")["decision"].tolist() == ["approved"]


def test_a_rejection_holds(database: Database) -> None:
    run_id, version = waiting_run(database)
    ended = approvals.reject(database, run_id, by="anna", reason="a slice got worse")
    assert (ended.status, ended.reason) == ("held", "rejected by anna: a slice got worse")
    assert versions.champion(database, "reviews") is None
    assert f"nightgate promote reviews {version} --reason TEXT" in one(database, run_id)["next_step"]


def test_a_passed_deadline_holds(database: Database) -> None:
    run_id, _ = waiting_run(database)
    now = datetime.now(UTC)
    assert approvals.hold_overdue(database, now + timedelta(hours=17)) == []
    [ended] = approvals.hold_overdue(database, now + timedelta(hours=19))
    assert (ended.run_id, ended.status) == (run_id, "held")
    assert database.frame("SELECT decision FROM approvals")["decision"].tolist() == ["timed_out"]


def test_an_approval_after_the_deadline_is_too_late(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id, _ = waiting_run(database)

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(hours=19)

    monkeypatch.setattr(approvals, "datetime", Later)
    ended = approvals.approve(database, run_id, by="anna", reason="fine")
    assert (ended.status, versions.champion(database, "reviews")) == ("held", None)
    assert database.frame("SELECT decision FROM approvals")["decision"].tolist() == ["timed_out"]


def test_a_decision_can_be_made_once(database: Database) -> None:
    run_id, _ = waiting_run(database)
    approvals.reject(database, run_id, by="anna", reason="no")
    for decide in (approvals.approve, approvals.reject):
        with pytest.raises(RegistryError, match="rejected by anna: no"):
            decide(database, run_id, by="ben", reason="yes")


def test_one_of_several_waiting_candidates_has_to_be_named(database: Database) -> None:
    (newer, _), (older, _) = waiting_run(database, 3), waiting_run(database, 1)
    with pytest.raises(RegistryError, match="2 candidates") as caught:
        approvals.find(database, "reviews")
    assert newer in caught.value.reason
    assert older in caught.value.reason
    assert f"nightgate approve reviews --run {older}" in caught.value.next_step
    assert approvals.find(database, "reviews", newer).run_id == newer


def test_if_none_waits_the_error_says_how_the_last_one_ended(database: Database) -> None:
    with pytest.raises(RegistryError, match="reviews") as caught:
        approvals.find(database, "reviews")
    assert "version" not in caught.value.reason
    first, _ = waiting_run(database)
    approvals.reject(database, first, by="anna", reason="no")
    second, version = waiting_run(database, 1)
    newer = opened(database, day=2)
    approvals.supersede_before(database, newer.run_id, newer.attempt)
    with pytest.raises(RegistryError, match=rf"version {version}.*{second}.* superseded.*{newer.run_id}"):
        approvals.find(database, "reviews")
    with pytest.raises(RegistryError, match=rf"held: rejected by anna: no \({datetime.now(UTC):%Y-%m-%d}"):
        approvals.find(database, "reviews", first)


@contextmanager
def slower(database: Database, url: str, run_id: str) -> Iterator[Database]:
    """A second connection; after its first transaction anna rejects the run on the first connection."""
    earlier: list[RunRow] = []

    def reject_once(_: sa.Connection) -> None:
        if not earlier:
            earlier.append(approvals.reject(database, run_id, by="anna", reason="no"))

    with Database.open(database.home, url) as other:
        sa.event.listen(other._engine, "commit", reject_once)
        yield other
    assert earlier


def test_the_later_of_two_simultaneous_decisions_fails_and_names_the_earlier(
    database: Database, migrated_url: str
) -> None:
    run_id, _ = waiting_run(database)
    with slower(database, migrated_url, run_id) as other, pytest.raises(RegistryError, match="rejected by anna: no"):
        approvals.reject(other, run_id, by="ben", reason="no, too")


def test_holding_overdue_candidates_keeps_a_simultaneous_decision(database: Database, migrated_url: str) -> None:
    (decided, _), (overdue, _) = waiting_run(database, 0), waiting_run(database, 1)
    with slower(database, migrated_url, decided) as reconciling:
        held = approvals.hold_overdue(reconciling, datetime.now(UTC) + timedelta(hours=19))
    assert [one.run_id for one in held] == [overdue]
    assert one(database, decided)["reason"] == "rejected by anna: no"


@pytest.mark.parametrize(("by", "reason"), [(" ", "fine"), ("anna", " ")])
def test_a_decision_needs_a_name_and_a_reason(database: Database, by: str, reason: str) -> None:
    run_id, _ = waiting_run(database)
    with pytest.raises(RegistryError, match="blank"):
        approvals.approve(database, run_id, by=by, reason=reason)
    assert one(database, run_id)["status"] == "waiting"


def test_the_next_night_supersedes_one_that_waits(database: Database) -> None:
    run_id, _ = waiting_run(database)
    newer = opened(database, day=1)
    approvals.supersede_before(database, newer.run_id, newer.attempt)
    assert one(database, run_id)["status"] == "superseded"
    assert database.frame("SELECT decision FROM approvals")["decision"].tolist() == ["superseded"]
    with pytest.raises(RegistryError, match="superseded"):
        approvals.approve(database, run_id, by="anna", reason="late")


@pytest.mark.parametrize("dialect", [pytest.param("postgresql", marks=pytest.mark.database)], indirect=True)
def test_a_night_that_starts_while_an_approval_is_committed_does_not_overwrite_it(
    database: Database, migrated_url: str
) -> None:
    """PostgreSQL only: SQLite has one writer at a time."""
    run_id, version = waiting_run(database)
    newer = opened(database, day=1)
    night = threading.Thread(target=approvals.supersede_before, args=(database, newer.run_id, newer.attempt))

    def held_up() -> bool:
        return bool(database.frame("SELECT 1 FROM pg_locks WHERE NOT granted").shape[0])

    def about_to_commit(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("writes") and night.ident is None:
            night.start()
            night_rows.within(5, held_up)

    with Database.open(database.home, migrated_url) as other:
        sa.event.listen(other._engine, "commit", about_to_commit)
        approvals.approve(other, run_id, by="anna", reason="fine")
    night.join()
    assert (one(database, run_id)["status"], night_rows.champion(database).version) == ("promoted", version)
    [row] = database.frame("SELECT decision, decided_by FROM approvals").to_dict("records")
    assert row == {"decision": "approved", "decided_by": "anna"}


def test_a_resumed_prefect_run_whose_night_was_superseded_stays_ended(database: Database) -> None:
    run_id, _ = waiting_run(database, prefect_flow_run_id="flow-1")
    newer = opened(database, day=1)
    approvals.supersede_before(database, newer.run_id, newer.attempt)
    lifecycle.finish_run(database, newer.run_id, newer.attempt, "held")
    resumed = opened(database, trigger="backfill", prefect_flow_run_id="flow-1")
    assert (resumed.run_id, resumed.status, resumed.ended) == (run_id, "superseded", True)


@pytest.mark.parametrize(
    "meanwhile", ["a newer night was skipped", "a newer night is at work", "a rehearsal is at work"]
)
def test_a_resumed_prefect_run_is_returned_as_waiting_even_while_another_run_is_active(
    database: Database, meanwhile: str
) -> None:
    run_id, _ = waiting_run(database, prefect_flow_run_id="flow-1")
    rehearses = meanwhile == "a rehearsal is at work"
    other = opened(database, day=1, owner=Owner.here(), dry_run=rehearses, prefect_flow_run_id="flow-2")
    if meanwhile == "a newer night was skipped":
        lifecycle.finish_run(database, other.run_id, other.attempt, "skipped")
    # `force` from the form asked for a new run at the start, not on each resume.
    for force in (False, True):
        resumed = opened(database, prefect_flow_run_id="flow-1", overtaken="a newer night is due", force=force)
        assert (resumed.run_id, resumed.status, resumed.ended) == (run_id, "waiting", True)


def test_a_backfill_of_an_older_night_supersedes_no_waiting_run(database: Database) -> None:
    run_id, _ = waiting_run(database, 3)
    older = opened(database, day=1, trigger="backfill")
    approvals.supersede_before(database, older.run_id, older.attempt)
    assert one(database, run_id)["status"] == "waiting"


# --- what is announced ---


def test_every_end_is_announced_once_and_a_wait_before_its_end(database: Database) -> None:
    run_id, _ = waiting_run(database)
    [waits] = reconciliation.unannounced(database)
    assert (waits.run_id, waits.status, waits.model_version) == (run_id, "waiting", 1)
    reconciliation.mark_announced(database, waits)
    assert reconciliation.unannounced(database) == []
    approvals.approve(database, run_id, by="anna", reason="fine")
    [promoted] = reconciliation.unannounced(database)
    assert promoted.status == "promoted"
    # Announcing an earlier state does not hide the later one.
    reconciliation.mark_announced(database, waits)
    assert len(reconciliation.unannounced(database)) == 1
    reconciliation.mark_announced(database, promoted)
    assert reconciliation.unannounced(database) == []


def test_a_resumed_run_is_announced_again_when_it_ends(database: Database) -> None:
    run = opened(database)
    lifecycle.finish_run(database, run.run_id, 1, "failed", reason="no disk", next_step="free some")
    [end] = reconciliation.unannounced(database)
    assert (end.status, end.reason, end.next_step) == ("failed", "no disk", "free some")
    reconciliation.mark_announced(database, end)
    again = opened(database)
    assert reconciliation.unannounced(database) == []
    lifecycle.finish_run(database, again.run_id, again.attempt, "held")
    assert [end.status for end in reconciliation.unannounced(database)] == ["held"]


def test_an_end_is_announced_for_days_however_long_ago_the_run_began(database: Database) -> None:
    run = opened(database)
    long_ago = {"started_at": datetime.now(UTC) - timedelta(days=8)}
    database.write(lambda session: session.execute(sa.update(Run).values(long_ago)))
    lifecycle.finish_run(database, run.run_id, 1, "failed")
    assert [end.status for end in reconciliation.unannounced(database)] == ["failed"]
    assert reconciliation.unannounced(database, datetime.now(UTC) + timedelta(days=8)) == []


def test_the_end_of_a_prefect_run_is_that_of_its_newest_row(database: Database) -> None:
    """A retry with another configuration opens a row of its own."""
    first = opened(database, prefect_flow_run_id="p")
    lifecycle.finish_run(database, first.run_id, 1, "failed", reason="too few rows")
    assert [(end.run_id, end.status) for end in reconciliation.ended_lately(database)] == [(first.run_id, "failed")]
    other = night_rows.pipeline(learning_rate=1e-4)
    again = night_rows.open_run(database, other, night_rows.night(), prefect_flow_run_id="p")
    assert again.run_id != first.run_id
    assert reconciliation.ended_lately(database) == []
    lifecycle.finish_run(database, again.run_id, 1, "held")
    assert [(end.run_id, end.status) for end in reconciliation.ended_lately(database)] == [(again.run_id, "held")]


def test_dead_runs_of_all_pipelines_are_ended_at_once(database: Database) -> None:
    dead = [night_rows.open_run(database, night_rows.pipeline(name), night_rows.night()) for name in ("one", "two")]
    living = night_rows.open_run(database, night_rows.pipeline("three"), night_rows.night(), owner=Owner.here())
    ended = reconciliation.finish_dead_runs(database)
    assert {one.run_id for one in ended} == {run.run_id for run in dead}
    assert one(database, living.run_id)["status"] == "running"
