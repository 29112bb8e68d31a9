"""A night whose data look broken, from the source to SQL: it ends before training, and takes nothing in."""

from __future__ import annotations

import csv
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from nightgate.config.checks import NONE_ALLOWED, Allowed
from nightgate.config.pipeline import Pipeline
from nightgate.data.snapshots import Snapshot
from nightgate.database.connection import database_url
from nightgate.database.transactions import Database, upgrade
from nightgate.errors import DatabaseError, DataCheckError
from nightgate.home import Home
from nightgate.night import steps
from nightgate.night.run import open_night
from nightgate.reports import sections
from nightgate.reports.facts import gather
from nightgate.runs import records
from nightgate.schedule import chosen_night
from tests.support.tiny import tiny_pipeline

pytestmark = pytest.mark.process


def refreshed_night(pipeline: Pipeline, day: int, allowed: Allowed = NONE_ALLOWED) -> Snapshot:
    """A night up to its refresh."""
    with open_night(pipeline, chosen_night(pipeline.schedule, date(2026, 1, day)), allowed=allowed) as run:
        snapshot = steps.refresh(run)
        run.finish("held", "it ends here")
    return snapshot


def nights(home: Home, query: str) -> list[dict[str, Any]]:
    with Database.open(home) as db:
        frame = db.frame(query)
        rows: list[dict[str, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
        return rows


def test_a_night_ends_before_training_takes_nothing_in_and_says_how_to_let_it_pass(home: Home, tmp_path: Path) -> None:
    upgrade(database_url(home))
    pipeline = tiny_pipeline(tmp_path, rows=400)
    first = refreshed_night(pipeline, 5)
    path = tmp_path / "reviews.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:200]))
    with pytest.raises(DataCheckError):
        refreshed_night(pipeline, 6)
    [before, broken] = nights(home, "SELECT * FROM nightly_runs ORDER BY night")
    assert (broken["status"], broken["error_type"], broken["snapshot_id"]) == ("failed", "data_check_failed", None)
    assert broken["reason"].startswith("400 rows became 199")
    assert f"nightgate run tiny --night {broken['night']} --allow-failed-check rows" in broken["next_step"]
    query = (
        "SELECT check_name, outcome, value, threshold, allowed_by, allowed_reason FROM data_checks WHERE run_id = '{}'"
    )
    checks = {row["check_name"]: row for row in nights(home, query.format(broken["run_id"]))}
    assert (checks["rows"]["outcome"], checks["rows"]["threshold"]) == ("failed", 0.1)
    assert checks["rows"]["value"] == pytest.approx(201 / 400)
    counts = nights(
        home, "SELECT night, SUM(rows_seen) AS seen, SUM(rows_taken) AS taken FROM refresh_counts GROUP BY 1"
    )
    assert [(row["seen"], row["taken"]) for row in counts] == [(400, 400), (199, 199)]
    # The same command, with the option: the run is resumed.
    allowed = Allowed(frozenset({"rows"}), "ada", "old reviews were deleted")
    assert refreshed_night(pipeline, 6, allowed).id != first.id
    [row] = nights(home, query.format(broken["run_id"]) + " AND outcome = 'allowed'")
    assert (row["check_name"], row["allowed_by"], row["allowed_reason"]) == ("rows", "ada", "old reviews were deleted")
    facts = gather(home, broken["run_id"], snapshots=False)
    assert [check["check_name"] for check in facts.broken_data] == ["rows"]
    assert "old reviews were deleted" in str(sections.data(facts))
    # The next night is compared with this one; corrected labels and repaired rows are counted.
    rows = list(csv.DictReader(path.read_text().splitlines()))
    for at, row in enumerate(rows):
        row["stars"] = {"1": "3", "2": "1", "3": "2"}[row["stars"]] if at % 10 == 0 else row["stars"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    snapshot = refreshed_night(pipeline, 7)
    corrected = {row["id"] for at, row in enumerate(rows) if at % 10 == 0}
    [last] = nights(home, "SELECT label_revision, run_id FROM nightly_runs WHERE night = '2026-01-07'")
    assert last["label_revision"] == len(corrected & set(snapshot.rows("test", ["row_id"])["row_id"])) > 0
    assert {row["outcome"] for row in nights(home, query.format(last["run_id"]))} <= {"passed", "not_run"}
    assert before["label_revision"] is None


def test_what_a_refresh_found_is_recorded_by_the_next_where_the_database_was_away(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(database_url(home))
    pipeline = tiny_pipeline(tmp_path, rows=400)
    refreshed_night(pipeline, 5)
    path = tmp_path / "reviews.csv"
    label = path.read_text().splitlines()[1].rpartition(",")[2]
    with path.open("a") as file:
        file.write(f"new,One that has no known label,?\nnewer,One that has one,{label}\n")
    with monkeypatch.context() as patch:
        patch.setattr(records, "record_snapshot", raises)
        with pytest.raises(DatabaseError):
            refreshed_night(pipeline, 6)
    refreshed_night(pipeline, 7)
    assert [row["reason"] for row in nights(home, "SELECT reason FROM quarantined_rows")] == ["unknown_label"]
    found = nights(home, "SELECT rows_new, rows_total, label_revision FROM nightly_runs WHERE night = '2026-01-07'")
    assert found == [{"rows_new": 1, "rows_total": 401, "label_revision": 0}]
    checks = nights(home, "SELECT outcome FROM data_checks WHERE night = '2026-01-07'")
    assert len(checks) == 7
    assert len(list((home.snapshots / "tiny" / "deltas").iterdir())) == 2

    refreshed_night(pipeline, 8)
    [count] = nights(home, "SELECT unchanged FROM refresh_counts WHERE night = '2026-01-08'")
    assert count["unchanged"]


def raises(*_: object) -> None:
    raise DatabaseError("the database is away", next_step="wait")
