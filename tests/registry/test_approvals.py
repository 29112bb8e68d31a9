"""Candidates that wait for a person, what that one says, and which ends are announced."""

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
from nightgate.registry import approvals, promotion, versions
from nightgate.runs import lifecycle
from nightgate.runs.liveness import Owner
from nightgate.runs.run_row import RunRow
from tests.support import night_rows
from tests.support.night_rows import one, opened


def waiting_run(database: Database, day: int = 0, champion: int | None = None, **options: Any) -> tuple[str, int]:
    run, version = night_rows.judged_version(database, day, **options)
    approvals.request(
        database,
        run.run_id,
        run.attempt,
        expected=champion,
        patience=timedelta(hours=18),
        reason="waits for approval: better",
        next_step="nightgate approve reviews",
    )
    return run.run_id, version


def test_a_run_that_waits_is_not_at_work_and_holds_nothing(database: Database) -> None:
    run_id, version = waiting_run(database)
    row = one(database, run_id)
    assert (row["status"], row["finished_at"]) == ("waiting", None)
    [waits] = approvals.open_approvals(database)
    assert (waits.run_id, waits.version, waits.champion_version) == (run_id, version, None)
    assert reconciliation.settle_running(database) == []


def test_an_approval_promotes_and_says_who_when_and_why(database: Database) -> None:
    run_id, version = waiting_run(database)
    ended = approvals.approve(database, run_id, by="anna", reason="looked at the slices")
    assert (ended.status, ended.reason) == ("promoted", "approved by anna: looked at the slices")
    champion = versions.champion(database, "reviews")
    assert champion is not None
    assert (champion.version, champion.promoted_by) == (version, "anna")
    [row] = database.frame("SELECT * FROM approvals").to_dict("records")
    assert (row["decision"], row["decided_by"], row["reason"]) == ("approved", "anna", "looked at the slices")
    assert row["decided_at"] is not None
    assert one(database, run_id)["status"] == "promoted"


def test_a_candidate_that_waits_and_is_promoted_by_hand_waits_no_more(database: Database) -> None:
    other, _ = waiting_run(database, 0)
    run_id, version = waiting_run(database, 1)
    waiting = [one.run_id for one in reconciliation.unannounced(database)]
    for end in reconciliation.unannounced(database):
        reconciliation.mark_announced(database, end)
    promotion.promote(database, "reviews", version, expected=None, by="anna", reason="it cannot wait")
    row = one(database, run_id)
    assert (row["status"], row["reason"]) == ("promoted", "promoted by hand by anna: it cannot wait")
    assert row["finished_at"] is not None
    assert row["next_step"] is None
    told = database.frame("SELECT run_id, decision, decided_by, reason, decided_at FROM approvals").set_index("run_id")
    assert told.loc[run_id].tolist()[:3] == ["approved", "anna", "it cannot wait"]
    assert told.loc[run_id, "decided_at"] is not None
    assert [end.run_id for end in reconciliation.unannounced(database)] == [run_id]
    assert waiting.count(run_id) == 1, "that it waits had been announced, too"
    assert [one.run_id for one in approvals.open_approvals(database)] == [other], "another candidate still waits"
    with pytest.raises(RegistryError, match="it is promoted: promoted by hand by anna: it cannot wait"):
        approvals.approve(database, run_id, by="ben", reason="fine")
    reign = versions.champion(database, "reviews")
    assert reign is not None
    assert reign.promoting_run_id is None, "it was a person"


def test_a_late_approval_loses_to_a_champion_that_came_meanwhile_and_says_so(database: Database) -> None:
    run_id, _ = waiting_run(database, 1)
    night_rows.held_version(database, 0)
    promotion.promote(database, "reviews", 2, expected=None, by="ben", reason="by hand")
    ended = approvals.approve(database, run_id, by="anna", reason="fine")
    assert ended.status == "held"
    assert "not promoted all the same" in ended.reason
    assert "now there is version 2" in ended.reason
    assert one(database, run_id)["next_step"] == "look at `nightgate champion reviews` and decide again"
    champion = versions.champion(database, "reviews")
    assert champion is not None
    assert champion.version == 2
    assert database.frame("SELECT decision FROM approvals")["decision"].tolist() == ["approved"]


def test_a_rejection_holds(database: Database) -> None:
    run_id, version = waiting_run(database)
    ended = approvals.reject(database, run_id, by="anna", reason="a slice got worse")
    assert (ended.status, ended.reason) == ("held", "rejected by anna: a slice got worse")
    assert versions.champion(database, "reviews") is None
    assert f"nightgate promote reviews {version} --reason TEXT" in one(database, run_id)["next_step"]


def test_nobody_in_time_holds(database: Database) -> None:
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
    assert "nobody approved it by" in ended.reason


def test_a_decision_can_be_made_once(database: Database) -> None:
    run_id, _ = waiting_run(database)
    approvals.reject(database, run_id, by="anna", reason="no")
    for decide in (approvals.approve, approvals.reject):
        with pytest.raises(RegistryError, match=r"does not wait for an approval: it is held: rejected by anna: no"):
            decide(database, run_id, by="ben", reason="yes")


