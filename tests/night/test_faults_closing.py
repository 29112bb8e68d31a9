"""kill -9 before every write behind the verdict of a night, and the four ways that finish what was left.

The nights that are killed come from one stored home; what each moment left is copied for each way. A promotion is
finished in all four ways at each write, other ends, which share most of its writes, in one, taken in turns.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from flows.events import event_id
from flows.reconcile import reconcile_now
from nightgate.cli.app import app
from nightgate.database.transactions import Database
from nightgate.home import open_home
from nightgate.runs.run_row import RunRow, read_run
from tests.support.after_verdict import CHECKPOINTS, Case, State, announce, killed
from tests.support.first_night import copy_first_night, first_night
from tests.support.night_rows import within

pytestmark = [pytest.mark.flow, pytest.mark.faults, pytest.mark.timeout(1800)]

ENDS = {
    "promoted": Case(day=7),
    # Up to their version they are as a night that promotes.
    "held": Case(day=7, min_f1=1.0, is_registered=True),
    "waiting": Case(day=7, approval=True, is_registered=True),
    "skipped": Case(day=7, min_f1=1.0, scheduled=True),
}


def same_command(case: Case, server: str) -> None:
    if State.of(case).status not in ENDS:
        # What is left of the night, which the command would train for.
        retry(replace(case, flow_run_id=None), server)
        return
    settings = [part for name, value in case.settings.items() for part in ("--set", f"{name}={value}".lower())]
    with temporary_settings({PREFECT_API_URL: server}):
        done = CliRunner().invoke(app, ["run", str(first_night().pipeline), "--night", str(case.date), *settings])
    assert done.exit_code == 0, done.output


def retry(case: Case, server: str) -> None:
    case.run()
    announce(server)


def reconcile(_: Case, server: str) -> None:
    with temporary_settings({PREFECT_API_URL: server}):
        reconcile_now().check()


def next_night(case: Case, server: str) -> None:
    replace(case, day=case.day + 1, scheduled=False, flow_run_id=None).run()
    announce(server)


WAYS: dict[str, Callable[[Case, str], None]] = {
    "the same command": same_command,
    "a retry": retry,
    "reconcile": reconcile,
    "the next night": next_night,
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Path:
    """A champion, version 1, and version 2, which was held and whose files the next sweep removes."""
    home = tmp_path_factory.mktemp("stored") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTGATE_HOME", str(home))
        copy_first_night(home)
        assert Case(day=6, min_f1=1.0).run().status == "held"
        announce(prefect_server)
    return home


def put(source: Path, home: Path) -> None:
    """Make `home` a copy of `source`, with its hard links: a version has the files of its checkpoint."""
    shutil.rmtree(home, ignore_errors=True)
    subprocess.run(["cp", "-a", source, home], check=True)


def wanted(end: str, left: State, way: str) -> State:
    """The state that a way must lead to."""
    is_left = left.status == "running" and way in {"reconcile", "the next night"}
    status = "failed" if is_left else end
    if (status, way) == ("waiting", "the next night"):
        status = "superseded"
    if (status, left.status) == ("skipped", "running"):
        status = "held"  # a resumed run is never skipped
    return State(
        status=status,
        report=status,
        is_closed=True,
        is_announced=True,
        champions=left.champions,
        link="",
        # A night that failed can be resumed.
        checkpoints=tuple(sorted(CHECKPOINTS)) if is_left and end != "skipped" else (),
        left=(),
    )


@pytest.mark.parametrize("end", ENDS)
def test_each_way_finishes_what_a_killed_night_left(
    end: str, stored: Path, environment: Path, tmp_path: Path, prefect_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case, dead, note = replace(ENDS[end], flow_run_id=str(uuid.uuid4())), tmp_path / "dead", tmp_path / "note"
    ends, lines, wrong = set[RunRow](), [], []
    for at in itertools.count(1):
        put(stored, environment)
        if not killed(case, at, "", note, prefect_server):
            ends |= announced(case)
            break
        left = State.of(case)
        put(environment, dead)
        good = []
        for way in WAYS if end == "promoted" else [list(WAYS)[at % len(WAYS)]]:
            put(dead, environment)
            WAYS[way](case, prefect_server)
            found, expected = State.of(case), wanted(end, left, way)
            if way != "reconcile" and len(found.champions) == 1:
                # The killed night itself, or the next one, may have promoted since.
                expected = replace(expected, champions=found.champions)
            if found == expected:
                good.append(way)
            else:
                moment = f"{at} ({note.read_text()}), {way}"
                wrong.append(f"{moment}:\n  found  {found}\n  wanted {expected}\n  left   {left}")
            ends |= announced(case)
        lines.append(f"| {at} | {note.read_text()[:60]} | {described(left)} | {', '.join(good)} |")
    with capsys.disabled():
        print(f"\n{end}: killed before {len(lines)} writes\n| | before | left | finished by |\n|---|---|---|---|")
        print("\n".join(lines))
    assert wrong == [], "\n".join(wrong)
    assert len(lines) > {"promoted": 45, "held": 25, "waiting": 25, "skipped": 5}[end]
    ids, run_ids = {str(event_id(one)) for one in ends}, {one.run_id for one in ends}
    with suppress(AssertionError):  # the comparison shows which
        within(60, lambda: set(events(prefect_server, run_ids)) == ids)
    assert Counter(events(prefect_server, run_ids)) == Counter(ids)


def described(left: State) -> str:
    """What was not as it has to be."""
    facts = {
        f"link: {left.link}": left.link,
        f"report: {left.report or 'none'}": left.report != left.status,
        "checkpoints": left.checkpoints,
        ", ".join(left.left): left.left,
        "not announced": not left.is_announced,
    }
    return "; ".join([left.status, *(fact for fact, is_so in facts.items() if is_so)])


def announced(case: Case) -> set[RunRow]:
    """The runs, of the case's night and later ones, whose end was announced."""
    query = "SELECT run_id FROM run WHERE announced_at IS NOT NULL AND night >= :night"
    with Database.open(open_home()) as db:
        return {read_run(db, run_id) for run_id in db.frame(query, {"night": str(case.date)})["run_id"]}


def events(server: str, run_ids: set[str]) -> list[str]:
    """The ids of the events about the ends of these runs."""
    wanted = {"event": {"prefix": ["nightgate."]}}
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        answer = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 50}).json()
        found = answer["events"]
        while answer["next_page"]:
            answer = client.request("GET", answer["next_page"]).json()
            found += answer["events"]
    return [one["id"] for one in found if one["payload"].get("run_id") in run_ids]
