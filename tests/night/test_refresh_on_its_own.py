"""A refresh without a night: what it leaves in SQL, and that the next night goes on from its snapshot."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from nightgate.config.checks import Allowed
from nightgate.config.pipeline import Pipeline
from nightgate.data import refresh as data
from nightgate.data.snapshots import Snapshot
from nightgate.data.tip import hold_data
from nightgate.database.connection import database_url
from nightgate.database.transactions import Database, upgrade
from nightgate.errors import DataCheckError
from nightgate.home import Home
from nightgate.night import steps
from nightgate.night.refresh import refresh
from nightgate.night.run import open_night
from nightgate.registry import data_retention
from nightgate.schedule import tonight
from tests.support.tiny import tiny_pipeline

FINDINGS = ("refresh_counts", "data_checks", "data_drift", "quarantined_rows")


@pytest.fixture
def pipeline(home: Home, tmp_path: Path) -> Pipeline:
    upgrade(database_url(home))
    return tiny_pipeline(tmp_path, rows=400)


def night(pipeline: Pipeline) -> tuple[str, Snapshot]:
    """The id of a manual night that ends after its refresh, and its snapshot."""
    with open_night(pipeline, tonight(pipeline.schedule), force=True) as run:
        snapshot = steps.refresh(run)
        run.finish("held", "it ends here")
    return run.run_id, snapshot


def rows(home: Home, query: str) -> list[dict[str, Any]]:
    with Database.open(home) as db:
        frame = db.frame(query)
        found: list[dict[str, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
        return found


def add_rows(pipeline: Pipeline, number: int, first: int = 0) -> None:
    """Rows with new texts, and one without a text."""
    [path] = pipeline.data.source.paths  # type: ignore[union-attr]
    with Path(path).open("a") as file:
        header = Path(path).read_text().splitlines()[0].split(",")
        for at in range(first, first + number):
            text = f"a brand new pan number {at} works" if at % 50 else ""
            values = {"id": f"new-{at}", "text": text, "stars": str(at % 3 + 1)}
            file.write(",".join(values.get(name, "") for name in header) + "\n")


def test_a_refresh_leaves_what_a_nights_does_and_is_no_night(home: Home, pipeline: Pipeline) -> None:
    run_id, first = night(pipeline)
    add_rows(pipeline, 60)
    found = refresh(pipeline, prefect_flow_run_id="flow-1")
    [row] = rows(home, "SELECT * FROM refreshes")
    assert (row["status"], row["snapshot_id"], row["rows_new"]) == ("completed", found.snapshot.id, 58)
    assert (row["rows_total"], row["prefect_flow_run_id"]) == (458, "flow-1")
    with Database.open(home) as db:
        listed = data_retention.listing(db, "tiny").set_index("snapshot_id").loc[found.snapshot.id]
    assert (str(listed["night"]), listed["rows_new"], listed["runs"]) == (str(row["night"]), 58, 0)
    for view in FINDINGS:
        assert rows(home, f"SELECT 1 AS one FROM {view} WHERE run_id = '{row['refresh_id']}'"), view
    [counted] = rows(home, f"SELECT * FROM refresh_counts WHERE run_id = '{row['refresh_id']}'")
    assert (counted["rows_seen"], counted["rows_quarantined"], counted["pipeline"]) == (460, 2, "tiny")
    for view in ("nightly_runs", "nights"):
        assert [one["run_id"] for one in rows(home, f"SELECT run_id FROM {view}")] == [run_id]
    # Another refresh counts from this one, and a night from the night before.
    add_rows(pipeline, 9, first=101)
    assert refresh(pipeline).rows_new == 9
    second, snapshot = night(pipeline)
    [last] = rows(home, f"SELECT rows_new, rows_total FROM nightly_runs WHERE run_id = '{second}'")
    assert (last["rows_new"], last["rows_total"]) == (67, 467)
    assert snapshot.id != first.id
    assert refresh(pipeline).rows_new == 0


def test_a_failed_check_takes_nothing_in_until_it_is_allowed(home: Home, pipeline: Pipeline) -> None:
    before = refresh(pipeline).snapshot
    [path] = pipeline.data.source.paths  # type: ignore[union-attr]
    Path(path).write_text("".join(Path(path).read_text().splitlines(keepends=True)[:200]))
    with pytest.raises(DataCheckError) as failed:
        refresh(pipeline)
    [_, row] = rows(home, "SELECT * FROM refreshes ORDER BY started_at")
    assert (row["status"], row["error_type"], row["snapshot_id"]) == ("failed", "data_check_failed", None)
    assert "--allow-failed-check rows" in failed.value.next_step
    assert "allow_failed_checks" in failed.value.next_step, "the field of the form"
    allowed = refresh(pipeline, allowed=Allowed(frozenset({"rows"}), "ada", "old reviews were deleted"))
    assert allowed.snapshot.id != before.id
    query = "SELECT c.check_name, c.allowed_by FROM data_checks AS c JOIN refreshes AS f ON f.refresh_id = c.run_id "
    assert rows(home, query + "WHERE c.outcome = 'allowed'") == [{"check_name": "rows", "allowed_by": "ada"}]


def test_it_is_done_again_where_its_findings_did_not_reach_the_database(home: Home, pipeline: Pipeline) -> None:
    night(pipeline)
    add_rows(pipeline, 60)
    # Up to the commit in the file system, as of a process that is killed then.
    data.refresh(pipeline, tonight(pipeline.schedule), home)
    assert refresh(pipeline).rows_new == 58
    assert len(rows(home, "SELECT * FROM quarantined_rows")) == 2


def test_what_changes_snapshots_waits_for_each_other_and_a_night_at_work_holds_none(
    home: Home, pipeline: Pipeline
) -> None:
    with open_night(pipeline, tonight(pipeline.schedule)) as run:
        kept = steps.refresh(run)
        add_rows(pipeline, 60)
        assert refresh(pipeline).rows_new == 58, "beside a night that trains"
        assert kept.path.is_dir()
        with Database.open(home) as db:
            work = (lambda: refresh(pipeline), lambda: data_retention.sweep(db, pipeline))
            threads = [Thread(target=one) for one in work]
            with hold_data(home, "tiny", "the test"):
                for thread in threads:
                    thread.start()
                time.sleep(1)
                assert [thread.is_alive() for thread in threads] == [True, True]
            for thread in threads:
                thread.join(30)
        assert len(rows(home, "SELECT * FROM refreshes")) == 2
        run.finish("held", "it ends here")


def test_refreshes_never_push_out_the_snapshot_of_the_last_night(home: Home, pipeline: Pipeline) -> None:
    pipeline = pipeline.model_copy(update={"retention": pipeline.retention.model_copy(update={"snapshots": 1})})
    _, first = night(pipeline)
    for at in range(3):
        add_rows(pipeline, 9, first=50 * at + 1)
        last = refresh(pipeline).snapshot
    left = [
        row["snapshot_id"] for row in rows(home, "SELECT snapshot_id FROM snapshots WHERE files_removed_at IS NULL")
    ]
    assert set(left) == {first.id, last.id}
    run_id, _ = night(pipeline)
    assert rows(home, f"SELECT rows_new FROM nightly_runs WHERE run_id = '{run_id}'") == [{"rows_new": 27}]


def test_without_a_cron_a_past_date_has_a_night_up_to_its_end() -> None:
    from nightgate.config.schedule import Schedule
    from nightgate.schedule import chosen_night

    found = chosen_night(Schedule(cron="", timezone="Europe/Berlin"), date(2026, 3, 28))
    assert (found.trigger, found.data_until) == ("backfill", datetime(2026, 3, 28, 23, tzinfo=UTC))