def test_of_several_that_wait_one_has_to_be_named(database: Database) -> None:
    (newer, _), (older, _) = waiting_run(database, 3), waiting_run(database, 1)
    with pytest.raises(RegistryError, match="2 candidates of reviews wait for an approval") as refused:
        approvals.find(database, "reviews")
    assert f"version 1 (run {newer}, night 2026-03-04), version 2 (run {older}, night 2026-03-02)" in str(refused.value)
    assert approvals.find(database, "reviews", newer).run_id == newer


def test_a_word_that_comes_too_late_is_told_what_became_of_the_last_that_waited(database: Database) -> None:
    with pytest.raises(RegistryError, match="nothing of reviews waits for an approval\n"):
        approvals.find(database, "reviews")
    first, _ = waiting_run(database)
    approvals.reject(database, first, by="anna", reason="no")
    second, version = waiting_run(database, 1)
    newer = opened(database, day=2)
    approvals.supersede_before(database, newer.run_id, newer.attempt)
    told = rf"version {version}, the last that did \(run {second}\): it is superseded: nobody approved it before the "
    told += rf"night of 2026-03-03 began \(run {newer.run_id}\) \({datetime.now(UTC):%Y-%m-%d} .* UTC\)"
    with pytest.raises(RegistryError, match=told):
        approvals.find(database, "reviews")
    with pytest.raises(RegistryError, match=r"it is held: rejected by anna: no \(20.* UTC\)"):
        approvals.find(database, "reviews", first)


@contextmanager
def slower(database: Database, url: str, run_id: str) -> Iterator[Database]:
    """Somebody else's connection: anna rejects the run between its first look and what that one does next."""
    earlier: list[RunRow] = []

    def has_looked(_: sa.Connection) -> None:
        if not earlier:
            earlier.append(approvals.reject(database, run_id, by="anna", reason="no"))

    with Database.open(database.home, url) as other:
        sa.event.listen(other._engine, "commit", has_looked)
        yield other
    assert earlier


def test_of_two_decisions_at_once_the_later_is_told_of_the_earlier(database: Database, migrated_url: str) -> None:
    run_id, _ = waiting_run(database)
    told = r"does not wait for an approval: it is held: rejected by anna: no"
    with slower(database, migrated_url, run_id) as other, pytest.raises(RegistryError, match=told):
        approvals.reject(other, run_id, by="ben", reason="no, too")


def test_a_decision_that_comes_while_the_overdue_are_held_stands_and_keeps_no_other_from_it(
    database: Database, migrated_url: str
) -> None:
    (decided, _), (overdue, _) = waiting_run(database, 0), waiting_run(database, 1)
    with slower(database, migrated_url, decided) as reconciling:
        held = approvals.hold_overdue(reconciling, datetime.now(UTC) + timedelta(hours=19))
    assert [one.run_id for one in held] == [overdue]
    assert one(database, decided)["reason"] == "rejected by anna: no"


@pytest.mark.parametrize(("by", "reason"), [(" ", "fine"), ("anna", " ")])
def test_a_decision_needs_a_name_and_a_reason(database: Database, by: str, reason: str) -> None:
    run_id, _ = waiting_run(database)
    with pytest.raises(RegistryError, match=r"nobody is named|the reason is blank"):
        approvals.approve(database, run_id, by=by, reason=reason)
    assert one(database, run_id)["status"] == "waiting"


def test_the_next_night_that_goes_to_work_supersedes_one_that_waits(database: Database) -> None:
    run_id, _ = waiting_run(database)
    newer = opened(database, day=1)
    approvals.supersede_before(database, newer.run_id, newer.attempt)
    assert one(database, run_id)["status"] == "superseded"
    assert database.frame("SELECT decision FROM approvals")["decision"].tolist() == ["superseded"]
    with pytest.raises(RegistryError, match="it is superseded"):
        approvals.approve(database, run_id, by="anna", reason="late")


