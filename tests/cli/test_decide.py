"""The commands `nightgate approve`, `reject` and `reconcile`."""

from __future__ import annotations

import getpass
from datetime import timedelta
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from nightgate.cli.app import app
from nightgate.database.transactions import Database
from nightgate.registry import approvals, promotion, versions
from tests.conftest import free_port
from tests.support.night_rows import judged_version, write_files

pytestmark = pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)


def waiting(db: Database, day: int = 0, hours: int = 18) -> str:
    """Id of a run whose candidate waits for an approval."""
    opened, _ = judged_version(db, day)
    write_files(db, opened.run_id)
    champion = versions.champion(db, "reviews")
    approvals.request(
        db,
        opened.run_id,
        opened.attempt,
        expected=champion.version if champion else None,
        patience=timedelta(hours=hours),
        reason="it passed",
        next_step="-",
    )
    return opened.run_id


def run_command(*words: str) -> Any:
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        return CliRunner().invoke(app, words)


def status_of(db: Database, run_id: str) -> tuple[str, str]:
    row = db.frame("SELECT status, reason FROM nightly_runs WHERE run_id = :run", {"run": run_id}).iloc[0]
    return row["status"], row["reason"]


def test_an_approval_promotes_and_says_who_and_why(database: Database) -> None:
    run_id = waiting(database)
    done = run_command("approve", "reviews", "--reason", "it reads well")
    me = getpass.getuser()
    assert done.stdout == f"reviews, night 2026-03-01: promoted: approved by {me}: it reads well\n", done.output
    assert status_of(database, run_id) == ("promoted", f"approved by {me}: it reads well")
    champion = versions.champion(database, "reviews")
    assert champion is not None
    assert champion.run_id == run_id
    report = (database.home.runs / run_id / "report.html").read_text(encoding="utf-8")
    assert f"approved by {me}: it reads well" in report, "the report is rendered anew"


def test_a_rejection_holds_and_says_who_and_why(database: Database) -> None:
    run_id = waiting(database)
    done = run_command("reject", "reviews", "--run", run_id, "--reason", "worse on boots")
    assert (done.exit_code, done.stdout.split(": ")[1]) == (0, "held")
    assert status_of(database, run_id)[0] == "held"
    assert versions.champion(database, "reviews") is None


def test_an_approval_that_comes_after_another_promotion_says_why_it_lost(database: Database) -> None:
    run_id = waiting(database)
    other, version = judged_version(database, day=1)
    promotion.promote_candidate(
        database,
        "reviews",
        version,
        expected=None,
        run_id=other.run_id,
        attempt=1,
        by="gate",
        reason="-",
    )
    done = run_command("approve", "reviews", "--reason", "it reads well")
    assert done.exit_code == 1
    assert "held: approved by" in done.stdout
    assert status_of(database, run_id)[0] == "held"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("approve", "sample", "--reason", "x"), "sample"),
        (("reject", "reviews", "--run", "reviews-1", "--reason", "x"), "reviews-1"),
        (("approve", "reviews", "--reason", " "), "blank"),
    ],
)
def test_an_impossible_decision_is_refused_with_a_next_step(
    database: Database, words: tuple[str, ...], named: str
) -> None:
    run_id = waiting(database)
    done = run_command(*words)
    assert (done.exit_code, done.stdout) == (1, "")
    assert named in done.stderr
    assert "next: " in done.stderr
    assert status_of(database, run_id)[0] == "waiting"


def test_a_decision_without_a_reason_is_bad_usage(database: Database) -> None:
    run_id = waiting(database)
    assert run_command("approve", "reviews").exit_code == 2
    assert status_of(database, run_id)[0] == "waiting"


def test_reconcile_without_a_server_ends_dead_runs_and_overdue_approvals(database: Database) -> None:
    overdue = waiting(database, hours=-1)
    dead, _ = judged_version(database, day=1)
    done = run_command("reconcile")
    assert done.exit_code == 0, done.output
    assert "reviews, night 2026-03-01: held" in done.stdout
    assert "reviews, night 2026-03-02: failed" in done.stdout
    assert (status_of(database, overdue)[0], status_of(database, dead.run_id)[0]) == ("held", "failed")
    assert "2026-03" not in run_command("reconcile").stdout
