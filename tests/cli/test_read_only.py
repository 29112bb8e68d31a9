"""Commands that read, on a home that this user may not write to, and as a role that may read the views alone."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import psycopg
import pytest

from benchmarks.fleet import move_rows
from nightgate.database.schema import METADATA
from nightgate.database.transactions import Database, upgrade
from nightgate.database.views import VIEWS
from nightgate.home import existing_home
from nightgate.reports.facts import gather
from nightgate.runs.evidence_store import first_seen, load_evidence

pytestmark = pytest.mark.process

FIXTURE = Path(__file__).parents[1] / "fixtures" / "earlier_home.tar.xz"
RUN_EACH = """
import json, sys, time
from typer.testing import CliRunner
from nightgate.cli.app import app
for command in json.loads(sys.argv[1]):
    begun = time.monotonic()
    done = CliRunner().invoke(app, command)
    print(json.dumps([done.exit_code, time.monotonic() - begun, done.stdout, done.stderr]))
"""
READING = [
    ["history", "small", "--format", "json"],
    ["status"],
    ["history"],
    ["history", "small"],
    ["history", "small", "--changes"],
    ["history", "small", "--epochs"],
    ["history", "small", "--slices", "--since", "2026-01-05"],
    ["champion", "small"],
    ["champion", "small", "--at", "2026-01-09T12:00"],
    ["versions", "small"],
    ["snapshots", "small"],
    ["quarantine", "small"],
    ["report", "small", "--output", "page.html"],
    ["report", "--all", "--output", "all.html"],
    ["compare", "small", "1", "3"],
    ["gate", "power", "small"],
    ["gate", "replay", "small"],
    ["check", "fixed.toml"],
]
# The sample has rows up to this minute: two checks of it may differ.
FIXED = """
name = "fixed"
[data]
source = { kind = "files", paths = ["fixed.csv"] }
text = "text"
label = "label"
labels = ["good", "bad"]
"""


class Done(NamedTuple):
    exit_code: int
    seconds: float
    stdout: str
    stderr: str


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a home of six nights, as another user owns it: it can be read and not written to."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    upgrade(f"sqlite:///{tmp_path / 'home' / 'metrics.db'}")
    forbid(tmp_path / "home")
    (tmp_path / "fixed.toml").write_text(FIXED)
    rows = [f"chapter {row} is {label},{label}" for row in range(50) for label in ("good", "bad")]
    (tmp_path / "fixed.csv").write_text("\n".join(["text,label", *rows]))
    yield tmp_path
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path / "home")], check=True)


def forbid(home: Path) -> None:
    subprocess.run(["chmod", "-R", "a-w", str(home)], check=True)


def without_rights() -> list[str]:
    """The begin of a command that gives it no right to write to what is read-only, as root has it."""
    if os.geteuid() != 0:
        return []
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    if not shutil.which("setpriv") or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("root may write every file, and setpriv cannot take that right away here")
    return prefix


def as_reader(folder: Path, *commands: list[str], **environment: str) -> list[Done]:
    """Run commands in one process that has no right to write to what is read-only."""
    return run_each(folder, commands, environment, without_rights())


def run_each(
    folder: Path, commands: Sequence[list[str]], environment: Mapping[str, str], prefix: Sequence[str] = ()
) -> list[Done]:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", RUN_EACH, json.dumps(commands)],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(Path(__file__).parents[2]), "NIGHTGATE_HOME": str(folder / "home")}
        | {"PREFECT_API_URL": "http://127.0.0.1:1/api"}
        | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Done(*json.loads(line)) for line in done.stdout.splitlines()]


def test_everything_that_reads_works_without_the_right_to_write(folder: Path) -> None:
    results = as_reader(folder, *READING, ["db", "backup", str(folder / "copy.db")])
    for command, done in zip(READING, results, strict=False):
        assert done.exit_code == 0, (command, done.stderr)
    assert len(json.loads(results[0].stdout)) == 6
    assert results[-1].exit_code == 0, results[-1].stderr
    with closing(sqlite3.connect(folder / "copy.db")) as copy:
        assert copy.execute("SELECT COUNT(*) FROM nights").fetchone() == (6,)
    assert not list((folder / "home").glob("metrics.db-*"))


@pytest.fixture
def analyst(folder: Path, postgres: Any, migrated: Any) -> Iterator[tuple[str, str]]:
    """The home's rows in PostgreSQL: the URLs of the owner, and of a role that may read its views."""
    name = postgres.create(template=migrated("postgresql", postgres))
    home = existing_home(folder / "home", only_read=True)
    urls = (f"sqlite:///{home.root / 'metrics.db'}", postgres.url(name))
    source, target = (Database.open(home, url, any_home=True) for url in urls)
    with source, target:
        move_rows(source, target)
    postgres.execute("CREATE ROLE analyst LOGIN")
    owner = {"NIGHTGATE_DATABASE_URL": postgres.url(name)}
    [granted] = run_each(folder, [["db", "grant-reader", "analyst"]], owner)
    assert granted.exit_code == 0, granted.stderr
    yield postgres.url(name), postgres.url(name, user="analyst")
    postgres.drop(name)
    postgres.execute("DROP ROLE analyst")


