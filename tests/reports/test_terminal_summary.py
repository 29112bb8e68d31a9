"""What a night prints at its end."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from nightgate.config.pipeline import Pipeline
from nightgate.database.transactions import Database
from nightgate.home import Home, open_home
from nightgate.reports import sections, terminal_summary
from nightgate.runs import lifecycle, records
from nightgate.schedule import Night
from tests.support import judged_nights, night_rows, report_facts
from tests.support.first_night import copy_first_night
from tests.support.reviews import files, pipeline

pytestmark = pytest.mark.process

NIGHT = Night(datetime(2026, 3, 2).date(), "manual", datetime(2026, 3, 2, 3, 15, tzinfo=UTC))


@pytest.mark.parametrize(
    "reason", ["F1 0.6 on 35 test rows", "a: b [c] (d)", "two\nlines", "", "[kettles-20260302-ffffff]"]
)
def test_a_flow_message_gives_back_status_and_run_whatever_the_reason(reason: str) -> None:
    message = terminal_summary.flow_message("kettles-20260302-0a1b2c", "held", reason)
    assert terminal_summary.run_of_flow_message(message) == ("held", "kettles-20260302-0a1b2c")


def failed_run(db: Database) -> str:
    opened = night_rows.open_run(db, pipeline(files("kettles.csv")), NIGHT)
    why = {"reason": "no file matches", "error_type": "data", "next_step": "check the paths"}
    lifecycle.finish_run(db, opened.run_id, 1, "failed", **why)
    return opened.run_id


def test_a_failed_night_has_its_error_and_next_step_and_no_table(database: Database, home: Home) -> None:
    text = terminal_summary.as_text(home, failed_run(database))
    wanted = ["Night 2026-03-02 of kettles: FAILED", "  no file matches", "  next: check the paths"]
    assert text.splitlines()[1:4] == wanted
    for word in ("Training Loss", "Verdict", "Champion", "None"):
        assert word not in text, word


def test_a_database_on_a_server_is_asked_without_its_url_on_the_screen(
    database: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = failed_run(database)
    if database.dialect == "sqlite":
        pytest.skip("SQLite has no password")
    text = terminal_summary.as_text(home, run_id)
    monkeypatch.undo()
    assert 'psql "${NIGHTGATE_DATABASE_URL/+psycopg/}" -c ' in text
    assert "postgres:" not in text


def checks_of(text: str) -> list[tuple[str, ...]]:
    """Outcome and name of the checks."""
    lines = text.partition("Verdict: ")[2].partition("\n\n")[0].splitlines()[1:]
    return [tuple(line.split()[:2]) for line in lines if not line.startswith(" " * 10)]


def test_the_result_of_a_promoted_and_of_a_held_night(
    monkeypatch: pytest.MonkeyPatch, snapshot: SnapshotAssertion
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    held = report_facts.judged_night(num_slices=300, failed=14, run={"next_step": "nightgate gate power reviews"})
    lines = [
        *terminal_summary.result_lines(report_facts.published_night()),
        "=" * 80,
        *terminal_summary.result_lines(held),
    ]
    assert "\n".join(lines) == snapshot


def test_of_a_night_of_one_epoch_none_is_called_the_best() -> None:
    whole = report_facts.published_night()
    one = replace(whole, epochs=whole.epochs[:1], run={**whole.run, "best_epoch": 1})
    assert ["Best epoch" in "\n".join(terminal_summary.result_lines(facts)) for facts in (whole, one)] == [True, False]
    assert ["optimistic" in str(sections.epochs(facts)) for facts in (whole, one)] == [True, False]


def test_a_long_reason_is_cut_and_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    check = report_facts.check_row("golden", "warning", "some lost rows, " * 500)
    lines = "\n".join(terminal_summary.result_lines(report_facts.published_night(checks=[check]))).splitlines()
    found = [line for line in lines if "lost rows" in line]
    assert sum(line.count("lost") for line in found) == pytest.approx(terminal_summary.LONGEST_REASON / 16, abs=1)
    assert max(map(len, found)) <= 80


def test_a_judged_night_has_its_checks_and_the_verdict_s_clauses_once(database: Database, home: Home) -> None:
    """It was decided on the 400 newest of 1,200 rows, against a champion that is better."""
    usual = night_rows.pipeline().record()
    narrow = Pipeline.model_validate({**usual, "gate": {**usual["gate"], "test_window": "1d", "min_test_rows": 100}})
    champion = judged_nights.judged_night(database, 0, judged_nights.Model("b", 0.9), pipeline=narrow)
    run_id = judged_nights.judged_night(database, 2, judged_nights.Model("a", 0.7), champion, pipeline=narrow).run_id
    text = terminal_summary.as_text(home, run_id)
    found = checks_of(text)
    assert {("failed", "beats_champion"), ("failed", "slices")} <= set(found)
    # The classes that lost are named by the check before.
    assert ("failed", "slice_margin") not in found
    [reason] = database.frame("SELECT reason FROM nightly_runs WHERE run_id = :run", {"run": run_id})["reason"]
    printed = " ".join(text.split())
    assert {clause: printed.count(clause) for clause in reason.split("; ")} == dict.fromkeys(reason.split("; "), 1)


def test_of_slices_that_passed_only_their_sum_is_printed(database: Database, home: Home) -> None:
    champion = judged_nights.judged_night(database, 0, judged_nights.Model("b", 0.7))
    night = judged_nights.judged_night(database, 2, judged_nights.Model("a", 0.9), champion)
    found = checks_of(terminal_summary.as_text(home, night.run_id))
    assert ("passed", "slices") in found
    assert [name for _, name in found if name == "slice_margin"] == []


def test_a_night_before_the_test_window_existed_prints_none_of_it(database: Database, home: Home) -> None:
    opened = night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
    records.record_decision(database, opened.run_id, 1, night_rows.decision())
    lifecycle.finish_run(database, opened.run_id, 1, "held")
    text = terminal_summary.as_text(home, opened.run_id)
    assert checks_of(text)[0] == ("passed", "min_f1")
    assert "Decided on" not in text


@pytest.mark.parametrize("with_program", [True, False])
def test_the_query_can_be_pasted_with_and_without_the_sqlite_program(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_program: bool
) -> None:
    copy_first_night(environment)
    [run_dir] = (environment / "runs").iterdir()
    if not with_program:
        monkeypatch.setenv("PATH", str(tmp_path))
    text, by_path = (terminal_summary.as_text(open_home(), run_dir.name, path) for path in ("", "mine/small.toml"))
    monkeypatch.undo()
    line = text.partition("Ask the database:\n")[2].splitlines()[0].strip()
    assert ("sqlite3 -header" in line) is (with_program and "-c " not in line)
    found = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "2026-01-05" in found.stdout
    # The pipeline is not one of the deployed ones.
    assert text.endswith("serve PATH/TO/small.toml")
    assert by_path.endswith("serve mine/small.toml")
