"""kill -9 before every write of a promotion, an approval, a rollback and a sweep: the old state or the new one."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nightgate.database.transactions import Database
from nightgate.registry import champion_link, freezes, retention, versions
from nightgate.runs.run_row import read_run
from tests.support import night_rows
from tests.support.dying import keeping_one

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def prepare(database: Database, pipeline: str, *, waits: bool = False) -> str:
    """Version 2 is champion after 1, and the anchor; 3 is a candidate whose run runs or waits. Returns the run's id."""
    for day in range(2):
        night_rows.held_version(database, day, name=pipeline)
    opened, _ = night_rows.judged_version(database, 2, name=pipeline)
    for version in (1, 2) if waits else (1, 2, 3):
        folder = database.home.models / pipeline / f"v{version:04d}"
        folder.mkdir(parents=True)
        for name in ("model.safetensors", "config.json"):
            (folder / name).write_bytes(b"x")
    night_rows.promote(database, 1, name=pipeline)
    night_rows.promote(database, 2, 1, name=pipeline, moves_anchor=True)
    if waits:
        night_rows.await_approval(database, opened, 2)
    return opened.run_id


def state(database: Database, pipeline: str) -> dict[str, Any]:
    """Everything that a promotion or a rollback changes."""

    def column(query: str) -> list[Any]:
        return database.frame(f"{query} WHERE pipeline = :pipeline", {"pipeline": pipeline}).iloc[:, 0].tolist()

    return {
        "champion": night_rows.champion(database, pipeline).version,
        "anchor": night_rows.anchor(database, pipeline).version,
        "champions": [one.version for one in reversed(night_rows.promotions(database, pipeline))],
        "anchors": len(column("SELECT model_version FROM anchor_timeline")),
        "versions": [row.status for row in versions.versions(database, pipeline)],
        "removed": [row.version for row in versions.versions(database, pipeline) if row.files_removed_at],
        "runs": sorted(column("SELECT status FROM nightly_runs")),
        "decisions": sorted(map(str, column("SELECT decision FROM approvals"))),
        "frozen": freezes.frozen(database, pipeline) is not None,
    }


def deaths(operation: str, prepared: Callable[[str], str]) -> Iterator[tuple[str, bool]]:
    """Run the operation on one pipeline after another, each time killed one write later, until one run completes.

    Yields the pipeline and whether the process was killed.
    """
    for at in itertools.count(1):
        pipeline = f"{operation}-{at}"
        run_id = prepared(pipeline)
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.dying", str(at), operation, pipeline, run_id],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in {0, -signal.SIGKILL}, done.stderr
        yield pipeline, done.returncode != 0
        if done.returncode == 0:
            return


@pytest.mark.parametrize(("operation", "fewest"), [("promotion", 9), ("approval", 8), ("rollback", 8)])
def test_killed_before_any_write_the_state_is_the_old_or_the_new_one(
    database: Database, operation: str, fewest: int
) -> None:
    before = state(database, "old") if prepare(database, "old", waits=operation == "approval") else {}
    states, links = [], []
    for pipeline, died in deaths(operation, lambda name: prepare(database, name, waits=operation == "approval")):
        states.append(state(database, pipeline))
        links.append(champion_link.disagreement(database, database.home, pipeline))
        assert died or not links[-1]
        champion_link.repair(database, database.home, pipeline)
        link = champion_link.link_path(database.home, pipeline)
        assert str(link.readlink()) == f"v{states[-1]['champion']:04d}"
        names = {path.name for path in link.parent.iterdir()}
        # A correct link is not repaired: the next promotion removes a draft that is left.
        assert {name for name in names if not name.startswith(".champion-")} == {"champion", "v0001", "v0002", "v0003"}
        another = ({1, 2, 3} - {states[-1]["champion"]}).pop()
        night_rows.promote(database, another, states[-1]["champion"], pipeline, despite_quarantine=True)
        assert str(link.readlink()) == f"v{another:04d}"
        assert {path.name for path in link.parent.iterdir()} == {"champion", "v0001", "v0002", "v0003"}
    after = states[-1]
    commit = states.index(after)
    assert states == [before] * commit + [after] * (len(states) - commit)
    assert 0 < commit < len(states) - 1
    assert len(states) > fewest
    # The link is updated after the commit.
    assert all(not link for link in links[:commit])
    assert links[commit]
    print(f"{operation}: killed at {len(states) - 1} writes, the new state from write {commit + 1} on")


def test_the_next_sweep_finishes_one_that_was_killed(database: Database) -> None:
    def prepared(pipeline: str) -> str:
        run_id = prepare(database, pipeline)
        # This makes version 1 a former champion, which only the disk limit removes.
        run = read_run(database, run_id)
        night_rows.promote_itself(database, run, 3, 2, expected_anchor=2, moves_anchor=True)
        return run_id

    marked = []
    for pipeline, _ in deaths("sweep", prepared):
        [first, *others] = versions.versions(database, pipeline)
        folder = database.home.models / pipeline / "v0001"
        marked.append(first.files_removed_at is not None)
        # The folder is complete unless the row is marked.
        assert marked[-1] or len(list(folder.iterdir())) == 2
        assert all(row.files_removed_at is None for row in others)
        retention.sweep(database, database.home, keeping_one(pipeline))
        names = {path.name for path in folder.parent.iterdir()}
        assert names == {"champion", "v0002", "v0003"}
        assert versions.versions(database, pipeline)[0].files_removed_at is not None
    assert marked == sorted(marked)
    assert len(marked) > 5
