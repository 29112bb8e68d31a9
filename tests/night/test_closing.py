"""What follows the end of a night is finished after kill -9 by whatever runs next: a few of the moments and ways.

`test_faults_closing` has all of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from typer.testing import CliRunner

from flows.reconcile import reconcile_now
from nightgate.cli.app import app
from nightgate.database.transactions import Database
from nightgate.night.closing import close_ended
from nightgate.runs import lifecycle
from tests.conftest import free_port
from tests.support import night_rows
from tests.support.after_verdict import Case, State, killed
from tests.support.first_night import copy_first_night, first_night

pytestmark = pytest.mark.process

CASE = Case(flow_run_id="6f1ae2a8-0c5c-4d0f-9a35-1d1f8d7a4c11")


def same_command() -> None:
    done = CliRunner().invoke(app, ["run", str(first_night().pipeline), "--night", str(CASE.date), "--no-prefect"])
    assert done.exit_code == 0, done.output


def retry() -> None:
    assert CASE.run().status == "promoted"


def reconcile() -> None:
    # Without a server: all but the events.
    nowhere = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: nowhere, PREFECT_CLIENT_MAX_RETRIES: 0}):
        closed = [[one.status for one in reconcile_now().closed] for _ in range(2)]
    assert closed == [["promoted"], []]


def next_night() -> None:
    assert replace(CASE, day=CASE.day + 1, min_f1=1.0).run().status == "held"


@pytest.mark.parametrize(
    ("write", "finish"),
    [
        pytest.param("symlink", same_command, id="the link, the same command"),
        pytest.param("remove state.json", retry, id="a checkpoint, a retry"),
        pytest.param("rename /runs", reconcile, id="the report, reconcile"),
        pytest.param("UPDATE run SET closed_at", next_night, id="the record of all, the next night"),
    ],
)
def test_what_follows_a_promotion_is_finished(
    environment: Path, tmp_path: Path, write: str, finish: Callable[[], None]
) -> None:
    copy_first_night(environment)
    assert killed(CASE, 1, write, tmp_path / "note.txt")
    left = State.of(CASE)
    assert (left.status, left.champions, left.is_closed) == ("promoted", (2,), False)
    finish()
    assert State.of(CASE) == State(
        status="promoted",
        report="promoted",
        is_closed=True,
        is_announced=False,
        champions=(2,),
        link="",
        checkpoints=(),
        left=(),
    )


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_report_that_cannot_be_written_is_written_by_the_next_call(database: Database) -> None:
    run = night_rows.opened(database)
    lifecycle.finish_run(database, run.run_id, 1, "held")
    in_the_way = database.home.runs / run.run_id / "report.html"
    in_the_way.mkdir(parents=True)
    (in_the_way / "anything").touch()
    assert close_ended(database, "reviews") == []
    shutil.rmtree(in_the_way)
    assert [one.run_id for one in close_ended(database, "reviews")] == [run.run_id]
    assert in_the_way.is_file()
    assert close_ended(database, "reviews") == []
