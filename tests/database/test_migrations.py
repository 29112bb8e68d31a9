"""Migrations on both engines: to head, drift, down and up, concurrent upgrades, and the command line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import alembic
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from typer.testing import CliRunner

from nightgate.cli.app import app
from nightgate.config.pipeline import Pipeline
from nightgate.data.rules import rules_of, split_version
from nightgate.database import connection as connections
from nightgate.database import schema
from nightgate.database import transactions as databases
from nightgate.database.transactions import Database
from nightgate.errors import DatabaseError
from nightgate.frames.reader import tidy
from nightgate.home import Home
from nightgate.metrics.comparability import metric_key
from nightgate.runs import lifecycle, records
from tests.support import night_rows

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
REVISIONS = [script.revision for script in ScriptDirectory(str(databases.migrations_folder())).walk_revisions()]


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
    views = {"metric_history", "epoch_results", "nightly_runs", "nights", "gate_checks", "slice_metrics", "confusion"}
    views |= {"champion_timeline", "model_versions", "promotions", "snapshots", "quarantined_rows", "approvals"}
    views |= {"anchor_timeline", "freezes", "gate_sides", "joint_outcomes", "seed_studies", "seed_runs"}
    views |= {"forgotten_rows", "data_drift", "refresh_counts", "data_checks", "label_votes", "refreshes"}
    views |= {"epoch_metrics"}
    views |= {"champion_evaluations", "champion_evaluation_slices"}
    assert views_and_tables(database_url) == {*schema.METADATA.tables, *views, "alembic_version"}


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


@pytest.mark.parametrize("revision", [None, *REVISIONS])
def test_every_older_revision_reaches_head(database_url: str, revision: str | None) -> None:
    if revision:
        command.upgrade(databases.alembic_config(database_url), revision)
    assert databases.upgrade(database_url) == (revision, schema.HEAD)


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_down_and_up_again_keeps_rows(database: Database, migrated_url: str, revision: str) -> None:
    """Except for columns that the older revision lacks."""
    opened = night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
    records.record_epoch(database, opened.run_id, 1, night_rows.report(1), night_rows.scores())
    records.record_training(database, opened.run_id, 1, night_rows.trained())
    newer = {"epoch_results": ["tokens_per_second"], "nightly_runs": ["engine", "micro_batches"]}
    before = {view: database.frame(f"SELECT * FROM {view}") for view in newer}
    command.downgrade(databases.alembic_config(migrated_url), revision)
    assert ("epoch_results" in views_and_tables(migrated_url)) == (revision != "0001")
    command.upgrade(databases.alembic_config(migrated_url), "head")
    for view, columns in newer.items():
        after = database.frame(f"SELECT * FROM {view}")
        assert len(after) == 1
        assert after.drop(columns=columns).equals(before[view].drop(columns=columns))
        assert before[view][columns].notna().all(axis=None)
        assert after[columns].isna().all(axis=None)
    assert list(database.frame("SELECT restarts FROM attempt")["restarts"]) == [0]


def test_test_versions_and_keys_of_before_get_the_meaning_of_their_labels(
    database: Database, migrated_url: str
) -> None:
    labels = {"1": "bad", "2.0": "bad", "True": "good"}
    record = night_rows.pipeline().record() | {"data": {"source": {"kind": "sample"}, "labels": labels}}
    pipeline = Pipeline.model_validate(record)
    made = night_rows.refreshed(database)
    rules = rules_of(pipeline)
    manifest = {**made.snapshot.manifest, "rules": rules, "test_version": split_version(pipeline)}
    opened = night_rows.open_run(database, pipeline, night_rows.night())
    refreshed = replace(made, snapshot=replace(made.snapshot, manifest=manifest))
    records.record_snapshot(database, opened.run_id, 1, refreshed)
    evidence = replace(night_rows.evidence(), test_version=split_version(pipeline))
    records.record_decision(database, opened.run_id, 1, night_rows.decision(), evidence, night_rows.scores())
    query = (
        "SELECT r.test_version, s.test_version AS of_snapshot, r.metric_key FROM run AS r JOIN snapshot AS s "
        "ON s.snapshot_id = r.snapshot_id"
    )
    now = database.frame(query).iloc[0].tolist()
    command.downgrade(databases.alembic_config(migrated_url), "0006")
    plain = {name: rule for name, rule in rules.items() if name not in {"label", "values"}}
    version = f"t-{hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]}"
    gate = {name: getattr(pipeline.gate, name) for name in ("average", "test_window", "min_test_rows")}
    key = metric_key(version, pipeline.data.label_names, **gate)
    assert database.frame(query).iloc[0].tolist() == [version, version, key]
    # As those of before: a mark behind the key stays.
    execute(migrated_url, "UPDATE run SET metric_key = metric_key || '-predicted'")
    databases.upgrade(migrated_url)
    assert database.frame(query).iloc[0].tolist() == [*now[:2], f"{now[2]}-predicted"]


def test_rows_that_every_night_quarantined_become_one_row_each(database: Database, migrated_url: str) -> None:
    for day in range(3):
        opened = night_rows.opened(database, day)
        refreshed = night_rows.refreshed(database, f"s-{day:016x}", bad_rows=0)
        records.record_snapshot(database, opened.run_id, 1, refreshed)
        lifecycle.finish_run(database, opened.run_id, 1, "held")
    runs = list(database.frame("SELECT run_id FROM nightly_runs ORDER BY night")["run_id"])
    command.downgrade(databases.alembic_config(migrated_url), "0010")
    # The second row was corrected before the last night; its id, not its line, says that it is one.
    for run, line, row_id in ((0, 7, "NULL"), (1, 7, "NULL"), (2, 7, "NULL"), (0, 8, "'r8'"), (1, 9, "'r8'")):
        execute(
            migrated_url,
            "INSERT INTO quarantined_row (run_id, attempt, position, origin, row_id, reason, detail, excerpt) VALUES "
            f"('{runs[run]}', 1, {line}, 'a.csv:{line}', {row_id}, 'bad_row', '', '')",
        )
    databases.upgrade(migrated_url)
    query = "SELECT run_id, origin, first_night, last_night, resolved_night FROM quarantined_rows ORDER BY origin"
    found = tidy(database.frame(query)).to_numpy().tolist()
    nights = [night_rows.night(day).date for day in range(3)]
    assert found == [
        [runs[2], "a.csv:7", nights[0], nights[2], None],
        [runs[1], "a.csv:9", nights[0], nights[1], nights[2]],
    ]
    command.downgrade(databases.alembic_config(migrated_url), "0010")
    assert list(database.frame("SELECT origin FROM quarantined_rows ORDER BY origin")["origin"]) == [
        *("a.csv:7", "a.csv:9"),
    ]


@pytest.mark.database
def test_an_upgrade_keeps_grants_and_views_that_depend_on_its_views(postgres: Any) -> None:
    name = postgres.create()
    command.upgrade(databases.alembic_config(postgres.url(name)), "0002")
    postgres.execute("CREATE VIEW of_others AS SELECT f1 FROM epoch_results JOIN nights USING (run_id)", name)
    postgres.execute("GRANT SELECT ON nightly_runs TO PUBLIC", name)
    databases.upgrade(postgres.url(name))
    assert postgres.execute("SELECT has_table_privilege('public', 'nightly_runs', 'SELECT')", name) == [(True,)]
    assert postgres.execute("SELECT COUNT(*) FROM of_others", name) == [(0,)]
    postgres.drop(name)


def test_down_to_base_and_up_again_works(migrated_url: str) -> None:
    command.downgrade(databases.alembic_config(migrated_url), "base")
    assert views_and_tables(migrated_url) == {"alembic_version"}
    assert databases.upgrade(migrated_url) == (None, schema.HEAD)


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
    assert "CREATE VIEW epoch_results" in run_alembic("upgrade", "head", "--sql")


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


def test_an_older_database_is_refused_with_the_command_that_upgrades_it(database_url: str, home: Home) -> None:
    command.upgrade(databases.alembic_config(database_url), "0001")
    with pytest.raises(DatabaseError, match=r"0001(?s:.*)nightgate db upgrade"):
        Database.open(home, database_url)


def test_a_newer_database_is_refused_and_unchanged(migrated_url: str, home: Home) -> None:
    execute(migrated_url, "UPDATE alembic_version SET version_num = '0999'")
    for use in (lambda: Database.open(home, migrated_url), lambda: databases.upgrade(migrated_url)):
        with pytest.raises(DatabaseError, match=r"0999(?s:.*)pip install --upgrade nightgate"):
            use()


@pytest.mark.parametrize("others", [["0123456789ab"], ["0005"]])
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
