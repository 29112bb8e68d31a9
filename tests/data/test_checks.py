"""The data checks as pure functions: limits, equality with them, counts that are too small, and what is named."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nightgate.config.checks import Allowed, ColumnRules, DataChecks
from nightgate.data.checks import CheckResult, require_passed, run_checks
from nightgate.data.deltas import DELETED, TAKEN
from nightgate.data.refresh_counts import NIGHTS_COMPARED, PartCounts, Statistics, remember, vanished_rows
from nightgate.errors import ConfigurationError, DataCheckError, InternalError
from nightgate.sources.column_rules import check_columns

FIRST = date(2026, 3, 1)
SHARES = {"validation": 0.1, "test": 0.1}


def night(day: int, **changes: Any) -> Statistics:
    """A usual night: 500 rows come to 10,000."""
    values: dict[str, Any] = {
        "night": FIRST + timedelta(days=day),
        "rows_total": 10_000,
        "rows_new": 500,
        "rows_read": 500,
        "rows_quarantined": 5,
        "labels": {"bad": 200, "good": 300},
        "splits": {"train": 8000, "validation": 1000, "test": 1000},
        "commonest": 10,
    }
    return Statistics(**(values | changes))


WEEK = tuple(night(day, is_first=day == 0) for day in range(8))


def checked(tonight: Statistics, recent: Any = WEEK, **options: Any) -> dict[str, CheckResult]:
    parts = options.pop("parts", ())
    allowed = options.pop("allowed", frozenset())
    settings = options.pop("settings", DataChecks())
    return {one.name: one for one in run_checks(tonight, recent, parts, settings, SHARES, allowed)}


def failed(tonight: Statistics, recent: Any = WEEK, **options: Any) -> set[str]:
    return {name for name, one in checked(tonight, recent, **options).items() if one.outcome == "failed"}


def test_a_usual_night_passes_every_check() -> None:
    found = checked(night(8))
    assert {one.outcome for name, one in found.items() if name != "missing"} == {"passed"}
    assert found["missing"].outcome == "not_run"


def test_a_first_night_is_checked_for_what_needs_no_other_night() -> None:
    found = checked(night(0, rows_new=10_000, is_first=True), ())
    ran = {name for name, one in found.items() if one.outcome != "not_run"}
    assert ran == {"quarantined", "splits", "repeated_text"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rows_total": 9_000}, set()),
        ({"rows_total": 8_999}, {"rows"}),
        ({"rows_new": 100}, set()),
        ({"rows_new": 99}, {"new_rows"}),
        ({"rows_new": 0}, set()),
        ({"rows_new": 0, "rows_read": 0}, {"new_rows"}),
        ({"rows_new": 2_500}, set()),
        ({"rows_new": 2_501}, {"new_rows"}),
        ({"rows_quarantined": 25}, set()),
        ({"rows_quarantined": 26}, {"quarantined"}),
        ({"labels": {"bad": 325, "good": 175}}, set()),
        ({"labels": {"bad": 326, "good": 174}}, {"labels"}),
        ({"labels": {"good": 500}}, {"labels"}),
        ({"labels": {"bad": 200, "excellent": 300}}, {"labels"}),
        ({"splits": {"train": 7000, "validation": 1000, "test": 2000}}, set()),
        ({"splits": {"train": 6999, "validation": 1000, "test": 2001}}, {"splits"}),
        ({"commonest": 125}, set()),
        ({"commonest": 126}, {"repeated_text"}),
    ],
    ids=str,
)
def test_a_check_fails_beyond_its_limit_and_not_at_it(changes: dict[str, Any], expected: set[str]) -> None:
    assert failed(night(8, **changes)) == expected


def test_small_counts_fail_nothing() -> None:
    before = tuple(night(day, rows_total=40, rows_new=10, labels={"bad": 5, "good": 5}) for day in range(8))
    tonight = night(8, rows_total=25, rows_new=90, rows_read=19, rows_quarantined=19, labels={"good": 90})
    assert failed(replace(tonight, commonest=19, splits={"test": 25}), before) == set()


def test_few_labels_are_compared_from_fewer_rows_than_many() -> None:
    many = {f"label {number}": 4 for number in range(50)}
    before = tuple(night(day, labels=many) for day in range(7))
    assert checked(night(8, labels={"label 0": 200}), before)["labels"].outcome == "not_run"
    assert failed(night(8, labels={"label 0": 1000}), before) == {"labels"}


def test_a_feed_that_rests_at_the_weekend_is_not_stopped() -> None:
    recent: tuple[Statistics, ...] = ()
    for day in range(60):
        count = 0 if (FIRST + timedelta(days=day)).weekday() > 4 else 500
        tonight = night(day, rows_new=count, labels={"bad": count}, is_first=day == 0)
        assert "new_rows" not in failed(tonight, recent), tonight.night
        recent = remember(recent, tonight)
    assert len(recent) == NIGHTS_COMPARED
    # Where nothing was to be read, as in files, its nights are not remembered.
    workdays = [night(day) for day in range(62) if (FIRST + timedelta(days=day)).weekday() < 5]
    assert failed(night(62, rows_new=0, rows_read=0, labels={}), workdays) == set()


def test_a_launch_that_decays_thirtyfold_is_not_stopped() -> None:
    recent: tuple[Statistics, ...] = ()
    for day in range(40):
        count = max(200, round(6000 * 0.85**day))
        tonight = night(day, rows_new=count, labels={"bad": count}, is_first=day == 0)
        assert failed(tonight, recent) == set(), tonight.night
        recent = remember(recent, tonight)


def test_a_backlog_of_days_without_a_night_may_be_as_much_larger() -> None:
    assert failed(night(7 + 4, rows_new=9_000)) == set()
    assert failed(night(7 + 3, rows_new=9_000)) == {"new_rows"}


def test_a_second_refresh_of_a_date_is_no_night_of_its_own() -> None:
    again = night(7, rows_new=0, labels={})
    assert failed(again) == set()
    kept = remember(WEEK, again)
    assert [one.night.day for one in kept] == [2, 3, 4, 5, 6, 7, 8]
    assert kept[-1].rows_new == 500
    assert Statistics.from_json(kept[-1].to_json()) == kept[-1]


def test_a_night_that_follows_a_manual_run_within_hours_may_bring_few_rows() -> None:
    def since(hours: int) -> set[str]:
        last = replace(WEEK[-1], until="2026-03-08T23:15:00+00:00")
        until = datetime(2026, 3, 8, 23, 15, tzinfo=UTC) + timedelta(hours=hours)
        return failed(night(8, rows_new=60, until=until.isoformat()), (*WEEK[:-1], last))

    assert since(4) == set()
    assert since(24) == {"new_rows"}


def test_nights_of_another_source_are_not_compared() -> None:
    broken = night(8, rows_total=100, rows_new=50_000, labels={"good": 500}, source="another")
    found = checked(broken)
    assert {found[name].outcome for name in ("rows", "new_rows", "labels")} == {"not_run"}
    after_a_trial = remember(WEEK, broken)
    assert failed(night(9, rows_total=8_000, rows_new=10_000), after_a_trial) == {"rows"}
    assert failed(night(10, rows_new=10_000), remember(after_a_trial, night(9))) == {"new_rows"}


def test_parts_that_shrank_or_vanished_are_named_with_their_rows() -> None:
    parts = [
        PartCounts("a.csv", 500, taken=500, vanished=500),
        PartCounts("b.csv", 0, vanished=9_000),
        PartCounts("c.csv", 0),
    ]
    reason = checked(night(8, rows_total=500), parts=parts)["rows"].reason
    assert reason.index("b.csv") < reason.index("a.csv")
    assert "9,000" in reason
    assert "c.csv" not in reason


def test_rows_that_the_source_had_marked_as_deleted_do_not_vanish() -> None:
    columns = {"part": [0, 0, 1, 1], "id_key": [1, 2, 3, 4], "state": [TAKEN, DELETED, DELETED, TAKEN]}
    leaving = {name: np.array(values, np.uint64 if name == "id_key" else np.int32) for name, values in columns.items()}
    assert vanished_rows(leaving, {"id_key": np.array([4, 9], np.uint64)}) == {0: 1}


def test_a_limit_can_be_set_and_switched_off() -> None:
    tonight = night(8, rows_total=100, rows_new=1, rows_quarantined=500, labels={"good": 500}, commonest=500)
    off = {"max_rows_lost": 1, "min_new_rows": 0, "max_quarantined": 1, "max_label_shift": 1, "max_repeated_text": 1}
    assert failed(tonight) == {"rows", "new_rows", "quarantined", "labels", "repeated_text"}
    assert failed(tonight, settings=DataChecks.model_validate(off)) == set()


def test_a_column_that_is_empty_more_often_than_its_limit_fails() -> None:
    settings = DataChecks(columns={"stars": ColumnRules(max_missing=0.1), "shop": ColumnRules()})
    tonight = night(8, rows_checked=1000, missing={"stars": 100, "shop": 1000})
    assert failed(tonight, settings=settings) == set()
    tonight = replace(tonight, missing={"stars": 101, "shop": 1000})
    assert failed(tonight, settings=settings) == {"missing"}


def test_the_error_names_every_failed_check_and_the_command_that_lets_them_pass() -> None:
    tonight = night(8, rows_total=100, labels={"good": 500})
    results = tuple(checked(tonight).values())
    with pytest.raises(DataCheckError) as caught:
        require_passed("reviews", date(2026, 3, 8), results)
    assert caught.value.error_type == "data_check_failed"
    assert (
        "nightgate run reviews --night 2026-03-08 --allow-failed-check rows --allow-failed-check labels"
        in caught.value.next_step
    )
    assert caught.value.checks == results
    assert caught.value.reason.startswith("10,000 rows became 100")


def test_an_allowed_check_passes_alone() -> None:
    tonight = night(8, rows_total=100, labels={"good": 500})
    found = checked(tonight, allowed={"rows", "new_rows"})
    assert {name: found[name].outcome for name in ("rows", "new_rows", "labels")} == {
        "rows": "allowed",
        "new_rows": "passed",
        "labels": "failed",
    }
    require_passed("reviews", date(2026, 3, 8), tuple(checked(tonight, allowed={"rows", "labels"}).values()))


def test_a_check_that_does_not_exist_cannot_be_allowed() -> None:
    assert Allowed.named(["rows"], "ada").checks == {"rows"}
    with pytest.raises(ConfigurationError, match="'labels'"):
        Allowed.named(["label"], "ada")


def test_counts_that_do_not_balance_are_an_error() -> None:
    assert PartCounts("a.csv", 10, taken=3, merged=1, quarantined=2, future=4).accounted == 10
    with pytest.raises(InternalError, match=r"a\.csv"):
        PartCounts("a.csv", 10, taken=3, vanished=7)


@pytest.mark.parametrize(
    ("rules", "broken"),
    [
        ({"type": "integer"}, {1, 3}),
        ({"type": "number", "min": 2}, {0, 1}),
        ({"max": 3}, {1, 3, 4}),
        ({"allowed": ["1", "5"]}, {1, 2, 3}),
        ({"min_length": 2}, {0, 2, 4}),
        ({"max_length": 1}, {1, 3}),
        ({"max_missing": 0.1}, set()),
        ({}, set()),
    ],
    ids=str,
)
def test_a_column_has_the_values_that_its_rules_allow(rules: dict[str, Any], broken: set[int]) -> None:
    frame = pd.DataFrame({"stars": ["1", "many", 2, 4.5, 5.0, None, "  ", float("nan")]})
    found = check_columns(frame, {"stars": ColumnRules.model_validate(rules)})
    assert set(found.rows) == broken
    assert all("'stars'" in detail for detail in found.rows.values())
    assert found.missing == {"stars": 3}


def test_a_batch_without_rows_breaks_no_rule() -> None:
    assert not check_columns(pd.DataFrame({"stars": []}), {"stars": ColumnRules(type="integer", min=1)}).rows


@pytest.mark.parametrize(
    "rules", [{"min": 2, "max": 1}, {"min_length": 2, "max_length": 1}, {"type": "text", "min": 1}]
)
def test_rules_that_contradict_each_other_are_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"min|max"):
        ColumnRules.model_validate(rules)
