"""What a refresh leaves in SQL: counts that balance, checks with who let them fail, votes, and the state of rows that
cannot be used. On both engines.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from nightgate.config.checks import NONE_ALLOWED, Allowed
from nightgate.data.checks import CheckResult
from nightgate.data.refresh_counts import LabelVotes, PartCounts
from nightgate.database.transactions import Database
from nightgate.errors import DataCheckError
from nightgate.frames.reader import tidy
from nightgate.runs import lifecycle, records
from nightgate.runs.refresh_records import MOST_PARTS
from nightgate.sources.source_table import Quarantined
from tests.support import night_rows


def bad(number: int, reason: str = "empty_text", part: str = "a.csv", **more: Any) -> Quarantined:
    return Quarantined(f"{part}:{number}", None, reason, "the text is blank", "", **({"part": part} | more))


def refreshed_night(database: Database, day: int, *rows: Quarantined, **changes: Any) -> str:
    """A night whose refresh found these unusable rows; its run id."""
    run = night_rows.opened(database, day, trigger="backfill")
    allowed = changes.pop("allowed", NONE_ALLOWED)
    refreshed = night_rows.refreshed(database, f"s-{day:016x}")
    values = {"quarantined": rows, "parts": (PartCounts("a.csv", len(rows), quarantined=len(rows)),)} | changes
    records.record_snapshot(database, run.run_id, run.attempt, replace(refreshed, **values), allowed)
    lifecycle.finish_run(database, run.run_id, run.attempt, "held")
    return run.run_id


def quarantine(database: Database) -> list[tuple[Any, ...]]:
    """(origin, reason, first, last, resolved) with nights as days of March."""
    frame = database.frame(
        "SELECT origin, reason, first_night, last_night, resolved_night FROM quarantined_rows ORDER BY origin, reason"
    )
    frame = tidy(frame)
    return [
        (row.origin, row.reason, *(None if night is None else night.day for night in row[3:]))
        for row in frame.itertuples()
    ]


def test_rows_are_counted_by_part_and_the_counts_balance(database: Database) -> None:
    parts = (
        PartCounts("a.csv", 10, taken=2, merged=1, replaced=1, deleted=1, quarantined=2, conflicting=1, future=2),
        PartCounts("b.csv", 5, taken=4, outside=1, vanished=7, bytes=2**40, unchanged=True),
    )
    refreshed_night(database, 0, parts=parts)
    found = database.frame("SELECT * FROM refresh_counts ORDER BY position")
    assert list(found["part"]) == ["a.csv", "b.csv"]
    placed = found.filter(regex="^rows_(?!seen|vanished)").sum(axis=1)
    assert list(found["rows_seen"]) == list(placed) == [10, 5]
    assert list(found["rows_vanished"]) == [0, 7]
    assert found["bytes"].iloc[1] == 2**40
    unbalanced = sa.text("UPDATE refresh_count SET rows_seen = rows_seen + 1")
    with pytest.raises(IntegrityError):
        database.write(lambda session: session.execute(unbalanced))
    # Unchanged parts beyond a thousand share a row.
    many = [PartCounts(f"{number:04d}.csv", 2, taken=2, unchanged=number > 0) for number in range(MOST_PARTS + 200)]
    run_id = refreshed_night(database, 1, parts=tuple(reversed(many)))
    query = "SELECT part, rows_seen FROM refresh_counts WHERE run_id = :id ORDER BY position"
    found = database.frame(query, {"id": run_id})
    assert len(found) == MOST_PARTS + 1
    assert found["part"].iloc[0] == "0000.csv"
    assert found["rows_seen"].sum() == 2 * len(many)
    assert found["rows_seen"].iloc[-1] == 400


def test_checks_say_who_let_them_fail_and_why(database: Database) -> None:
    checks = (
        CheckResult("rows", "passed", 0.02, 0.1, "100 rows became 98"),
        CheckResult("labels", "allowed", 0.4, 0.25, "labels of new rows moved by 0.40"),
        CheckResult("missing", "not_run", None, 1.0, "no column has a limit"),
    )
    refreshed_night(database, 0, checks=checks, allowed=Allowed(frozenset({"labels"}), "ada", "a campaign"))
    found = database.frame("SELECT check_name, outcome, allowed_by, allowed_reason FROM data_checks ORDER BY position")
    assert found.astype(object).where(found.notna(), None).to_numpy().tolist() == [
        ["rows", "passed", None, None],
        ["labels", "allowed", "ada", "a campaign"],
        ["missing", "not_run", None, None],
    ]


def test_a_refresh_that_failed_leaves_its_counts_checks_and_rows_and_resolves_nothing(database: Database) -> None:
    refreshed_night(database, 0, bad(1))
    run = night_rows.opened(database, 1)
    error = DataCheckError("95 % of the rows cannot be used")
    error.quarantined, error.parts = [bad(2)], [PartCounts("a.csv", 9, taken=8, quarantined=1)]
    error.checks = [CheckResult("quarantined", "failed", 0.95, 0.05, "950 of 1,000")]
    for _ in range(2):
        records.record_failed_refresh(database, run.run_id, run.attempt, error)
    assert quarantine(database) == [("a.csv:1", "empty_text", 1, 1, None), ("a.csv:2", "empty_text", 2, 2, None)]
    [row] = database.frame("SELECT rows_seen FROM refresh_counts WHERE run_id = :id", {"id": run.run_id}).to_numpy()
    assert row.tolist() == [9]
    assert list(database.frame("SELECT outcome FROM data_checks WHERE night > '2026-03-01'")["outcome"]) == ["failed"]


def test_a_bad_row_is_one_row_however_many_nights_read_it_until_it_is_corrected(database: Database) -> None:
    for day in range(5):
        refreshed_night(database, day, bad(1), bad(2, "unknown_label"))
    assert quarantine(database) == [("a.csv:1", "empty_text", 1, 5, None), ("a.csv:2", "unknown_label", 1, 5, None)]
    # Corrected, broken again, and broken in another way.
    refreshed_night(database, 5, bad(2, "unknown_label"))
    assert quarantine(database)[0] == ("a.csv:1", "empty_text", 1, 5, 6)
    refreshed_night(database, 6, bad(1))
    assert quarantine(database) == [("a.csv:1", "empty_text", 1, 7, None), ("a.csv:2", "unknown_label", 1, 6, 7)]
    refreshed_night(database, 7, bad(1, "unknown_label"))
    assert quarantine(database)[:2] == [("a.csv:1", "empty_text", 1, 7, 8), ("a.csv:1", "unknown_label", 8, 8, None)]
    # With an id it is the same row wherever it stands. SQL cannot hold NUL and lone surrogates.
    for day, place in ((8, "a.csv:1"), (9, "a.csv:9")):
        refreshed_night(database, day, Quarantined(place, "i\0d", "bad_row", "nul \0", "lone \ud83d", part="a.csv"))
    query = "SELECT origin, row_id, detail, excerpt FROM quarantined_rows WHERE resolved_night IS NULL"
    assert database.frame(query).to_numpy().tolist() == [["a.csv:9", "i\ufffdd", "nul \ufffd", "lone ?"]]


def test_rows_of_parts_that_were_not_read_again_stay_open(database: Database) -> None:
    marked = Quarantined("table:7", "seven", "bad_time", "'never' is no time", "", part="table")
    refreshed_night(database, 0, bad(1), bad(1, part="b.csv"), bad(1, part="gone.csv"), marked)
    parts = (
        PartCounts("a.csv", 1, quarantined=1, unchanged=True),
        PartCounts("b.csv", 1, taken=1),
        PartCounts("table", 0, complete=False),
    )
    refreshed_night(database, 1, parts=parts)
    assert quarantine(database) == [
        ("a.csv:1", "empty_text", 1, 1, None),
        ("b.csv:1", "empty_text", 1, 1, 2),
        ("gone.csv:1", "empty_text", 1, 1, 2),
        ("table:7", "bad_time", 1, 1, None),
    ]
    refreshed_night(database, 2, parts=parts, corrected=frozenset({"seven"}))
    assert quarantine(database)[-1] == ("table:7", "bad_time", 1, 1, 3)


def test_rows_that_only_a_failed_refresh_found_are_resolved_when_the_part_is_put_back(database: Database) -> None:
    clean = PartCounts("clean.csv", 5, taken=5)
    mixed = PartCounts("mixed.csv", 5, taken=4, quarantined=1)
    refreshed_night(database, 0, bad(1, part="mixed.csv"), parts=(clean, mixed))
    error = DataCheckError("40 % of the rows cannot be used")
    error.quarantined = [bad(3, part="clean.csv"), bad(1, part="mixed.csv"), bad(4, part="mixed.csv")]
    run = night_rows.opened(database, 1)
    records.record_failed_refresh(database, run.run_id, run.attempt, error)
    lifecycle.finish_run(database, run.run_id, run.attempt, "failed")
    as_before = tuple(replace(part, unchanged=True) for part in (clean, mixed))
    refreshed_night(database, 2, parts=as_before)
    expected = [
        ("clean.csv:3", "empty_text", 2, 2, 3),
        ("mixed.csv:1", "empty_text", 1, 2, None),
        ("mixed.csv:4", "empty_text", 2, 2, 3),
    ]
    assert quarantine(database) == expected
    # What a refresh took in stands, also where the same night reads it again.
    refreshed_night(database, 3, bad(5, part="mixed.csv"), parts=(clean, replace(mixed, taken=3, quarantined=2)))
    refreshed_night(database, 4, parts=tuple(replace(part, unchanged=True) for part in (clean, mixed)))
    assert quarantine(database)[-1] == ("mixed.csv:5", "empty_text", 4, 4, None)


def test_votes_end_when_the_rows_of_a_text_agree_or_are_gone(database: Database) -> None:
    marks = ["cd" * 16, "ef" * 16]
    refreshed_night(database, 0, votes=tuple(LabelVotes(mark, {"bad": 1, "good": 2}, "good") for mark in marks))
    left = "SELECT DISTINCT fingerprint FROM label_votes"
    refreshed_night(database, 1, votes=(), counted=np.array([1, int("cd" * 8, 16)], np.uint64))
    assert list(database.frame(left)["fingerprint"]) == ["ef" * 16]
    refreshed_night(database, 2, votes=(), counted=np.empty(0, np.uint64))
    assert len(database.frame(left)) == 1
    refreshed_night(database, 3, votes=(), counted=None)
    assert database.frame(left).empty


def test_a_backfill_adds_rows_and_changes_no_later_state(database: Database) -> None:
    refreshed_night(database, 1, bad(1), bad(3), votes=(LabelVotes("cd" * 16, {"bad": 1, "good": 2}, "good"),))
    newest = refreshed_night(database, 2, bad(1), votes=(LabelVotes("cd" * 16, {"bad": 2, "good": 2}, "bad"),))
    refreshed_night(database, 0, bad(2), bad(3), votes=())
    assert quarantine(database) == [
        ("a.csv:1", "empty_text", 2, 3, None),
        ("a.csv:2", "empty_text", 1, 1, None),
        ("a.csv:3", "empty_text", 1, 2, 3),
    ]
    found = database.frame("SELECT run_id, fingerprint, label, votes, chosen FROM label_votes ORDER BY label")
    assert [tuple(row) for row in found.to_numpy().tolist()] == [
        (newest, "cd" * 16, "bad", 2, True),
        (newest, "cd" * 16, "good", 2, False),
    ]
    assert list(database.frame("SELECT label_revision FROM nightly_runs")["label_revision"]) == [1, 1, 1]
