"""kill -9 before every write of a refresh and at random moments: the next one ends as an undisturbed one does."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nightgate.data.snapshots import MANIFEST_FILE, SPLITS, open_snapshot
from nightgate.database import transactions
from nightgate.database.connection import make_engine
from nightgate.home import open_home
from tests.support import dying

ROOT = Path(__file__).resolve().parents[2]
NIGHTS = (date(2026, 3, 1), date(2026, 3, 2))
PIPELINE = """
name = "killed"
[data]
source = {{ kind = "sql", url_env = "SHOP", table = "reviews" }}
id = "id"
text = "body"
label = "stars"
labels = [1, 5]
time = "written"
updated = "changed"
deleted = "gone"
[training]
base_model = "{model}"
"""

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Site:
    """A home after its first night, and a table in which everything has happened since that can happen."""

    pipeline: Path
    home: Path

    def copy(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make `home` a copy, which this test and the processes that it starts use."""
        shutil.copytree(self.home, home, symlinks=True)
        monkeypatch.setenv("NIGHTGATE_HOME", str(home))

    def start(self, at: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.dying", str(at), "refresh", str(self.pipeline), str(NIGHTS[1])],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


def write(table: Path, night: int, number: int) -> None:
    """`number` new rows a night; on the second also edits, deletions, copies and rows that are of no use."""
    random.seed(night)
    instant = datetime.combine(NIGHTS[night], datetime.min.time()) + timedelta(hours=3)
    with closing(sqlite3.connect(table)) as connection, connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS reviews (id INTEGER PRIMARY KEY, body, stars, written, changed, gone)"
        )
        rows = [
            (f"Kettle {night}.{row}: {random.choice(('fine', 'broken'))}", random.choice((1, 5)), row)
            for row in range(number)
        ]
        if night:
            rows += [(None, 5, 0), ("No star", 3, 0), ("Kettle 0.1: fine", 5, 0), ("Kettle 0.2: fine", 1, 0)]
        times = [str(instant - timedelta(seconds=30 + row[2])) for row in rows]
        connection.executemany(
            "INSERT INTO reviews (body, stars, written, changed, gone) VALUES (?, ?, ?, ?, 0)",
            [(*row[:2], when, when) for row, when in zip(rows, times, strict=True)],
        )
        if night:
            late = str(instant - timedelta(minutes=5))
            connection.execute("UPDATE reviews SET body = body || '!', changed = ? WHERE id % 17 = 0", (late,))
            connection.execute("UPDATE reviews SET stars = 6 - stars, changed = ? WHERE id % 23 = 0", (late,))
            connection.execute("UPDATE reviews SET gone = 1, changed = ? WHERE id % 29 = 0", (late,))


@pytest.fixture(params=[300])
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    found = Site(tmp_path / "killed.toml", tmp_path / "first")
    found.pipeline.write_text(PIPELINE.format(model=model))
    monkeypatch.setenv("SHOP", f"sqlite:///{tmp_path / 'shop.db'}")
    monkeypatch.setenv("NIGHTGATE_HOME", str(found.home))
    transactions.upgrade(f"sqlite:///{open_home(found.home).root / 'metrics.db'}")
    write(tmp_path / "shop.db", 0, request.param)
    refresh(found, NIGHTS[0])
    write(tmp_path / "shop.db", 1, request.param)
    return found


def refresh(site: Site, night: date) -> None:
    dying.refresh(site.pipeline, night, lambda run: run.finish("skipped", "only the rows are of interest"))


def state(home: Path) -> dict[str, Any]:
    """All that a refresh leaves: rows, counts, where the source goes on; and that nothing else is left."""
    folder = home / "snapshots" / "killed"
    with make_engine(f"sqlite:///{home / 'metrics.db'}").connect() as connection:
        found = connection.exec_driver_sql(f"SELECT snapshot_id FROM nights WHERE night = '{NIGHTS[1]}'").scalar()
        counts = connection.exec_driver_sql(
            "SELECT night, part, rows_seen, rows_taken, rows_merged, rows_replaced, rows_deleted, rows_quarantined, "
            "rows_conflicting, rows_future FROM refresh_counts ORDER BY night, part"
        ).all()
        bad = connection.exec_driver_sql("SELECT reason, excerpt FROM quarantined_rows ORDER BY 1, 2").all()
    snapshot = open_snapshot(folder / str(found))
    rows = {split: snapshot.rows(split).to_csv(index=False) for split in SPLITS}
    tip = json.loads((folder / "tip.json").read_text())
    # A snapshot's own draft, a few kilobytes, is removed a day later.
    assert not list(folder.rglob(".*.tmp"))
    named = set()
    for head in (tip["head"], *(json.loads(path.read_text())["head"] for path in folder.glob(f"*/{MANIFEST_FILE}"))):
        while head:
            named.add(head["delta"])
            head = json.loads((folder / "deltas" / head["delta"] / "delta.json").read_text())["parent"]
    assert {path.name for path in (folder / "deltas").iterdir()} == named
    nights = [night["snapshot"] for night in tip["nights"]]
    return {
        "snapshot": snapshot.id,
        "rows": rows,
        "counts": counts,
        "bad": bad,
        "after": tip["after"],
        "nights": nights,
    }


def undisturbed(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    site.copy(tmp_path / "undisturbed", monkeypatch)
    refresh(site, NIGHTS[1])
    return state(tmp_path / "undisturbed")


def finished(site: Site, home: Path) -> dict[str, Any]:
    """The state after the refresh that follows a death."""
    refresh(site, NIGHTS[1])
    found = state(home)
    shutil.rmtree(home)
    return found


def test_killed_before_any_write_the_next_refresh_ends_as_an_undisturbed_one(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = undisturbed(site, tmp_path, monkeypatch)
    assert len(expected["counts"]) == 2
    for at in itertools.count(1):
        home = tmp_path / f"killed-{at}"
        site.copy(home, monkeypatch)
        process = site.start(at)
        _, errors = process.communicate()
        assert process.returncode in {0, -signal.SIGKILL}, errors.decode()
        assert finished(site, home) == expected, f"killed before write {at}"
        if process.returncode == 0:
            break
    assert at > 20


@pytest.mark.parametrize("site", [20_000], indirect=True)
def test_killed_at_any_moment_the_next_refresh_ends_as_an_undisturbed_one(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = undisturbed(site, tmp_path, monkeypatch)
    random.seed(1)
    site.copy(tmp_path / "timed", monkeypatch)
    with site.start(10**9) as process:
        began = time.monotonic()
        process.wait()
        longest = time.monotonic() - began
    deaths = 0
    for number in range(50):
        home = tmp_path / f"killed-{number}"
        site.copy(home, monkeypatch)
        with site.start(10**9) as process:
            began = time.monotonic()
            try:
                process.wait(random.uniform(0.4, 1) * longest)
                longest = time.monotonic() - began  # the machine has become faster
            except subprocess.TimeoutExpired:
                process.kill()
                longest *= 1.02  # or slower
        deaths += process.returncode == -signal.SIGKILL
        assert finished(site, home) == expected, f"kill number {number}"
    assert deaths > 25