@pytest.mark.parametrize("dialect", [pytest.param("postgresql", marks=pytest.mark.database)], indirect=True)
def test_an_approval_is_not_overwritten_by_a_night_that_goes_to_work_while_it_is_committed(
    database: Database, migrated_url: str
) -> None:
    """On SQLite the one that writes is alone from its BEGIN on."""
    run_id, version = waiting_run(database)
    newer = opened(database, day=1)
    night = threading.Thread(target=approvals.supersede_before, args=(database, newer.run_id, newer.attempt))

    def held_up() -> bool:
        return bool(database.frame("SELECT 1 FROM pg_locks WHERE NOT granted").shape[0])

    def about_to_commit(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("writes") and night.ident is None:
            night.start()
            night_rows.within(5, held_up)

    with Database.open(database.home, migrated_url) as persons:
        sa.event.listen(persons._engine, "commit", about_to_commit)
        approvals.approve(persons, run_id, by="anna", reason="fine")
    night.join()
    champion = versions.champion(database, "reviews")
    assert champion is not None
    assert (one(database, run_id)["status"], champion.version) == ("promoted", version)
    [row] = database.frame("SELECT decision, decided_by FROM approvals").to_dict("records")
    assert row == {"decision": "approved", "decided_by": "anna"}


def test_a_prefect_run_that_is_resumed_after_its_night_was_superseded_trains_nothing(database: Database) -> None:
    run_id, _ = waiting_run(database, prefect_flow_run_id="flow-1")
    newer = opened(database, day=1)
    approvals.supersede_before(database, newer.run_id, newer.attempt)
    lifecycle.finish_run(database, newer.run_id, newer.attempt, "held")
    resumed = opened(database, trigger="backfill", prefect_flow_run_id="flow-1")
    assert (resumed.run_id, resumed.status, resumed.ended) == (run_id, "superseded", True)


@pytest.mark.parametrize(
    "meanwhile", ["a newer night was skipped", "a newer night is at work", "a rehearsal is at work"]
)
def test_a_prefect_run_that_is_resumed_is_handed_out_whatever_the_pipeline_does_meanwhile(
    database: Database, meanwhile: str
) -> None:
    run_id, _ = waiting_run(database, prefect_flow_run_id="flow-1")
    rehearses = meanwhile == "a rehearsal is at work"
    other = opened(database, day=1, owner=Owner.here(), dry_run=rehearses, prefect_flow_run_id="flow-2")
    if meanwhile == "a newer night was skipped":
        lifecycle.finish_run(database, other.run_id, other.attempt, "skipped")
    # Started by force from the form: that asked for a new run then, and not on each resume.
    for force in (False, True):
        resumed = opened(database, prefect_flow_run_id="flow-1", overtaken="a newer night is due", force=force)
        assert (resumed.run_id, resumed.status, resumed.ended) == (run_id, "waiting", True)


def test_a_backfill_of_an_older_night_leaves_one_that_waits(database: Database) -> None:
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
    # What was told of an earlier state does not hide the later one.
    reconciliation.mark_announced(database, waits)
    assert len(reconciliation.unannounced(database)) == 1
    reconciliation.mark_announced(database, promoted)
    assert reconciliation.unannounced(database) == []


def test_a_run_that_is_taken_up_again_is_announced_again_when_it_ends(database: Database) -> None:
    run = opened(database)
    lifecycle.finish_run(database, run.run_id, 1, "failed", reason="no disk", next_step="free some")
    [end] = reconciliation.unannounced(database)
    assert (end.status, end.reason, end.next_step) == ("failed", "no disk", "free some")
    reconciliation.mark_announced(database, end)
    again = opened(database)
    assert reconciliation.unannounced(database) == []
    lifecycle.finish_run(database, again.run_id, again.attempt, "held")
    assert [end.status for end in reconciliation.unannounced(database)] == ["held"]


def test_what_ended_long_ago_is_no_news(database: Database) -> None:
    run = opened(database)
    lifecycle.finish_run(database, run.run_id, 1, "failed")
    assert reconciliation.unannounced(database, datetime.now(UTC) + timedelta(days=8)) == []


def test_an_end_is_news_from_its_end_on_however_long_ago_the_run_began(database: Database) -> None:
    run = opened(database)
    long_ago = {"started_at": datetime.now(UTC) - timedelta(days=8)}
    database.write(lambda session: session.execute(sa.update(Run).values(long_ago)))
    lifecycle.finish_run(database, run.run_id, 1, "failed")
    assert [end.status for end in reconciliation.unannounced(database)] == ["failed"]


def test_what_a_prefect_run_ended_as_is_what_its_newest_row_says(database: Database) -> None:
    """With another configuration, or by force, a retry opens a row of its own."""
    first = opened(database, prefect_flow_run_id="p")
    lifecycle.finish_run(database, first.run_id, 1, "failed", reason="too few rows")
    assert [(end.run_id, end.status) for end in reconciliation.ended_lately(database)] == [(first.run_id, "failed")]
    again = opened(database, prefect_flow_run_id="p", force=True)
    assert again.run_id != first.run_id
    assert reconciliation.ended_lately(database) == []
    lifecycle.finish_run(database, again.run_id, 1, "held")
    assert [(end.run_id, end.status) for end in reconciliation.ended_lately(database)] == [(again.run_id, "held")]


def test_dead_runs_of_all_pipelines_are_settled_at_once(database: Database) -> None:
    dead = [night_rows.open_run(database, night_rows.pipeline(name), night_rows.night()) for name in ("one", "two")]
    living = night_rows.open_run(database, night_rows.pipeline("three"), night_rows.night(), owner=Owner.here())
    settled = reconciliation.settle_running(database)
    assert {ended.run_id for ended in settled} == {run.run_id for run in dead}
    assert one(database, living.run_id)["status"] == "running"