@pytest.mark.database
def test_everything_that_reads_works_with_rights_on_the_views_alone(
    folder: Path, analyst: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, reader = analyst
    reports = of_each_night(folder)
    with monkeypatch.context() as environment:
        environment.setenv("NIGHTGATE_DATABASE_URL", reader)
        assert of_each_night(folder) == reports
    of_file = as_reader(folder, *READING)
    commands = [*READING, ["db", "export", str(folder / "parquet")]]
    results = run_each(folder, commands, {"NIGHTGATE_DATABASE_URL": reader})
    failed = {" ".join(command): done.stderr for command, done in zip(commands, results, strict=True) if done.exit_code}
    assert failed == {}
    assert [done.stdout for done in results[:-1]] == [done.stdout for done in of_file]
    assert len(pd.read_parquet(folder / "parquet" / "nights.parquet")) == 6

    def forbidden(name: str) -> bool:
        with psycopg.connect(reader) as connection:
            try:
                connection.execute(f"SELECT 1 FROM {name} LIMIT 1")
            except psycopg.errors.InsufficientPrivilege:
                return True
        return False

    tables = [*METADATA.tables, "alembic_version"]
    assert {name for name in [*VIEWS, *tables] if forbidden(name)} == set(tables)
    # A later version adds a view.
    with psycopg.connect(owner) as connection:
        connection.execute("DROP VIEW gate_checks")
        # Which the last revision adds.
        connection.execute("ALTER TABLE document_value RENAME COLUMN is_default TO earlier_is_default")
        connection.execute("UPDATE alembic_version SET version_num = '0020'")
    upgrade(owner)
    assert not forbidden("gate_checks")


def of_each_night(folder: Path) -> list[Any]:
    """What a report shows of each night, and since when its test rows are known."""
    home = existing_home(folder / "home", only_read=True)
    found: list[Any] = []
    with Database.open(home) as db:
        for run_id in db.frame("SELECT run_id FROM nights ORDER BY night")["run_id"]:
            found.append(gather(home, run_id, snapshots=False))
            if found[-1].run["verdict"]:
                rows = list(load_evidence(db, run_id).test.fingerprints)
                found.append(first_seen(db, "small", rows, datetime(2026, 1, 8, tzinfo=UTC)).tolist())
    return found


@pytest.mark.database
def test_rights_that_cannot_be_granted_are_refused_with_the_next_step(folder: Path, analyst: tuple[str, str]) -> None:
    owner, reader = analyst
    everybody, app = '"PUBLIC"', '"the \'o%wner"'  # a role of that name is not everybody
    with psycopg.connect(owner) as connection:
        connection.execute(f"CREATE ROLE {everybody}")
        connection.execute(f"CREATE ROLE {app} LOGIN")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {app}")
        for view in set(VIEWS) - {"settings"}:
            connection.execute(f"ALTER VIEW {view} OWNER TO {app}")
        connection.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
        connection.execute(f"GRANT USAGE ON SCHEMA public TO {app}")
    asked = ["db", "grant-reader", "PUBLIC"]
    [of_file] = as_reader(folder, asked)
    [not_owner] = run_each(folder, [asked], {"NIGHTGATE_DATABASE_URL": reader})
    of_app = owner.replace("postgres:@", "the%20%27o%25wner:@", 1)
    [half_owner] = run_each(folder, [asked], {"NIGHTGATE_DATABASE_URL": of_app})
    unknown, granted = run_each(folder, [["db", "grant-reader", 'no "one"'], asked], {"NIGHTGATE_DATABASE_URL": owner})
    with psycopg.connect(owner) as connection:
        query = "SELECT v FROM unnest(%s::text[]) AS v WHERE has_table_privilege('public', v, 'SELECT')"
        readable_by_all = connection.execute(query, [[*VIEWS]]).fetchall()
        connection.execute(f"REASSIGN OWNED BY {app} TO postgres")
        for role in (everybody, app):
            connection.execute(f"DROP OWNED BY {role}")
            connection.execute(f"DROP ROLE {role}")
    results = (of_file, unknown, not_owner, half_owner, granted)
    assert [done.exit_code for done in results] == [2, 2, 1, 1, 0], results
    assert "nightgate db backup FILE" in of_file.stderr
    assert 'CREATE ROLE "no ""one""" LOGIN' in " ".join(unknown.stderr.split())
    assert "NIGHTGATE_DATABASE_URL" in not_owner.stderr
    assert "USAGE on the schema public and SELECT on settings," in " ".join(half_owner.stderr.split())
    assert readable_by_all == []


def test_what_this_user_may_not_even_look_for_is_an_error_in_words(folder: Path) -> None:
    shut = folder / "shut"
    shut.mkdir()
    base_model = f'training.base_model="{shut}/model"'
    shut.chmod(0)
    try:
        results = as_reader(
            folder,
            ["status"],
            ["db", "backup", str(folder / "copy.db")],
            ["run", "sample", "--no-prefect", "--set", base_model],
            NIGHTGATE_DATABASE_URL=f"sqlite:///{shut}/metrics.db",
        )
        results += as_reader(folder, ["db", "backup", str(shut / "copy.db")])
    finally:
        shut.chmod(0o755)
    for done in results:
        assert done.exit_code == 1, done
        assert "Traceback" not in done.stderr
        assert f"{shut}" in done.stderr
        assert "next: give this user the right" in done.stderr


@pytest.mark.slow
def test_the_champion_predicts_and_doctor_checks_all_it_can(folder: Path) -> None:
    predicted, examined = as_reader(folder, ["predict", "small", "great shoes"], ["doctor", "--format", "json"])
    assert predicted.exit_code == 0, predicted.stderr
    findings = json.loads(examined.stdout)
    assert examined.exit_code == 1
    assert {one["check"] for one in findings if one["status"] == "problem"} == {"home", "database", "prefect server"}
    assert {"database file", "champions", "versions"} <= {one["check"] for one in findings if one["status"] == "ok"}


@pytest.mark.slow
@pytest.mark.database
def test_models_are_used_and_examined_by_a_role_that_reads_the_views(folder: Path, analyst: tuple[str, str]) -> None:
    subprocess.run(["chmod", "-R", "u+w", str(folder / "home")], check=True)
    commands = (
        ["predict", "small", "great shoes"],
        ["gate", "replay", "small", "--rescore"],
        ["push", "small", "champion", "owner/name", "--dry-run"],
        ["doctor", "--format", "json"],
    )
    url = {"NIGHTGATE_DATABASE_URL": analyst[1]}
    predicted, replayed, pushed, examined = run_each(folder, commands, url | {"HF_HUB_OFFLINE": "1"})
    assert (predicted.exit_code, replayed.exit_code) == (0, 0), (predicted.stderr, replayed.stderr)
    assert "model.safetensors" in pushed.stdout, pushed.stderr  # what comes then needs the hub
    problems = [one for one in json.loads(examined.stdout) if one["status"] == "problem"]
    assert {one["check"] for one in problems} == {"database", "prefect server"}, problems
    assert "cannot write" in problems[0]["found"]


@pytest.mark.slow
def test_what_writes_is_refused_at_once(folder: Path) -> None:
    done, *_ = as_reader(folder, ["freeze", "small", "--reason", "test"])
    assert done.exit_code == 1
    assert "read-only" in done.stderr
    assert done.seconds < 10


@pytest.mark.slow
def test_changes_that_only_a_writer_can_apply_are_reported_at_once(folder: Path) -> None:
    """As after `kill -9` of a night: SQLite's log of changes beside the file, without its index."""
    database = folder / "home" / "metrics.db"
    subprocess.run(["chmod", "-R", "u+w", str(folder / "home")], check=True)
    with closing(sqlite3.connect(database)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("INSERT INTO setting VALUES ('key', 'value')")
        writer.commit()
        log = Path(f"{database}-wal").read_bytes()
    Path(f"{database}-wal").write_bytes(log)
    forbid(folder / "home")
    done, *_ = as_reader(folder, ["history", "small"])
    assert done.exit_code == 1
    assert "write to its folder" in done.stderr
    assert done.seconds < 10


@pytest.mark.slow
def test_a_home_that_cannot_be_read_is_an_error_in_words(folder: Path) -> None:
    (folder / "home").chmod(0)
    try:
        done, *_ = as_reader(folder, ["history", "small"])
    finally:
        (folder / "home").chmod(0o755)
    assert done.exit_code == 1
    assert "cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
