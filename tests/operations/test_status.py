"""`nightgate status`: what runs, what waits, how the last nights ended, when the next ones begin."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

import nightgate
from nightgate.cli.app import app
from nightgate.cli.status_table import as_text
from nightgate.database.schema import Attempt
from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.frames.fleet import read_fleet
from nightgate.frames.nights import read_history
from nightgate.operations.status import COLUMNS, Deployed, last_due, status
from nightgate.registry import approvals, freezes
from nightgate.runs import lifecycle, records
from nightgate.runs.liveness import Owner
from nightgate.runs.run_row import RunRow
from nightgate.training.progress import PROGRESS_FILE, read_progress, record_progress
from nightgate.training.protocol import Progress
from tests.conftest import free_port
from tests.support import night_rows
from tests.support.night_rows import judged_version, night, pipeline, refreshed
from tests.support.slots import slot_places

TRAINING = Progress("train", 2, 5, 40, 100, loss=0.9172, examples_per_second=53.0, eta_seconds=3700.0)
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
sqlite = pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
"""Tests that need one database: one on a server takes longer to make."""
PIPELINE = """
name = "reviews"
[data]
source = { kind = "sample" }
labels = [1, 2]
[schedule]
cron = "15 3 * * *"
"""


def rows(db: Database, section: str, **options: Any) -> list[dict[str, Any]]:
    frame = status(db, **options)
    assert list(frame.columns) == list(COLUMNS)
    return frame[frame["section"] == section].to_dict("records")


def one(db: Database, section: str, **options: Any) -> dict[str, Any]:
    [row] = rows(db, section, **options)
    return row


def running(db: Database, name: str = "reviews", day: int = 0) -> RunRow:
    """A run of this process."""
    return night_rows.open_run(db, pipeline(name), night(day), owner=Owner.here())


def training(db: Database, attempt: int = 1) -> RunRow:
    """A run in training, with progress of the given attempt."""
    opened = running(db)
    records.record_snapshot(db, opened.run_id, opened.attempt, refreshed(db))
    folder = db.home.runs / opened.run_id
    folder.mkdir(parents=True)
    record_progress(folder, attempt, TRAINING)
    return opened


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the pipeline `reviews`."""
    path = tmp_path / "reviews.toml"
    path.write_text(PIPELINE, encoding="utf-8")
    monkeypatch.setenv("NIGHTGATE_PIPELINES", str(path))
    return path


# --- what runs ---


@sqlite
def test_without_runs_all_sections_are_empty(database: Database) -> None:
    assert status(database).empty
    assert as_text(status(database)).count("nothing") == 5


def test_a_training_shows_epoch_speed_loss_and_the_time_left(database: Database) -> None:
    opened = training(database)
    row = one(database, "running")
    assert (row["pipeline"], row["night"], row["run_id"]) == ("reviews", night().date, opened.run_id)
    assert (row["status"], row["stage"], row["epoch"], row["epochs"]) == ("running", "training", 2, 5)
    assert (row["step"], row["total_steps"]) == (40, 100)
    assert (row["loss"], row["examples_per_second"], row["eta_seconds"]) == (0.9172, 53.0, 3700.0)
    assert row["host"] == Owner.here().host
    text = as_text(status(database))
    assert "2 of 5" in text
    assert "1 h 01 min" in text


@sqlite
def test_a_run_before_its_training_has_a_stage(database: Database) -> None:
    opened = running(database)
    assert one(database, "running")["stage"] == "refreshing data"
    records.record_snapshot(database, opened.run_id, opened.attempt, refreshed(database))
    assert one(database, "running")["stage"] == "starting the training"


@sqlite
def test_progress_of_an_earlier_attempt_is_not_shown(database: Database) -> None:
    training(database, attempt=7)
    row = one(database, "running")
    assert row["stage"] == "starting the training"
    assert row["loss"] != row["loss"]  # missing


