"""Retention of snapshots and runs: the newest stay, and what a version, a run that can go on or a proof needs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from nightgate.config.pipeline import Pipeline, Retention
from nightgate.database.schema import ModelVersion, Run, Snapshot
from nightgate.database.transactions import Database
from nightgate.operations import reconciliation
from nightgate.registry import data_retention, retention
from nightgate.runs import lifecycle, records
from nightgate.runs.run_row import read_run
from tests.support import night_rows


def pipeline(**limits: int) -> Pipeline:
    return night_rows.pipeline().model_copy(update={"retention": Retention(**limits)})


def snapshot_id(day: int) -> str:
    return f"s-{day:016x}"


def end(database: Database, day: int, status: str = "held", *, version: bool = False, snapshot: int = -1) -> str:
    """A closed run of that night with a folder and a snapshot of its own, or that of the night `snapshot`."""
    opened = night_rows.judged_version(database, day)[0] if version else night_rows.opened(database, day, "backfill")
    used = snapshot_id(day if snapshot < 0 else snapshot)
    records.record_snapshot(database, opened.run_id, opened.attempt, night_rows.refreshed(database, used))
    lifecycle.finish_run(database, opened.run_id, opened.attempt, status)
    (database.home.runs / opened.run_id / "attempt-1").mkdir(parents=True)
    reconciliation.mark_closed(database, read_run(database, opened.run_id))
    return opened.run_id


def kept(database: Database) -> list[int]:
    """Nights whose snapshots are there, on disk and by their rows."""
    frame = data_retention.listing(database, "reviews")
    there = [name for name, kept in zip(frame["snapshot_id"], frame["kept"], strict=True) if "removed" not in kept]
    assert there == sorted(path.name for path in (database.home.snapshots / "reviews").iterdir())
    return [int(name[2:], 16) for name in there]


def change(database: Database, kind: type, key: object, **values: object) -> None:
    def work(session: Session) -> None:
        row = session.get_one(kind, key)
        for name, value in values.items():
            setattr(row, name, value)

    database.write(work)


def test_the_newest_snapshots_and_those_of_kept_versions_stay(database: Database) -> None:
    for day in range(6):
        end(database, day, version=day == 1)
    assert data_retention.sweep(database, pipeline(snapshots=2)) == [snapshot_id(day) for day in (0, 2, 3)]
    assert kept(database) == [1, 4, 5]
    assert data_retention.sweep(database, pipeline(snapshots=2)) == []
    listed = data_retention.listing(database, "reviews", Retention(snapshots=1)).set_index("snapshot_id")["kept"]
    assert listed[snapshot_id(0)].startswith("removed 20")
    assert listed[snapshot_id(1)] == "version 1"
    assert (listed[snapshot_id(4)], listed[snapshot_id(5)]) == ("until the next night ends", "newest")


def test_a_snapshot_that_only_a_killed_refresh_knew_goes_after_a_day(database: Database) -> None:
    end(database, 0)
    for number, hours in ((7, 25), (8, 23)):
        path = database.home.snapshots / "reviews" / snapshot_id(number)
        path.mkdir()
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    assert data_retention.sweep(database, pipeline(snapshots=1)) == []
    assert sorted(path.name for path in path.parent.iterdir()) == [snapshot_id(0), snapshot_id(8)]


def test_what_was_found_damaged_goes_with_its_snapshot(database: Database) -> None:
    for day in range(2):
        end(database, day)
    folder = database.home.snapshots / "reviews"
    for day in range(2):
        (folder / f"{snapshot_id(day)}.damaged-0a1b2c3d").mkdir()
    data_retention.sweep(database, pipeline(snapshots=1))
    assert sorted(path.name for path in folder.iterdir()) == [snapshot_id(1), f"{snapshot_id(1)}.damaged-0a1b2c3d"]


def test_a_version_without_files_keeps_no_snapshot(database: Database) -> None:
    for day in range(4):
        end(database, day, version=day < 2)
    retention.sweep(database, database.home, pipeline(models=1))
    assert data_retention.sweep(database, pipeline(snapshots=1)) == [snapshot_id(0), snapshot_id(2)]


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_run_that_broke_keeps_what_it_needs_until_its_night_has_a_later_one(database: Database, status: str) -> None:
    broken = end(database, 0, status)
    for day in (1, 2):
        end(database, day)
    limits = pipeline(snapshots=1, runs=1)
    assert data_retention.sweep(database, limits) == [snapshot_id(1)]
    assert kept(database) == [0, 2]
    assert (database.home.runs / broken).is_dir()
    change(database, Run, broken, config_hash="other")
    end(database, 0, snapshot=3)
    assert data_retention.sweep(database, limits) == [snapshot_id(0), snapshot_id(3)]
    assert not (database.home.runs / broken).exists()


def test_the_line_of_a_version_keeps_the_rows_of_earlier_releases_that_prove_it(database: Database) -> None:
    for day in range(4):
        end(database, day, version=day < 3)
    change(database, ModelVersion, ("reviews", 3), started_from=2)
    change(database, ModelVersion, ("reviews", 2), started_from=1)
    retention.sweep(database, database.home, pipeline(models=1))
    assert data_retention.sweep(database, pipeline(snapshots=1)) == []
    later = night_rows.refreshed(database, snapshot_id(1)).snapshot.manifest | {"format": 2}
    change(database, Snapshot, ("reviews", snapshot_id(1)), manifest=later)
    assert data_retention.sweep(database, pipeline(snapshots=1)) == [snapshot_id(1)]
    assert kept(database) == [0, 2, 3]


def test_only_the_newest_runs_that_are_closed_keep_their_folders(database: Database) -> None:
    runs = [end(database, day, version=day == 0) for day in range(5)]
    night_rows.promote(database, 1)
    (database.home.runs / "other-20260301-000000").mkdir()
    change(database, Run, runs[2], closed_at=None)
    data_retention.sweep(database, pipeline(runs=1))
    assert folders(database.home.runs) == sorted([runs[0], runs[2], runs[4], "other-20260301-000000"])


def folders(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_nothing_goes_while_a_run_is_at_work_and_a_snapshot_that_comes_back_counts_as_kept(database: Database) -> None:
    for day in range(3):
        end(database, day)
    opened = night_rows.opened(database, 3, "backfill")
    assert data_retention.sweep(database, pipeline(snapshots=1)) == []
    lifecycle.finish_run(database, opened.run_id, opened.attempt, "held")
    assert data_retention.sweep(database, pipeline(snapshots=1)) == [snapshot_id(0), snapshot_id(1)]
    end(database, 4, snapshot=0)
    assert kept(database) == [0, 2]


def test_an_interrupted_removal_is_finished_and_a_row_with_a_strange_path_removes_nothing(database: Database) -> None:
    for day in range(3):
        end(database, day)
    (database.home.snapshots / "reviews" / ".removed-s-1-01234567").mkdir()
    change(database, Snapshot, ("reviews", snapshot_id(0)), path="snapshots")
    data_retention.sweep(database, pipeline(snapshots=1))
    assert folders(database.home.snapshots / "reviews") == [snapshot_id(0), snapshot_id(2)]
