"""What a night says at its end in a terminal."""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nightgate import ledger, runs, summary
from nightgate.config import Pipeline
from nightgate.database import Database
from nightgate.home import Home, open_home
from nightgate.nights import Night
from tests import judged_nights, night_rows
from tests.first_night import copy_first_night
from tests.reviews import files, pipeline

NIGHT = Night(datetime(2026, 3, 2).date(), "manual", datetime(2026, 3, 2, 3, 15, tzinfo=UTC))


@pytest.mark.parametrize(
    "reason", ["F1 0.6 on 35 test rows", "a: b [c] (d)", "two\nlines", "", "[kettles-20260302-ffffff]"]
)
def test_a_flow_message_gives_back_status_and_run_whatever_the_reason(reason: str) -> None:
    message = summary.flow_message("kettles-20260302-0a1b2c", "held", reason)
    assert summary.run_of_flow_message(message) == ("held", "kettles-20260302-0a1b2c")


def failed_run(db: Database) -> str:
    opened = night_rows.open_run(db, pipeline(files("kettles.csv")), NIGHT)
    runs.finish_run(
        db, opened.run_id, 1, "failed", reason="no file matches", error_type="data", next_step="check the paths"
    )
    return opened.run_id


def test_a_failed_night_tells_reason_and_next_step_and_no_table(database: Database, home: Home) -> None:
    text = summary.as_text(home, failed_run(database))
    assert "Night 2026-03-02 of kettles: FAILED\n  no file matches\n  next: check the paths\n" in text
    assert "Training Loss" not in text
    assert "Verdict" not in text
    assert "Champion" not in text


def test_a_database_on_a_server_is_asked_without_its_url_on_the_screen(
    database: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = failed_run(database)
    if database.dialect == "sqlite":
        pytest.skip("SQLite has no password")
    text = summary.as_text(home, run_id)
    assert 'psql "${NIGHTGATE_DATABASE_URL/+psycopg/}" -c ' in text
    assert "postgres:" not in text
    monkeypatch.undo()


def judged_run(db: Database) -> str:
    """A night that the gate decided on the 400 newest of 1,200 rows, against a champion that is better."""
    usual = night_rows.pipeline().record()
    narrow = Pipeline.model_validate({**usual, "gate": {**usual["gate"], "test_window": "1d", "min_test_rows": 100}})
    champion = judged_nights.judged_night(db, 0, judged_nights.Model("b", 0.9), pipeline=narrow)
    return judged_nights.judged_night(db, 2, judged_nights.Model("a", 0.7), champion, pipeline=narrow).run_id


def test_a_verdict_tells_what_it_was_decided_on_and_of_the_slices_only_those_that_failed(
    database: Database, home: Home
) -> None:
    text = summary.as_text(home, judged_run(database))
    assert re.search(r"\n  Test window +400 test rows since 2026-03-03; all 1,200 beside it: F1 0\.\d{4}\n", text)
    assert re.search(
        r"\n  Power +gains of \d\.\d points or more would be seen with 80 % power; tonight's was -\d", text
    )
    assert re.search(r"\n  Anchor +version 1, the champion itself\n", text)
    fresh = r"F1 0\.\d{4} \(95 % interval .*\) of version 1 on the 800 rows that came after it was chosen"
    assert re.search(rf"\n  Champion, fresh rows +{fresh}", text)
    checks = [
        tuple(line.split()[:2]) for line in text.partition("Verdict: hold\n")[2].partition("\n\n")[0].splitlines()
    ]
    assert ("failed", "beats_champion") in checks
    assert ("failed", "slices") in checks
    # Both classes lost.
    assert checks.count(("failed", "slice_margin")) == 2


def test_of_slices_that_passed_the_terminal_has_the_summary_alone(database: Database, home: Home) -> None:
    champion = judged_nights.judged_night(database, 0, judged_nights.Model("b", 0.7))
    night = judged_nights.judged_night(database, 2, judged_nights.Model("a", 0.9), champion)
    text = summary.as_text(home, night.run_id)
    assert "passed       slices " in text
    assert "slice_margin " not in text.replace("more than slice_margin", "")


def test_a_night_of_before_the_window_tells_nothing_of_it(database: Database, home: Home) -> None:
    opened = night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
    ledger.record_decision(database, opened.run_id, 1, night_rows.decision())
    runs.finish_run(database, opened.run_id, 1, "held")
    text = summary.as_text(home, opened.run_id)
    assert "Verdict: promote\n  passed       min_f1 " in text
    assert "Decided on" not in text


@pytest.mark.parametrize("with_program", [True, False])
def test_the_query_can_be_pasted_with_and_without_the_sqlite_program(
    environment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    with_program: bool,
) -> None:
    copy_first_night(environment)
    [run_dir] = (environment / "runs").iterdir()
    if not with_program:
        monkeypatch.setenv("PATH", str(tmp_path))
    text = summary.as_text(open_home(), run_dir.name)
    monkeypatch.undo()
    line = text.partition("Ask the database:\n")[2].splitlines()[0].strip()
    assert ("sqlite3 -header" in line) is (with_program and "-c " not in line)
    found = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "2026-01-05" in found.stdout


def test_a_pipeline_of_a_path_is_served_by_its_path(environment: Path) -> None:
    copy_first_night(environment)
    [run_dir] = (environment / "runs").iterdir()
    assert summary.as_text(open_home(), run_dir.name).endswith("serve PATH/TO/small.toml")
