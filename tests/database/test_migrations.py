"""Migrations on both engines: to head, drift, concurrent upgrades, and the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import alembic
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from typer.testing import CliRunner

from nightgate.cli.app import app
from nightgate.database import connection as connections
from nightgate.database import earlier, schema
from nightgate.database import transactions as databases
from nightgate.database.transactions import Database
from nightgate.database.views import VIEWS
from nightgate.errors import DatabaseError
from nightgate.home import Home

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]


def views_and_tables(url: str) -> set[str]:
    engine = connections.make_engine(url)
    inspector = sa.inspect(engine)
    return {*inspector.get_table_names(), *inspector.get_view_names()}


def test_there_is_one_head_and_the_package_knows_it() -> None:
    assert ScriptDirectory(str(databases.migrations_folder())).get_heads() == [schema.HEAD]


def test_the_folder_of_the_migrations_does_not_shadow_alembic() -> None:
    assert not (ROOT / "alembic" / "__init__.py").exists()
    assert not Path(alembic.__file__).is_relative_to(ROOT / "alembic")


def test_blank_to_head_makes_every_table_and_view(database_url: str) -> None:
    assert databases.upgrade(database_url) == (None, schema.HEAD)
    assert views_and_tables(database_url) == {*schema.METADATA.tables, *VIEWS, "alembic_version"}


def test_an_upgrade_renews_views_of_an_earlier_revision(database_url: str) -> None:
    command.upgrade(databases.alembic_config(database_url), "0017")
    execute(database_url, "CREATE VIEW freezes AS SELECT pipeline FROM pipeline_freeze")
    assert databases.upgrade(database_url) == ("0017", schema.HEAD)
    columns = sa.inspect(connections.make_engine(database_url)).get_columns("freezes")
    assert [column["name"] for column in columns][:2] == ["pipeline", "frozen_at"]
    assert views_and_tables(database_url) >= {*VIEWS}


def test_an_upgrade_at_head_changes_nothing(migrated_url: str) -> None:
    assert databases.upgrade(migrated_url) == (schema.HEAD, schema.HEAD)


def test_models_and_migrations_do_not_drift(migrated_url: str) -> None:
    engine = connections.make_engine(migrated_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.METADATA) == []


def test_constraints_of_models_and_migrations_do_not_drift(tmp_path: Path) -> None:
    """Alembic does not compare checks, the rules of foreign keys and the conditions of indexes."""
    urls = [f"sqlite:///{tmp_path / name}" for name in ("models.db", "migrations.db")]
    with connections.make_engine(urls[0], create=True).begin() as connection:
        schema.METADATA.create_all(connection)
    databases.upgrade(urls[1])
    models, migrations = (sa.inspect(connections.make_engine(url)) for url in urls)
    for table in schema.METADATA.tables:
        for facts in ("get_check_constraints", "get_foreign_keys", "get_unique_constraints"):
            expected, found = (sorted(map(str, getattr(side, facts)(table))) for side in (models, migrations))
            assert found == expected, f"{facts} of {table}"
        conditions = [
            {index["name"]: str(index.get("dialect_options", {}).get("sqlite_where")) for index in indexes}
            for indexes in (side.get_indexes(table) for side in (models, migrations))
        ]
        assert conditions[0] == conditions[1], f"indexes of {table}"


def test_concurrent_upgrades_all_succeed(database_url: str) -> None:
    code = "import sys; from nightgate.database.transactions import upgrade; print(upgrade(sys.argv[1])[1])"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, database_url], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == [schema.HEAD] * 2
    assert databases.upgrade(database_url) == (schema.HEAD, schema.HEAD)


def test_an_upgrade_waits_for_a_running_one(database_url: str) -> None:
    with ThreadPoolExecutor() as other:
        with databases.migrating(database_url):
            waiting = other.submit(databases.upgrade, database_url)
            time.sleep(1)
            assert not waiting.done()
        assert waiting.result(30) == (None, schema.HEAD)


@pytest.mark.slow
def test_plain_alembic_upgrades_from_the_root_of_the_repository(
    database_url: str, monkeypatch: pytest.MonkeyPatch, environment: Path
) -> None:
    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", database_url)
    run_alembic("upgrade", "head")
    assert databases.upgrade(database_url) == (schema.HEAD, schema.HEAD)
    assert "No new upgrade operations" in run_alembic("check")
    monkeypatch.delenv("NIGHTGATE_DATABASE_URL")
    run_alembic("upgrade", "head")
    assert (environment / "metrics.db").exists()


def test_alembic_writes_the_sql_of_both_engines(dialect: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    urls = {"sqlite": f"sqlite:///{tmp_path / 'x.db'}", "postgresql": "postgresql://user@nowhere/none"}
    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", urls[dialect])
    assert "VIEW epoch_results AS" in run_alembic("upgrade", "head", "--sql")


def run_alembic(*arguments: str) -> str:
    return run_python("-m", "alembic", *arguments, folder=ROOT, path=ROOT)


def run_python(*arguments: str, folder: Path, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_migrations_are_found_in_an_installed_package(tmp_path: Path) -> None:
    """With the layout of the wheel, in an empty folder and a fresh process."""
    site = tmp_path / "site"
    shutil.copytree(ROOT / "nightgate", site / "nightgate", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "alembic", site / "nightgate" / "_migrations", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "from nightgate.database import transactions as d; print(d.migrations_folder()); d.upgrade('sqlite:///new.db')"
    )
    assert str(site / "nightgate" / "_migrations") in run_python("-c", code, folder=tmp_path, path=site)
    assert (tmp_path / "new.db").exists()


def execute(url: str, *statements: str) -> None:
    with connections.make_engine(url, create=True).begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@pytest.mark.parametrize(("revision", "step"), [("0017", "nightgate db upgrade"), ("0015", earlier.COMMIT)])
def test_an_older_database_is_refused_with_the_command_that_upgrades_it(
    migrated_url: str, home: Home, revision: str, step: str
) -> None:
    execute(migrated_url, f"UPDATE alembic_version SET version_num = '{revision}'")
    with pytest.raises(DatabaseError, match=rf"{revision}(?s:.*){step}"):
        Database.open(home, migrated_url)
    if revision in earlier.TOO_OLD:
        with pytest.raises(DatabaseError, match=rf"{revision}(?s:.*){step}"):
            databases.upgrade(migrated_url)


def test_a_newer_database_is_refused_and_unchanged(migrated_url: str, home: Home) -> None:
    execute(migrated_url, "UPDATE alembic_version SET version_num = '0999'")
    for use in (lambda: Database.open(home, migrated_url), lambda: databases.upgrade(migrated_url)):
        with pytest.raises(DatabaseError, match=r"0999(?s:.*)pip install --upgrade nightgate"):
            use()


@pytest.mark.parametrize("others", [["0123456789ab"], ["0017"]])
def test_several_revisions_are_refused_and_named(
    migrated_url: str, home: Home, others: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(migrated_url, *(f"INSERT INTO alembic_version VALUES ('{one}')" for one in others))
    for use in (lambda: Database.open(home, migrated_url), lambda: databases.upgrade(migrated_url)):
        with pytest.raises(DatabaseError) as refused:
            use()
        assert all(revision in refused.value.reason for revision in ("alembic_version", schema.HEAD, *others))
        assert ("DELETE FROM alembic_version" in refused.value.next_step) == (others == ["0123456789ab"])
    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", migrated_url)
    for arguments in (["db", "upgrade"], ["history", "reviews"]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 1
        assert others[0] in done.stderr


def test_the_database_of_another_program_is_refused_and_unchanged(database_url: str, home: Home) -> None:
    table = "CREATE TABLE alembic_version (version_num VARCHAR(32))"
    execute(database_url, table, "INSERT INTO alembic_version VALUES ('bb38729c471a')")
    for use in (lambda: Database.open(home, database_url), lambda: databases.upgrade(database_url)):
        with pytest.raises(DatabaseError, match="bb38729c471a"):
            use()
    assert views_and_tables(database_url) == {"alembic_version"}


def test_a_table_of_the_same_name_stops_the_upgrade_without_changes(database_url: str) -> None:
    execute(database_url, "CREATE TABLE run (x INTEGER)")
    with pytest.raises(DatabaseError, match="database or schema of its own"):
        databases.upgrade(database_url)
    assert views_and_tables(database_url) == {"run"}
