"""For which reasons a night trains: properties of the decision, the facts from SQL, and nights over growing data."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from nightgate.config.checks import NONE_ALLOWED
from nightgate.config.schedule import Schedule
from nightgate.database.connection import database_url
from nightgate.database.schema import Run
from nightgate.database.transactions import Database, upgrade
from nightgate.home import Home
from nightgate.night import steps
from nightgate.night.reasons import ChangedRows, Facts, Reasons, answer, decide, gather
from nightgate.night.run import NightRun, open_night
from nightgate.night.values import Evaluated
from nightgate.registry import freezes
from nightgate.runs import evaluations, lifecycle, records
from nightgate.runs.evaluations import Evaluation
from nightgate.runs.heartbeat import Heartbeat
from nightgate.runs.run_row import RunRow
from nightgate.schedule import scheduled_night
from tests.support import night_rows
from tests.support.night_rows import opened
from tests.support.tiny import tiny_pipeline, write_tiny_reviews

# --- the decision ---

QUICK = settings(max_examples=200, derandomize=True)
SOME = Facts(trained="the night of 2026-03-01")
"""A night of the schedule after one that trained, with nothing new."""


def texts(*values: str) -> st.SearchStrategy[str]:
    return st.sampled_from(("", *values))


ages = st.none() | st.integers(0, 99).map(lambda hours: timedelta(hours=6 * hours))
facts = st.builds(
    Facts,
    asked=texts("forced"),
    trained=texts("the night of 2026-03-01"),
    broken=texts("the night of 2026-03-02"),
    changes=st.sampled_from(((), ("torch was 2.9 and is 2.10",))),
    rows=st.none() | st.builds(ChangedRows, *[st.integers(0, 3) | st.integers(0, 900)] * 3),
    quiet=st.integers(0, 8),
    champion_age=ages,
    alarms=st.none() | st.frozensets(st.sampled_from(("drifted", "champion_dropped", "below_min_f1"))),
    alarm=texts("drifted"),
)
schedules = st.builds(
    Schedule,
    min_new_rows=st.integers(1, 3) | st.integers(1, 1_000),
    max_champion_age=texts("1d", "9d", "2w"),
    train_on=st.lists(st.sampled_from(("drift", "champion_dropped")), unique=True).map(tuple),
    max_skips=st.integers(0, 8),
)


def weighed(night: Facts) -> Facts:
    """The night where neither a person nor a change decides."""
    return replace(night, asked="", trained=SOME.trained, broken="", changes=(), rows=night.rows or ChangedRows(1))


@QUICK
@given(facts, schedules)
def test_a_night_that_is_asked_for_the_first_and_one_after_a_change_train_whatever_the_thresholds(
    night: Facts, schedule: Schedule
) -> None:
    must = night.asked or not night.trained or night.broken or night.changes or night.rows is None
    assert not must or decide(night, schedule).train


@QUICK
@given(facts)
def test_by_default_a_night_trains_on_any_change_and_after_max_skips_without_one(night: Facts) -> None:
    night = replace(weighed(night), alarm="")
    assert night.rows is not None
    assert decide(night, Schedule()).train == (night.rows.total > 0 or night.quiet >= Schedule().max_skips)


@QUICK
@given(facts, schedules)
def test_a_reason_that_holds_is_enough_and_without_any_the_night_is_skipped(night: Facts, schedule: Schedule) -> None:
    night = weighed(night)
    assert night.rows is not None
    alarms = night.alarms or frozenset()
    limit = {"": timedelta.max, "1d": timedelta(days=1), "9d": timedelta(days=9), "2w": timedelta(days=14)}
    reasons = (
        night.rows.total >= schedule.min_new_rows,
        "drift" in schedule.train_on and "drifted" in alarms,
        "champion_dropped" in schedule.train_on and bool(alarms & {"champion_dropped", "below_min_f1"}),
        night.champion_age is not None and night.champion_age >= limit[schedule.max_champion_age],
        bool(night.alarm),
    )
    decided = decide(night, schedule)
    if night.rows.total:
        assert decided.train == any(reasons)
        assert decided.undecided == (not decided.train and night.alarms is None and bool(schedule.train_on))
    else:
        assert decided.train == (not night.alarm and night.quiet >= schedule.max_skips)
        assert not decided.undecided
    asked = 1 + len(schedule.train_on) + bool(schedule.max_champion_age and night.champion_age is not None)
    assert len(decided.facts) == asked + bool(night.alarm) + (decided.train and not night.rows.total)


@QUICK
@given(facts, schedules, st.integers(0, 900), st.integers(0, 900))
def test_more_rows_an_older_champion_and_lower_thresholds_never_keep_a_night_from_training(
    night: Facts, schedule: Schedule, more: int, less: int
) -> None:
    night = weighed(night)
    assert night.rows is not None
    if night.rows.total and decide(night, schedule).train:
        grown = replace(night, rows=replace(night.rows, new=night.rows.new + more))
        older = replace(night, champion_age=(night.champion_age or timedelta()) + timedelta(hours=more))
        lower = schedule.model_copy(update={"min_new_rows": max(1, schedule.min_new_rows - less)})
        assert decide(grown, schedule).train
        assert decide(older, schedule).train
        assert decide(night, lower).train


def test_what_holds_and_what_does_not_is_one_line() -> None:
    schedule = Schedule(min_new_rows=500, max_champion_age="30d", train_on=("drift",))
    night = replace(SOME, rows=ChangedRows(212), champion_age=timedelta(days=9, hours=3))
    assert str(decide(night, schedule)) == "212 new rows (trains at 500), no drift, champion 9 days old"
    changed = replace(night, rows=ChangedRows(1, 1_500, 2), alarms=frozenset({"drifted"}))
    trains = "1 new row, 1,500 corrected, 2 removed (trains at 500), drift, champion 9 days old"
    assert str(decide(changed, schedule)) == trains


def test_an_alarm_that_has_had_its_training_is_no_reason_for_a_run_that_it_started() -> None:
    schedule = Schedule(train_on=("champion_dropped",))
    dropped = frozenset({"champion_dropped"})
    night = replace(SOME, rows=ChangedRows(90), alarms=dropped, alarm="champion_dropped", answer=SOME.trained)
    assert not decide(night, schedule).train
    for other in (
        replace(night, changes=("torch was 2.9",)),
        replace(night, broken="a run"),
        replace(night, answer=""),
    ):
        assert decide(other, schedule).train
    assert decide(replace(night, alarm="", answer=""), schedule).train, "a night of the schedule trains on"


# --- the facts ---


def with_snapshot(database: Database, day: int, rows: int = 1, torch: str = "2.9", **options: Any) -> RunRow:
    run = opened(database, day=day, **options)
    records.record_snapshot(database, run.run_id, run.attempt, night_rows.refreshed(database, f"s-{rows}"))
    records.record_reasons(database, run.run_id, run.attempt, {"snapshot": f"s-{rows}", "torch": torch}, "-")
    return run


def ended_night(database: Database, day: int, status: str, **options: Any) -> None:
    run = with_snapshot(database, day, **options)
    lifecycle.finish_run(database, run.run_id, run.attempt, status)


def decided(database: Database, day: int, rows: int = 1, torch: str = "2.9", **schedule: Any) -> Reasons:
    """What a night of the schedule comes to over these rows."""
    row = opened(database, day=day)
    run = NightRun(
        pipeline=night_rows.pipeline(),
        night=night_rows.night(day),
        home=database.home,
        run_id=row.run_id,
        attempt=row.attempt,
        dry_run=False,
        force=False,
        alarm="",
        data_until=row.data_until,
        snapshot_path=None,
        ended=None,
        allowed=NONE_ALLOWED,
        db=database,
        heartbeat=Heartbeat(database, row.run_id, row.attempt),
        on_stall=lambda *_: None,
    )
    snapshot = night_rows.refreshed(database, f"s-{rows}").snapshot
    return decide(gather(run, snapshot, {"snapshot": snapshot.id, "torch": torch}), Schedule(**schedule))


@pytest.mark.database
@pytest.mark.parametrize(
    ("before", "tonight", "trains", "reason"),
    [
        ([], {}, True, "no night has trained yet"),
        (["skipped", "failed"], {}, True, "no night has trained yet"),
        (["held"], {}, False, "nothing is new since the night of 2026-03-01"),
        (["held"], {"rows": 2}, True, "the rows of the night of 2026-03-01"),
        (["held"], {"torch": "2.10"}, True, "torch was 2.9 and is 2.10"),
        (["held", "failed"], {}, True, "the night of 2026-03-02"),
        (["held", "cancelled", "skipped"], {}, True, "the night of 2026-03-02"),
        (["held", "superseded"], {}, False, "nothing is new since the night of 2026-03-01"),
        (["held", "skipped", "skipped"], {"max_skips": 3}, False, "nothing is new since the night of 2026-03-01"),
        (["held", "skipped", "skipped"], {"max_skips": 2}, True, "max_skips is 2"),
        (["held"], {"max_skips": 0}, True, "max_skips is 0"),
    ],
)
def test_a_night_is_skipped_only_if_it_would_repeat_the_last_training_and_not_too_often(
    database: Database, before: list[str], tonight: Any, trains: bool, reason: str
) -> None:
    for day, status in enumerate(before):
        ended_night(database, day, status)
    found = decided(database, len(before), **tonight)
    assert (found.train, reason in str(found)) == (trains, True)


@pytest.mark.database
def test_a_training_counts_by_its_data_and_a_dry_run_does_not(database: Database) -> None:
    ended_night(database, 1, "held")
    ended_night(database, 2, "held", rows=2, dry_run=True)
    ended_night(database, 0, "held", rows=3, trigger="backfill")
    assert not decided(database, 3).train


@pytest.mark.database
def test_a_training_of_a_night_to_come_by_a_wrong_clock_does_not_count_until_then(database: Database) -> None:
    ended_night(database, 365 * 30, "held", rows=2)
    ended_night(database, 0, "held")
    assert str(decided(database, 1)).startswith("nothing is new since the night of 2026-03-01")


@pytest.mark.database
def test_a_night_that_failed_before_it_was_decided_whether_it_trains_is_no_reason(database: Database) -> None:
    ended_night(database, 0, "held")
    unread = opened(database, day=1)
    lifecycle.finish_run(database, unread.run_id, unread.attempt, "failed", error_type="source_unavailable")
    assert not decided(database, 2).train


@pytest.mark.database
def test_a_night_after_one_of_an_earlier_release_is_run(database: Database) -> None:
    ended_night(database, 0, "held")
    database.write(lambda session: session.execute(sa.update(Run).values(inputs=sa.null())))
    assert decided(database, 1).train


@pytest.mark.database
def test_a_champion_that_was_moved_by_hand_since_is_a_reason(database: Database) -> None:
    version = night_rows.held_version(database, 0)
    ended_night(database, 1, "held")
    night_rows.promote(database, version)
    assert decided(database, 2) == Reasons(True, ("the champion was changed", "the anchor was moved"))


@pytest.mark.database
def test_a_freeze_that_has_ended_is_a_reason(database: Database) -> None:
    ended_night(database, 0, "held")
    freezes.freeze(database, "reviews", by="anna", reason="a bad import")
    ended_night(database, 1, "skipped")
    freezes.unfreeze(database, "reviews", by="anna", reason="it was corrected")
    assert decided(database, 2) == Reasons(True, ("a freeze has ended",))


def alarmed(database: Database, day: int, alarm: str = "champion_dropped", version: int = 1) -> None:
    until = night_rows.night(day).data_until
    found = Evaluation("reviews", f"s-{day}", version, "champion", datetime.now(UTC), until, until, 400, "-")
    evaluations.record(database, replace(found, alarms=(alarm,)), {}, [], "weighted")  # type: ignore[arg-type]


@pytest.mark.database
def test_one_run_that_trains_answers_an_alarm_of_a_champion_and_one_that_broke_does_not(database: Database) -> None:
    def answered(alarm: str = "champion_dropped") -> str:
        return answer(database, night_rows.champion(database), alarm)

    run, version = night_rows.judged_version(database)
    night_rows.promote_itself(database, run, version)
    alarmed(database, 2, "below_min_f1")
    for day, status in ((1, "held"), (3, "failed"), (4, "skipped")):
        ended_night(database, day, status)
        assert answered() == ""
    at_work = opened(database, day=5)
    assert at_work.run_id in answered()
    assert answer(database, night_rows.champion(database), "champion_dropped", besides=at_work.run_id) == ""
    lifecycle.finish_run(database, at_work.run_id, at_work.attempt, "held")
    alarmed(database, 6)
    alarmed(database, 6, "drifted")
    assert (at_work.run_id in answered(), answered("drifted")) == (True, "")
    better, second = night_rows.judged_version(database, 7)
    night_rows.promote_itself(database, better, second, expected=version)
    alarmed(database, 8, version=second)
    assert answered() == "", "of another champion"


# --- nights over growing data ---


class Growing:
    """Nights of a pipeline whose rows change from one to the next; without the training itself."""

    def __init__(self, folder: Path, **schedule: Any) -> None:
        self.file, self.moment = folder / "reviews.csv", datetime(2026, 1, 4, 3, 15, tzinfo=UTC)
        pipeline = tiny_pipeline(folder, rows=60, epochs=1)
        self.pipeline = pipeline.model_copy(update={"schedule": Schedule(**schedule)})
        self.rows = 60

    def grow(self, new: int) -> Growing:
        self.rows += new
        write_tiny_reviews(self.file, rows=self.rows)
        return self

    def night(self, *, fails: bool = False, alarm: str = "") -> str:
        """The status of the next night and its reasons."""
        self.moment += timedelta(days=1)
        night = scheduled_night(self.pipeline.schedule, self.moment)
        if alarm:
            night = replace(night, trigger="manual", scheduled_for=None)
        with open_night(self.pipeline, night, alarm=alarm) as run:
            if steps.decide(run, steps.refresh(run), Evaluated(())) is None:
                # As if it had trained: its candidate is held, or it fails.
                run.finish("failed" if fails else "held", "tried", error_type="crashed" if fails else None)
            row = night_rows.one(run.db, run.run_id)
        return f"{row['status']}: {row['reasons']}"


@pytest.fixture
def growing(home: Home, tmp_path: Path) -> Growing:
    upgrade(database_url(home))
    growing = Growing(tmp_path, min_new_rows=500, max_champion_age="2d")
    assert growing.night() == "held: no night has trained yet"
    return growing


@pytest.mark.process
def test_rows_of_nights_that_were_skipped_or_failed_add_up_and_a_repeated_alarm_trains_once(growing: Growing) -> None:
    assert growing.grow(460).night() == "skipped: 460 new rows (trains at 500)"
    assert growing.grow(60).night(fails=True) == "failed: 520 new rows (trains at 500)"
    assert "did not complete" in growing.night()
    head, first, *rest = growing.file.read_text().splitlines()
    growing.file.write_text("\n".join([head, first[:-1] + ("1" if first[-1] != "1" else "2"), *rest[:-2], ""]))
    assert growing.night() == "skipped: 0 new rows, 1 corrected, 2 removed (trains at 500)"
    by_alarm = growing.night(alarm="drifted")
    assert by_alarm == "held: 0 new rows, 1 corrected, 2 removed (trains at 500), started by alarm drifted"
    assert growing.night(alarm="drifted").startswith("superseded: nothing is new since the night of")


@pytest.mark.slow
def test_of_ten_nights_with_60_rows_each_the_ninth_has_500(growing: Growing) -> None:
    nights = [growing.grow(60).night() for _ in range(10)]
    skipped = [f"skipped: {60 * night} new rows (trains at 500)" for night in range(1, 9)]
    assert nights == [*skipped, "held: 540 new rows (trains at 500)", "skipped: 60 new rows (trains at 500)"]
