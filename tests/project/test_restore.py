"""The page on backup and restore, followed to the letter: its commands are run as they stand there."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nightgate.database.transactions import Database, upgrade
from nightgate.home import open_home
from nightgate.operations import integrity_checks
from nightgate.registry.champions import load_champion
from tests.support import night_rows

pytestmark = [pytest.mark.slow, pytest.mark.process]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "restore.md").read_text(encoding="utf-8")


def commands(heading: str) -> list[str]:
    """The shell blocks below a heading of the page."""
    [section] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


def follow(block: str, folder: Path, **environment: str) -> None:
    """Run a block in a shell that stops at the first command that fails, with `nightgate` of this installation."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    script = tools / "nightgate"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nightgate.cli.app "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    of_page = {"NIGHTGATE_HOME": str(folder / "home"), "BACKUP": str(folder / "another disk" / "2026-01-12")}
    of_page |= {"PATH": f"{tools}:{environment.pop('PATH', '')}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-euc", block],
        cwd=folder,
        env=os.environ | of_page | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def files(home: Path) -> dict[str, str]:
    """Digest of every file of a home besides the database, by relative path; the target of a link."""
    found = {}
    for path in sorted(home.rglob("*")):
        name = path.relative_to(home).as_posix()
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file() and not name.startswith("metrics.db"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_a_lost_home_is_restored(environment: Path, tmp_path: Path) -> None:
    with tarfile.open(ROOT / "tests" / "fixtures" / "earlier_home.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    upgrade(f"sqlite:///{environment / 'metrics.db'}")
    with Database.open(open_home()) as db:
        nights = db.frame("SELECT * FROM nights WHERE status <> 'waiting' ORDER BY night")
    before = files(environment)
    [back_up] = commands("Back up")
    follow(back_up, tmp_path)
    shutil.rmtree(environment)
    [restore] = commands("Restore")
    follow(restore, tmp_path)
    after = files(environment)
    # `reconcile` ends the night that waits for an approval, which is overdue: its report says so.
    ended = {
        name
        for name in before
        if name.startswith("locks/") or re.fullmatch(r"runs/small-20260111-\w+/report\.html", name)
    }
    assert {name for name in before if after.get(name) != before[name]} <= ended
    with Database.open(open_home()) as db:
        assert db.frame("SELECT * FROM nights WHERE night < '2026-01-11' ORDER BY night").equals(nights)
    assert {one.status for one in integrity_checks.examine()} == {"ok"}
    assert load_champion("small").predict(["great shoes"])


@pytest.mark.database
def test_a_lost_database_of_a_server_is_restored(postgres: Any, tmp_path: Path, migrated: Any) -> None:
    [(tools,)] = postgres.execute("SELECT setting FROM pg_config WHERE name = 'BINDIR'")
    if not Path(tools, "pg_dump").exists():
        pytest.skip(f"the server's own tools are not in {tools}")
    first, second = postgres.create(template=migrated("postgresql", postgres)), postgres.create()
    home = open_home(tmp_path / "home")
    with Database.open(home, postgres.url(first)) as db:
        night_rows.held_version(db)
        before = db.frame("SELECT * FROM nights")
    back_up, restore = commands("With PostgreSQL")
    follow(back_up, tmp_path, PATH=tools, NIGHTGATE_DATABASE_URL=postgres.url(first))
    follow(restore, tmp_path, PATH=tools, NIGHTGATE_DATABASE_URL=postgres.url(second))
    with Database.open(home, postgres.url(second)) as db:
        assert db.frame("SELECT * FROM nights").equals(before)
    for name in (first, second):
        postgres.drop(name)
