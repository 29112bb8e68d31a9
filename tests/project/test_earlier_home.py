"""A home and a database that an earlier version wrote are opened and used by this one, and its public surface is still
there.

`fixtures/earlier_home.tar.xz` holds six nights of a tiny pipeline: two promotions, held nights, a dry run, a rollback,
a night that failed and one that waits for approval, a refresh and an evaluation on their own.
`fixtures/earlier_surface.json` holds the views and columns,
commands and options, and fields of the form of that version.
"""

from __future__ import annotations

import inspect
import json
import sqlite3
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import sqlalchemy as sa

from nightgate.database import earlier, schema
from nightgate.database.column_types import UtcTime
from nightgate.database.connection import make_engine, parse_url, sqlite_path
from nightgate.database.transactions import upgrade
from nightgate.database.views import VIEWS
from tests.support.night import nightgate

pytestmark = pytest.mark.process

FIXTURES = Path(__file__).parents[1] / "fixtures"
SURFACE: dict[str, Any] = json.loads((FIXTURES / "earlier_surface.json").read_text(encoding="utf-8"))


class Site:
    """The earlier home, unpacked, and the command line in it."""

    def __init__(self, folder: Path) -> None:
        with tarfile.open(FIXTURES / "earlier_home.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        self.folder = folder

    def run(self, *arguments: str) -> CompletedProcess[str]:
        return nightgate(*arguments, cwd=self.folder, env={"NIGHTGATE_HOME": str(self.folder / "home")})

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        done = self.run(*arguments, "--format", "json")
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.folder / "home" / "metrics.db") as connection:
            rows = connection.execute(statement).fetchall()
        connection.close()
        return rows


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = Site(tmp_path_factory.mktemp("earlier"))
    upgraded = site.run("db", "upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    with closing(sqlite3.connect(site.folder / "home" / f"metrics-{earlier.REVISION}.db")) as copy:
        assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [(earlier.REVISION,)]
    return site


def test_its_nights_versions_and_champion_are_read(site: Site) -> None:
    nights = {row["night"]: row["status"] for row in site.rows("history", "small.toml")}
    assert nights == {
        "2026-01-05": "promoted",
        "2026-01-06": "promoted",
        "2026-01-07": "held",
        "2026-01-08": "held",
        "2026-01-10": "failed",
        "2026-01-11": "waiting",
    }
    versions = {row["version"]: row["status"] for row in site.rows("versions", "small.toml")}
    assert versions == {1: "champion", 2: "quarantined", 3: "held", 4: "held", 5: "held"}
    assert site.query("SELECT count(*) FROM epoch_results") == [(10,)]
    assert site.query("SELECT DISTINCT slot, slot_wait_seconds FROM nights") == [("default", 0.0)]
    assert len(site.rows("gate", "replay", "small.toml")) == 4


def test_its_champion_predicts_and_its_versions_are_compared(site: Site) -> None:
    predicted = site.run("predict", "small.toml", "great shoes", "--format", "json")
    assert predicted.returncode == 0, predicted.stderr
    compared = site.run("compare", "small.toml", "1", "3")
    assert compared.returncode == 0, compared.stderr


@pytest.mark.slow
def test_its_waiting_candidate_is_rejected_and_the_next_night_runs_on_its_snapshots(site: Site) -> None:
    rejected = site.run("reject", "small.toml", "--reason", "not tonight")
    assert rejected.returncode == 0, rejected.stderr
    settings = ("data.source.rows_per_day=12", "training.epochs=1", f"training.base_model={site.folder / 'tiny-model'}")
    options = [part for setting in settings for part in ("--set", setting)]
    night = site.run("run", "small.toml", "--night", "2026-01-12", "--no-prefect", *options)
    assert night.returncode == 0, night.stderr
    assert site.query(
        "SELECT status, champion_version, model_version, rows_new FROM nights WHERE night = '2026-01-12'"
    ) == [("promoted", 1, 6, 12)]
    # No break by the upgrade: neither in the history nor in SQL, and the frozen golden rows still count.
    assert [row["break_before"] for row in site.rows("history", "small.toml")] == [None] * 7
    assert len(site.query("SELECT DISTINCT test_version, metric_key FROM nights WHERE test_f1 IS NOT NULL")) == 1
    assert len(list((site.folder / "home/golden/small").iterdir())) == 1
    # No setting that came with the upgrade is a change: only those of this night and of the one before, and two whose
    # default is another.
    changed = "SELECT name FROM night_changes WHERE night = '2026-01-12' AND kind = 'setting' ORDER BY name"
    assert [name for (name,) in site.query(changed)] == [
        *("gate.approval", "gate.max_size_ratio", "gate.slice_margin", "training.base_model", "training.epochs"),
    ]


ANALYST, BOARD = 'an "odd" %s na\'me', "board"


@pytest.fixture
def roles(dialect: str, database_url: str, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """A role for all views and one for a single view, quoted; none on SQLite."""
    if dialect == "sqlite":
        yield []
        return
    postgres = request.getfixturevalue("postgres")
    names = ['"{}"'.format(name.replace('"', '""')) for name in (ANALYST, BOARD)]
    for name in names:
        postgres.execute(f"CREATE ROLE {name}")
    yield names
    for name in names:
        postgres.execute(f"DROP OWNED BY {name}", parse_url(database_url).database)
        postgres.execute(f"DROP ROLE {name}")


def test_every_view_shows_the_same_rows_after_the_move(database_url: str, roles: list[str], tmp_path: Path) -> None:
    Site(tmp_path)
    source = make_engine(f"sqlite:///{tmp_path / 'home' / 'metrics.db'}")
    target = make_engine(database_url, create=True)
    with source.connect() as old, target.begin() as new:
        copy_database(old, new)
        new.exec_driver_sql("UPDATE attempt SET device = 'NVIDIA H200', slot_wait_seconds = 5 WHERE status = 'waiting'")
        new.exec_driver_sql("CREATE VIEW of_others AS SELECT r.f1, n.status FROM epoch_results AS r, nights AS n")
        new.exec_driver_sql("CREATE TABLE mine AS SELECT 1 AS x")
        if roles:
            views_of_then = ", ".join(sa.inspect(new).get_view_names())
            new.execute(sa.DDL(f"GRANT SELECT ON {views_of_then} TO {roles[0].replace('%', '%%')}"))
            new.exec_driver_sql(f"GRANT SELECT ON nights TO {roles[1]}, PUBLIC")
    copy = (path := sqlite_path(parse_url(database_url))) and path.with_name(f"blank-{earlier.REVISION}.db")
    if copy:
        copy.write_text("what a failed try left")

    def shown() -> dict[str, set[tuple[Any, ...]]]:
        with target.connect() as connection:
            found = {}
            for view, columns in views.items():
                rows = connection.exec_driver_sql(f"SELECT {', '.join(columns)} FROM {view}").all()
                found[view] = {tuple(map(str, row)) for row in rows}
            return found

    with target.connect() as connection:
        inspector = sa.inspect(connection)
        views = {name: [one["name"] for one in inspector.get_columns(name)] for name in inspector.get_view_names()}
    before = shown()
    empty = {"anchor_timeline", "forgotten_rows", "label_votes", "seed_runs", "seed_studies", "epoch_metrics"}
    assert {view for view, rows in before.items() if not rows} <= empty
    late = "SELECT value FROM setting WHERE key = 'late'"
    with ThreadPoolExecutor() as other, target.connect() as writer:
        writer.exec_driver_sql("INSERT INTO setting VALUES ('late', 'not lost')")
        moving = other.submit(upgrade, database_url)
        time.sleep(1)
        writer.commit()
        assert moving.result(60) == (earlier.REVISION, schema.HEAD)
    if copy:
        with closing(sqlite3.connect(copy)) as kept:
            assert kept.execute(late).fetchall() == [("not lost",)]
    after = shown()
    for view, rows in before.items():
        assert after[view] == rows, view
    with target.connect() as connection:
        # From the start to the last heartbeat, which a run that waits for an approval has no more.
        on_gpu = connection.exec_driver_sql("SELECT gpu_seconds FROM attempts WHERE gpu_seconds > 0").scalars()
        assert list(on_gpu) == [pytest.approx(10.09, abs=0.005)]
        assert {*sa.inspect(connection).get_table_names()} == {*schema.METADATA.tables, "alembic_version", "mine"}
        assert connection.exec_driver_sql("SELECT x FROM mine").scalar_one() == 1
        assert connection.exec_driver_sql(late).scalar_one() == "not lost"
        if roles:
            may_read = sa.text(
                "SELECT v FROM unnest(CAST(:views AS TEXT[])) AS v WHERE has_table_privilege(:role, v, 'SELECT')"
            )
            readable = {
                role: set(connection.scalars(may_read, {"views": [*VIEWS], "role": role}))
                for role in (ANALYST, BOARD, "public")
            }
            assert readable == {ANALYST: {*VIEWS}, BOARD: {"nights"}, "public": {"nights"}}


def copy_database(old: sa.Connection, new: sa.Connection) -> None:
    """Tables, rows and views of a SQLite database at revision 0016, as that revision made them on PostgreSQL."""
    tables = sa.MetaData()
    tables.reflect(old)
    kinds = {"VARCHAR(27)": UtcTime(), "BLOB": sa.LargeBinary(), "JSON": sa.JSON(), "DOUBLE": sa.Double()}
    for table in tables.tables.values():
        for column in table.columns:
            column.type = kinds.get(str(column.type), column.type)
        table.indexes.clear()
        for key in table.foreign_key_constraints:
            key.name = None  # PostgreSQL would cut the longest off
    tables.create_all(new)
    for table in tables.sorted_tables:
        if rows := [row._asdict() for row in old.execute(sa.select(table))]:
            new.execute(sa.insert(table), rows)
    texts = old.exec_driver_sql("SELECT sql FROM sqlite_master WHERE type = 'view' ORDER BY rowid").scalars()
    for text in texts:
        days = "ROUND((julianday(r.finished_at) - julianday(r.started_at)) * 86400.0, 3)"
        assert days in text or "julianday" not in text
        seconds = "CAST(ROUND(EXTRACT(EPOCH FROM r.finished_at - r.started_at), 3) AS DOUBLE PRECISION)"
        new.exec_driver_sql(text.replace(days, seconds) if new.dialect.name == "postgresql" else text)


def test_every_view_and_column_is_still_there(site: Site) -> None:
    missing = [
        f"{view}.{column}"
        for view, columns in SURFACE["views"].items()
        for column in set(columns) - {row[1] for row in site.query(f"PRAGMA table_info({view})")}
    ]
    assert missing == []


def test_every_command_and_option_is_still_there() -> None:
    import typer

    from nightgate.cli.app import app

    found: dict[str, set[str]] = {}

    def walk(command: Any, words: list[str]) -> None:
        for name, child in getattr(command, "commands", {}).items():
            walk(child, [*words, name])
        if not hasattr(command, "commands"):
            found[" ".join(words)] = {
                name for one in command.params for name in (one.opts if one.param_type_name == "option" else [one.name])
            }

    walk(typer.main.get_command(app), [])
    missing = {name: set(options) - found.get(name, set()) for name, options in SURFACE["commands"].items()}
    assert {name: options for name, options in missing.items() if options or name not in found} == {}


def test_every_field_of_the_form_is_still_there() -> None:
    from flows.nightly import nightly
    from flows.run_form import GateForm, TrainingForm

    form = SURFACE["form"]
    assert set(form["nightly"]) <= set(inspect.signature(nightly.fn).parameters)
    assert set(form["TrainingForm"]) <= set(TrainingForm.model_fields)
    assert set(form["GateForm"]) <= set(GateForm.model_fields)
