"""Which night is worked on: duplicates, late runs, missed ones."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest

from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.operations import reconciliation
from nightgate.runs import claim, heartbeat, lifecycle
from nightgate.runs.liveness import Owner
from tests.support import night_rows
from tests.support.night_rows import one, opened


def statuses(database: Database) -> list[tuple[str, str]]:
    rows = database.frame("SELECT night, status FROM nightly_runs ORDER BY night, started_at")
    return [(str(night)[-2:], status) for night, status in zip(rows["night"], rows["status"], strict=True)]


# --- claims ---


def test_a_living_process_is_not_given_up(database: Database) -> None:
    first = opened(database, owner=Owner.here())
    second = opened(database, day=1)
    assert (second.status, one(database, first.run_id)["status"]) == ("superseded", "running")


def test_a_process_elsewhere_lives_as_long_as_its_heart_beats(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = replace(Owner.here(), host="worker-7")
    first = opened(database, owner=elsewhere)
    assert opened(database).status == "superseded"
    monkeypatch.setattr("nightgate.runs.liveness.LEASE", timedelta(seconds=-1))
    again = opened(database)
    assert (again.run_id, again.attempt) == (first.run_id, 2)


def test_a_heartbeat_is_written_down_and_learns_that_the_run_was_lost(database: Database) -> None:
    first = opened(database, prefect_flow_run_id="flow-1", owner=Owner.here())

    def beat() -> Any:
        return database.frame("SELECT heartbeat_at FROM attempt").iloc[0, 0]

    claimed = beat()
    with heartbeat.Heartbeat(database, first.run_id, 1, seconds=0.02) as beats:
        night_rows.within(5, lambda: beat() > claimed)
        beats.check()
        opened(database, prefect_flow_run_id="flow-1", owner=Owner.here())

        def lost() -> str:
            try:
                beats.check()
            except RegistryError as error:
                return error.reason
            return ""

        assert "attempt 2 has taken over" in night_rows.within(5, lost)


def test_a_retry_of_the_same_prefect_run_takes_over_from_the_process_that_prefect_gave_up(database: Database) -> None:
    first = opened(database, prefect_flow_run_id="flow-1", owner=Owner.here())
    again = opened(database, prefect_flow_run_id="flow-1", owner=Owner.here())
    assert (again.run_id, again.attempt, again.ended) == (first.run_id, 2, False)
    with pytest.raises(RegistryError, match="attempt 2 has taken over"):
        lifecycle.finish_run(database, first.run_id, 1, "held")


def test_a_second_prefect_run_of_a_night_that_has_ended_is_superseded(database: Database) -> None:
    first = opened(database, prefect_flow_run_id="flow-1")
    lifecycle.finish_run(database, first.run_id, 1, "held", reason="not better")
    second = opened(database, prefect_flow_run_id="flow-2")
    assert (second.status, second.ended) == ("superseded", True)
    assert f"run {first.run_id} ended held" in second.reason
    # The retry of the one that ended is handed what it came to.
    again = opened(database, prefect_flow_run_id="flow-1")
    assert (again.run_id, again.status, again.ended) == (first.run_id, "held", True)


def test_a_late_run_that_a_newer_night_has_overtaken_is_superseded_and_a_backfill_is_not(database: Database) -> None:
    newer = opened(database, day=2)
    lifecycle.finish_run(database, newer.run_id, 1, "held")
    late = opened(database, day=1)
    assert (late.status, late.ended) == ("superseded", True)
    assert "a newer night, 2026-03-03, has overtaken it" in late.reason
    assert opened(database, day=1, trigger="backfill").status == "running"


def test_a_night_that_ran_while_the_clock_was_ahead_keeps_no_later_night_from_running(database: Database) -> None:
    ahead = opened(database, day=365 * 30)
    lifecycle.finish_run(database, ahead.run_id, 1, "held")
    assert opened(database, day=1).status == "running"


def test_after_a_week_without_a_worker_one_night_is_worked_on(database: Database) -> None:
    """Prefect starts the late runs oldest first; each but the newest is overtaken."""
    before = opened(database)
    lifecycle.finish_run(database, before.run_id, 1, "held")
    for day in range(1, 8):
        run = opened(database, day=day, overtaken="a newer night is due" if day < 7 else "")
        if not run.ended:
            lifecycle.finish_run(database, run.run_id, 1, "held")
    assert [status for _, status in statuses(database)] == ["held", *["superseded"] * 6, "held"]


def test_the_night_of_a_prefect_run_is_the_one_that_it_began_with(database: Database) -> None:
    first = opened(database, prefect_flow_run_id="flow-1")
    lifecycle.finish_run(database, first.run_id, 1, "failed")
    opened(database, prefect_flow_run_id="flow-1")
    assert claim.night_of(database, "flow-1") == night_rows.night()
    assert claim.night_of(database, "flow-2") is None


def manual_run(database: Database, night: str) -> str:
    return claim.active_manual_run(database, "reviews", date.fromisoformat(night))


def test_a_scheduled_night_waits_for_an_old_night_or_a_rehearsal_that_a_person_has_started(database: Database) -> None:
    here = Owner.here()
    assert manual_run(database, "2026-03-03") == ""
    backfill = opened(database, day=0, trigger="backfill", owner=here)
    assert manual_run(database, "2026-03-03") == f"run {backfill.run_id} (started manually, night 2026-03-01)"
    assert manual_run(database, "2026-03-01") == "", "it is that very night"
    lifecycle.finish_run(database, backfill.run_id, 1, "held")
    rehearsal = opened(database, day=2, owner=here, dry_run=True)
    assert manual_run(database, "2026-03-03") == f"run {rehearsal.run_id} (a dry run, night 2026-03-03)"
    lifecycle.finish_run(database, rehearsal.run_id, 1, "held")
    opened(database, day=1, owner=here)
    assert manual_run(database, "2026-03-03") == "", "of scheduled nights one steps back"


def test_a_scheduled_night_does_not_wait_for_a_process_that_is_dead(database: Database) -> None:
    dead = opened(database, trigger="backfill")
    assert manual_run(database, "2026-03-03") == ""
    assert one(database, dead.run_id)["status"] == "failed"


# --- missed nights ---


def missed(database: Database, day: int, **options: Any) -> list[str]:
    until = night_rows.night(day).data_until
    return [str(one.night) for one in reconciliation.record_missed(database, night_rows.pipeline(), until, **options)]


def test_nights_between_two_runs_of_the_schedule_are_written_down_as_missed_once(database: Database) -> None:
    opened(database, day=0)
    assert missed(database, 4) == ["2026-03-02", "2026-03-03", "2026-03-04"]
    assert missed(database, 4) == []
    assert missed(database, 5) == ["2026-03-05"]
    assert statuses(database)[1] == ("02", "missed")
    row = database.frame("SELECT * FROM nights WHERE status = 'missed'").iloc[0]
    assert (row["reason"], row["attempts"]) == ("due at 2026-03-02 03:15 UTC, and no run started", 0)
    assert "nightgate run reviews --night 2026-03-02" in row["next_step"]


def test_a_pipeline_that_is_only_run_by_hand_misses_nothing(database: Database) -> None:
    opened(database, trigger="backfill")
    assert missed(database, 4) == []


def test_a_night_that_the_scheduler_has_yet_to_start_is_not_missed(database: Database) -> None:
    opened(database)
    still = frozenset({night_rows.night(1).data_until})
    assert missed(database, 3, still_due=still) == ["2026-03-03"]


def test_a_missed_night_can_be_run_after_all(database: Database) -> None:
    opened(database)
    missed(database, 2)
    run = opened(database, day=1, trigger="backfill")
    assert (run.attempt, run.ended) == (1, False)
    assert statuses(database)[-1] == ("02", "running")
    [counting] = database.frame("SELECT status FROM nights WHERE night = '2026-03-02'")["status"]
    assert counting == "running"
