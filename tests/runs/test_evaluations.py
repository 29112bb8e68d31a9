"""Evaluations of champions in SQL: two warnings in a row are drift, alarms wait for their events. On both engines."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from nightgate.config.checks import NONE_ALLOWED
from nightgate.database.refresh_schema import Refresh
from nightgate.database.transactions import Database
from nightgate.frames.nights import read_history
from nightgate.metrics.drift import DriftStatistic
from nightgate.operations.status import status
from nightgate.runs import evaluations, lifecycle, records
from nightgate.runs.evaluations import Evaluation
from tests.support import night_rows

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
POLICY: dict[str, Any] = {"average": "weighted", "confidence": 0.95, "min_f1": "majority"}


def statistic(value: float, name: str = "label_shares", slice_name: str = "") -> tuple[str, DriftStatistic]:
    reason = f"{name} {slice_name} at {value}"
    return "champion", DriftStatistic(name, "total_variation", value, 0.1, 500, 500, reason, slice_name)


def measured(database: Database, day: int, *found: tuple[str, DriftStatistic]) -> datetime:
    """A night with this drift; the instant of its data."""
    run = night_rows.opened(database, day, trigger="backfill")
    records.record_snapshot(database, run.run_id, run.attempt, night_rows.refreshed(database), drift=found)
    lifecycle.finish_run(database, run.run_id, run.attempt, "held")
    return run.data_until


def test_the_same_statistic_twice_in_a_row_is_drift(database: Database) -> None:
    def drift(until: datetime, since: datetime = LONG_AGO) -> list[str]:
        return evaluations.drifted(database, "reviews", since, until)

    last_week = ("last_week", statistic(0.9)[1])
    first = measured(database, 0, statistic(0.2), statistic(0.3, "slice_shares", "product"), last_week)
    assert drift(first) == [], "one warning may be chance"
    second = measured(database, 1, statistic(0.05), statistic(0.3, "slice_shares", "brand"), last_week)
    assert drift(second) == [], "none of them twice"
    third = measured(database, 2, statistic(0.2), statistic(0.4, "slice_shares", "brand"))
    assert drift(third) == ["slice_shares brand at 0.4"]
    assert drift(second) == [], "later ones don't count"
    assert drift(third, since=datetime.now(UTC)) == [], "they were against the rows of another champion"

    # A refresh on its own counts as a night does.
    alone = third + timedelta(hours=5)
    refresh = Refresh(
        refresh_id="reviews-refresh-1",
        pipeline="reviews",
        night=alone.date(),
        status="completed",
        data_until=alone,
        started_at=datetime.now(UTC),
    )
    found = night_rows.refreshed(database, "s-00000000000000ff")
    records.record_refresh(database, refresh, found, NONE_ALLOWED, [statistic(0.5)])
    assert drift(alone) == ["label_shares  at 0.5"]


def evaluation(version: int, day: int, **facts: Any) -> Evaluation:
    until = night_rows.night(day).data_until
    found = Evaluation("reviews", f"s-{day}", version, "champion", datetime.now(UTC), until, until, 240, "as it is")
    return replace(found, **({"f1": 0.5, "f1_ci_low": 0.4, "f1_ci_high": 0.6} | facts))


def test_the_newest_evaluation_of_the_champion_is_in_the_status_and_its_alarm_waits_for_its_event(
    database: Database,
) -> None:
    version, other = night_rows.held_version(database), night_rows.held_version(database, 1)
    night_rows.promote(database, version)
    for found in (evaluation(version, 1), evaluation(version, 2, alarms=("champion_dropped", "drifted"))):
        evaluations.record(database, found, POLICY, (), "weighted")
    evaluations.record(database, evaluation(other, 3), POLICY, (), "weighted")

    frame = status(database)
    [row] = frame[frame["section"] == "champion"].to_dict("records")
    assert (row["model_version"], row["rows"], row["f1"]) == (version, 240, 0.5)
    assert (row["alarm"], row["next_step"]) == ("champion_dropped, drifted", "nightgate run reviews")
    assert row["until"] == pd.Timestamp(night_rows.night(2).data_until)

    night = night_rows.opened(database, 4, trigger="backfill")
    records.record_snapshot(database, night.run_id, night.attempt, night_rows.refreshed(database, "s-2"))
    alarms = read_history(database, "reviews").set_index("run_id")["alarm"]
    assert alarms.dropna().to_dict() == {night.run_id: "champion_dropped, drifted"}

    [waiting] = evaluations.unannounced(database)
    assert (waiting.snapshot_id, waiting.alarms) == ("s-2", ("champion_dropped", "drifted"))
    evaluations.mark_announced(database, replace(waiting, evaluated_at=LONG_AGO))
    assert evaluations.unannounced(database) == [waiting], "it was evaluated again meanwhile"
    assert evaluations.unannounced(database, datetime.now(UTC) + timedelta(days=8)) == []
    evaluations.mark_announced(database, waiting)
    assert evaluations.unannounced(database) == []

    # A champion that cannot be scored is evaluated every time, and its alarms are published once.
    for alarms, news in ((("drifted",), []), (("drifted", "below_min_f1"), ["below_min_f1"])):
        again = evaluation(version, 2, alarms=alarms, f1=None)
        evaluations.record(database, again, POLICY, (), "weighted")
        assert [one.alarms[-1] for one in evaluations.unannounced(database)] == news
    evaluations.record(database, waiting, POLICY, (), "weighted")

    key = ("reviews", "s-2", version, "champion")
    assert evaluations.find(database, key, waiting.rows_from, POLICY) == waiting
    assert evaluations.find(database, key, waiting.rows_from, POLICY | {"min_f1": 0.6}) is None
    assert evaluations.find(database, key, None, POLICY) is None


def test_a_night_has_the_score_of_the_champion(database: Database) -> None:
    run = night_rows.opened(database)
    records.record_reasons(database, run.run_id, run.attempt, {}, "-", evaluation(1, 1))
    row = night_rows.one(database, run.run_id)
    assert (row["champion_fresh_f1"], row["champion_fresh_rows"]) == (0.5, 240)
    assert (row["fresh_ci_low"], row["fresh_ci_high"]) == (0.4, 0.6)


def test_an_alarm_is_news_once_however_often_it_is_raised_and_again_after_a_week_without_it(database: Database) -> None:
    version = night_rows.held_version(database)
    began = datetime.now(UTC)
    raised = {
        0: ("champion_dropped",),
        1: ("champion_dropped",),
        2: ("champion_dropped", "drifted"),
        3: (),
        4: ("drifted",),
        30: ("drifted",),  # nothing is known of the days between
        31: (),
        45: ("champion_dropped", "drifted"),
    }
    news = {}
    for day, alarms in raised.items():
        found = evaluation(version, day, alarms=alarms, evaluated_at=began + timedelta(days=day))
        evaluations.record(database, found, POLICY, (), "weighted")
        news[day] = set(evaluations.news(database, found))
        if day != 0:  # the server was away on the first one
            evaluations.mark_announced(database, found)
    assert {day: alarms for day, alarms in news.items() if alarms} == {
        0: {"champion_dropped"},
        1: {"champion_dropped"},
        2: {"drifted"},
        45: {"champion_dropped", "drifted"},
    }