@sqlite
def test_old_progress_has_a_position_and_no_speed(database: Database) -> None:
    training(database)
    row = one(database, "running", moment=datetime.now(UTC) + timedelta(minutes=5))
    assert (row["epoch"], row["step"]) == (2, 40)
    assert row["examples_per_second"] != row["examples_per_second"]


@sqlite
def test_a_dead_run_is_shown_with_the_remedy(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    night_rows.open_run(database, pipeline(), night())
    row = one(database, "running")
    assert row["status"] == "dead"
    assert row["next_step"] == "nightgate reconcile"
    monkeypatch.setenv("COLUMNS", "400")
    assert "nightgate reconcile" in as_text(status(database))


def test_a_run_elsewhere_with_an_old_heartbeat_is_dead(database: Database) -> None:
    opened = running(database)

    def move(session: Any) -> None:
        attempt = session.scalars(sa.select(Attempt).filter_by(run_id=opened.run_id)).one()
        attempt.host, attempt.heartbeat_at = "elsewhere", datetime.now(UTC) - timedelta(minutes=10)

    database.write(move)
    row = one(database, "running")
    assert (row["status"], row["next_step"]) == ("dead", "nightgate reconcile")
    assert "10 minutes" in row["reason"]


# --- what waits ---


def test_a_run_that_waits_for_a_slot_has_its_position_and_the_holder(database: Database) -> None:
    opened = [running(database, name) for name in ("first", "second", "third")]
    for run in opened:
        lifecycle.record_attempt(database, run.run_id, 1, slot="gpu1")
    with slot_places(database.home, "gpu1", *(run.run_id for run in opened)):
        assert [row["pipeline"] for row in rows(database, "running")] == ["first"]
        waiting = rows(database, "waiting")
    assert [(row["pipeline"], row["waits_for"], row["position"]) for row in waiting] == [
        ("second", "slot gpu1", 1),
        ("third", "slot gpu1", 2),
    ]
    assert all(opened[0].run_id in row["reason"] for row in waiting)


@pytest.mark.usefixtures("file")
def test_a_night_that_prefects_queue_holds_back_waits_for_the_slot_and_is_not_late(database: Database) -> None:
    opened = night_rows.open_run(database, pipeline(), night())
    lifecycle.finish_run(database, opened.run_id, opened.attempt, "held")
    due = datetime(2026, 3, 10, 3, 15, tzinfo=UTC)
    deployed = {"reviews": Deployed("active", late=(due,))}
    assert rows(database, "waiting", deployed=deployed, moment=NOON) == []
    with slot_places(database.home, "default", "other-run", "by-hand"):
        row = one(database, "waiting", deployed=deployed, moment=NOON)
        assert one(database, "next_night", deployed=deployed, moment=NOON)["status"] != "late"
    assert (row["pipeline"], str(row["night"]), row["waits_for"], row["position"]) == (
        "reviews",
        "2026-03-10",
        "slot default",
        2,
    )
    assert (row["since"], "other-run" in row["reason"]) == (due, True)


def test_a_run_that_waits_for_approval_has_the_evidence_and_the_command(database: Database) -> None:
    opened, version = judged_version(database)
    patience = timedelta(hours=18)
    approvals.request(
        database, opened.run_id, opened.attempt, expected=None, patience=patience, reason="F1 is fine", next_step="-"
    )
    row = one(database, "waiting")
    assert (row["waits_for"], row["model_version"], row["test_f1"]) == (f"approval of version {version}", version, 0.6)
    assert row["until"] - row["since"] == patience
    assert f"nightgate approve reviews --run {opened.run_id}" in row["next_step"]
    late = one(database, "waiting", moment=datetime.now(UTC) + timedelta(hours=19))
    assert (late["status"], late["next_step"]) == ("overdue", "nightgate reconcile")


# --- what was, and what comes ---


def test_the_last_night_is_the_newest_that_has_ended(database: Database) -> None:
    for day, verdict in enumerate(("held", "failed")):
        opened = night_rows.open_run(database, pipeline(), night(day))
        lifecycle.finish_run(database, opened.run_id, opened.attempt, verdict, reason=f"it is {verdict}")
    running(database, day=2)
    row = one(database, "last_night")
    assert (row["night"], row["status"], row["reason"]) == (night(1).date, "failed", "it is failed")
    assert [row["night"] for row in rows(database, "running")] == [night(2).date]


def test_a_later_try_that_broke_is_named_beside_the_night_that_counts(database: Database) -> None:
    first = night_rows.open_run(database, pipeline(), night())
    lifecycle.finish_run(database, first.run_id, 1, "held", reason="not better")
    forced = night_rows.open_run(database, pipeline(), night(), force=True)
    lifecycle.finish_run(database, forced.run_id, 1, "failed", reason="the disk is full")
    row, history = one(database, "last_night"), read_history(database, "reviews")
    assert (row["status"], row["run_id"]) == ("held", first.run_id)
    assert row["reason"] == f"not better; a later try, {forced.run_id}, failed: the disk is full"
    assert history[["status", "run_id"]].to_numpy().tolist() == [["held", first.run_id]]
    assert history["later_failure"].tolist() == [f"a later try, {forced.run_id}, failed: the disk is full"]
    again = night_rows.open_run(database, pipeline(), night(), force=True)
    lifecycle.finish_run(database, again.run_id, 1, "held", reason="as good")
    assert one(database, "last_night")["reason"] == "as good", "the newest has a result"


def test_versions_are_whole_numbers_also_beside_a_night_without_one(database: Database) -> None:
    night_rows.held_version(database)
    broken = night_rows.open_run(database, pipeline("other"), night())
    lifecycle.finish_run(database, broken.run_id, broken.attempt, "failed", reason="no rows")
    [line] = [line for line in as_text(status(database)).splitlines() if "held" in line and "reviews" in line]
    assert " 1 " in line
    assert "1.0" not in line


@sqlite
def test_the_next_night_of_a_frozen_pipeline_has_reason_and_command(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    night_rows.held_version(database)
    freezes.freeze(database, "reviews", by="ada", reason="rude answers")
    row = one(database, "next_night")
    assert "ada: rude answers" in row["reason"]
    assert "nightgate unfreeze reviews --reason TEXT" in row["next_step"]
    monkeypatch.setenv("COLUMNS", "400")
    assert "nightgate unfreeze reviews" in as_text(status(database))


def test_the_number_of_queries_does_not_grow_with_the_pipelines(database: Database) -> None:
    asked: list[str] = []
    sa.event.listen(database._engine, "before_cursor_execute", lambda *event: asked.append(event[2]))

    def queries(read: Callable[[], Any]) -> int:
        asked.clear()
        read()
        return len([query for query in asked if query.lstrip().startswith("SELECT")])

    counts = []
    for name in ("reviews", "other", "third"):
        night_rows.held_version(database, name=name)
        running(database, name, day=1)
        counts.append((queries(lambda: status(database)), queries(lambda: read_fleet(database))))
    assert counts == counts[:1] * 3


def test_a_gap_to_the_champion_is_shown_with_its_sign_and_four_decimals() -> None:
    row = dict.fromkeys(COLUMNS) | {"section": "last_night", "pipeline": "reviews"}
    shown = as_text(pd.DataFrame([row | {"f1_delta": -0.0003741}, row | {"f1_delta": 0.0122}]))
    assert ("  -0.0004" in shown, "  +0.0122" in shown) == (True, True)


@sqlite
@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(
    ("deployed", "schedule", "starts"),
    [
        (None, "no server answers", datetime(2026, 3, 11, 3, 15, tzinfo=UTC)),
        ({"reviews": Deployed("active")}, "active", datetime(2026, 3, 11, 3, 15, tzinfo=UTC)),
        ({"reviews": Deployed("active", NOON + timedelta(hours=1))}, "active", NOON + timedelta(hours=1)),
        ({"reviews": Deployed("paused")}, "paused", None),
        ({}, "none", None),
    ],
)
def test_the_next_night_is_of_the_cron_as_far_as_it_is_active(
    database: Database, deployed: dict[str, Deployed] | None, schedule: str, starts: datetime | None
) -> None:
    running(database)
    row = one(database, "next_night", deployed=deployed, moment=NOON)
    assert row["schedule"] == schedule
    assert (row["until"] if starts else None) == starts


@pytest.mark.usefixtures("file")
def test_a_night_that_has_not_started_is_late(database: Database) -> None:
    opened = night_rows.open_run(database, pipeline(), night())
    lifecycle.finish_run(database, opened.run_id, opened.attempt, "held")
    assert one(database, "next_night", moment=night().data_until + timedelta(hours=5))["status"] == "due"
    row = one(database, "next_night", moment=NOON)
    assert (row["status"], row["since"]) == ("late", datetime(2026, 3, 10, 3, 15, tzinfo=UTC))
    assert "2026-03-10 03:15 UTC" in row["reason"]


@sqlite
def test_a_file_with_problems_and_a_missing_one_have_reasons(database: Database, file: Path) -> None:
    running(database)
    running(database, "gone")
    file.write_text('name = "reviews"\n', encoding="utf-8")
    found = {row["pipeline"]: (row["reason"], row["next_step"]) for row in rows(database, "next_night", deployed={})}
    assert found["gone"][0]
    assert "1 problem" in found["reviews"][0]
    assert found["reviews"][1] == "nightgate doctor"


def test_the_last_due_night_of_a_cron_lies_strictly_before() -> None:
    at = datetime(2026, 3, 1, 3, 15, tzinfo=UTC)
    assert last_due(pipeline(), at) == at - timedelta(days=1)
    assert last_due(pipeline(), at + timedelta(seconds=1)) == at


# --- for programs, and readers in the wrong folder ---


@sqlite
def test_programs_get_one_object_per_row_with_its_section(database: Database) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    opened = training(database)
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        done = CliRunner().invoke(app, ["status", "--format", "json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [row["section"] for row in found] == ["running", "next_night"]
    assert (found[0]["run_id"], found[0]["epoch"], found[0]["eta_seconds"]) == (opened.run_id, 2, 3700.0)
    assert set(found[0]) == set(COLUMNS)


@pytest.mark.parametrize(
    "command", [["status"], *([one, "sample"] for one in ("history", "champion", "versions")), ["reconcile"]]
)
def test_a_reader_in_the_wrong_folder_makes_no_home(environment: Path, command: list[str]) -> None:
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert str(environment) in done.stderr
    assert not environment.exists()
    with pytest.raises(RegistryError):
        nightgate.history("x")


@sqlite
def test_reading_from_another_machine_needs_no_home(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running(database)
    monkeypatch.setenv("NIGHTGATE_HOME", str(tmp_path / "elsewhere"))
    done = CliRunner().invoke(app, ["history", "reviews", "--format", "json"])
    assert [night["status"] for night in json.loads(done.stdout)] == ["running"]
    assert not (tmp_path / "elsewhere").exists()


# --- the file of the progress ---


def test_progress_is_written_seldom_and_whole(tmp_path: Path) -> None:
    assert read_progress(tmp_path) is None
    record_progress(tmp_path, 1, TRAINING)
    record_progress(tmp_path, 2, TRAINING)
    found = read_progress(tmp_path)
    assert found is not None
    assert (found.attempt, found.progress) == (1, TRAINING)
    assert [path.name for path in tmp_path.iterdir()] == [PROGRESS_FILE]
    before = datetime.now().timestamp() - 6
    os.utime(tmp_path / PROGRESS_FILE, (before, before))
    record_progress(tmp_path, 2, TRAINING)
    found = read_progress(tmp_path)
    assert found is not None
    assert found.attempt == 2


def test_progress_that_cannot_be_written_or_read_is_no_error(tmp_path: Path) -> None:
    record_progress(tmp_path / "gone", 1, TRAINING)
    assert read_progress(tmp_path / "gone") is None
    (tmp_path / PROGRESS_FILE).write_text('{"attempt": 1, "at": "2026-03-10T12:00:00+00:00", "progress": {"old": 1}}')
    assert read_progress(tmp_path) is None
