"""Connections: URLs without secrets, settings of each engine, retries, and databases that cannot be used."""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from typer.testing import CliRunner

from nightgate.cli.app import app
from nightgate.database import connection as connections
from nightgate.database import schema
from nightgate.database import transactions as databases
from nightgate.database.data_schema import DriftRow
from nightgate.database.shared_values import add_rows
from nightgate.database.transactions import Database
from nightgate.database_urls import safe_url
from nightgate.errors import DatabaseError
from nightgate.home import Home, open_home
from nightgate.operations import database_checks
from nightgate.operations.status import status
from tests.support import night_rows

pytestmark = pytest.mark.process

SECRET = "s3cr3t/p@ss:word%"
QUOTED = "s3cr3t%2Fp%40ss%3Aword%25"


ON_SQLITE = pytest.mark.parametrize("dialect", ["sqlite"])
ON_POSTGRESQL = pytest.mark.parametrize("dialect", [pytest.param("postgresql", marks=pytest.mark.database)])


def remember(database: Database, key: str, value: str = "x") -> None:
    database.write(lambda session: session.add(schema.Setting(key=key, value=value)))


def remembered(database: Database) -> set[str]:
    return set(database.frame("SELECT key FROM setting")["key"]) - {"home_id"}


# --- URLs ---


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_spelling_of_postgresql_means_psycopg_3(scheme: str, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", f"{scheme}://me:{QUOTED}@db.example:5433/metrics?sslmode=require")
    url = connections.database_url(home)
    assert url.startswith("postgresql+psycopg://me:")
    assert connections.parse_url(url).password == SECRET


def test_without_a_url_the_database_is_a_file_in_the_home(home: Home) -> None:
    assert connections.database_url(home) == f"sqlite:///{home.root / 'metrics.db'}"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("mysql://me:hunter22@host/db", "'mysql'"),
        ("postgresql+psycopg2://me:hunter22@host/db", r"'postgresql\+psycopg2'"),
        ("me:hunter22@host/db", "scheme"),
        ("postgresql://me:hunter22@host:hunter22/db", "%40"),
        ("postgresql://me:p@hunter22/w@host/db", "%40"),
        ("postgresql://me/x:hunter22@host/db", "%40"),
        ("postgresql://me:p@host?x=hunter22@host/db", "%40"),
        ("sqlite://", "memory"),
        ("sqlite:///:memory:", "memory"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(
    url: str, complaint: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", url)
    with pytest.raises(DatabaseError, match=complaint) as caught:
        connections.database_url(home)
    assert caught.value.next_step
    assert "hunter22" not in "".join(traceback.format_exception(caught.value))


def test_a_safe_url_has_no_secret_in_any_place() -> None:
    assert safe_url(f"postgresql+psycopg://me:{QUOTED}@h:5433/db") == "postgresql://me:***@h:5433/db"
    assert "pw" not in safe_url("postgresql://me@h/db?password=pw1&sslpassword=pw2&host=/run/x")
    assert safe_url("sqlite:////a/metrics.db") == "/a/metrics.db"


@pytest.mark.database
@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{QUOTED}@127.0.0.1:1/none",
        f"postgresql://me@127.0.0.1:1/none?password={QUOTED}",
        f"postgresql://me:{QUOTED}@127.0.0.1:1/none?no_such_option=1",
    ],
)
def test_no_log_error_or_traceback_shows_a_password(
    url: str, home: Home, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(DatabaseError) as caught:
        Database.open(home, url, patience=0.8)
    with pytest.raises(DatabaseError) as second:
        databases.upgrade(url, patience=0)
    opened = Database.open(home, url, check=False)
    shown = [caplog.text, *capfd.readouterr(), repr(opened), opened.name]
    for error in (caught.value, second.value):
        shown += [str(error), repr(error), "".join(traceback.format_exception(error))]
    assert "s3cr3t" not in "".join(shown)


@pytest.mark.database
def test_a_wrong_password_is_not_shown_and_not_tried_for_long(
    postgres: Any, home: Home, request: pytest.FixtureRequest
) -> None:
    postgres.execute("CREATE ROLE locked_out LOGIN PASSWORD 'right'")
    request.addfinalizer(lambda: postgres.execute("DROP ROLE locked_out"))
    hba = Path(postgres.execute("SHOW hba_file")[0][0])
    before = hba.read_text()
    request.addfinalizer(lambda: (hba.write_text(before), postgres.execute("SELECT pg_reload_conf()")))
    hba.write_text("local all locked_out scram-sha-256\n" + before)
    postgres.execute("SELECT pg_reload_conf()")
    time.sleep(0.2)
    began = time.monotonic()
    url = postgres.url(user="locked_out").replace(":@", f":{QUOTED}@")
    with pytest.raises(DatabaseError, match="check user, password and database") as caught:
        Database.open(home, url)
    assert time.monotonic() - began < 5
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))


# --- settings ---


@ON_SQLITE
def test_sqlite_enforces_foreign_keys_writes_ahead_and_waits_for_locks(database: Database) -> None:
    expected = {"foreign_keys": 1, "journal_mode": "wal", "synchronous": 1, "busy_timeout": 5000}
    assert {pragma: database.frame(f"PRAGMA {pragma}").iloc[0, 0] for pragma in expected} == expected


def test_a_row_without_its_parent_is_refused(database: Database) -> None:
    orphan = "INSERT INTO epoch (run_id, attempt, epoch, step, support, nonfinite, recorded_at) VALUES "
    with pytest.raises(IntegrityError):
        database.write(
            lambda s: s.execute(sa.text(f"{orphan} ('none', 1, 1, 1, 1, '', '2026-03-01T00:00:00.000000Z')"))
        )


def test_every_foreign_key_keeps_the_parent() -> None:
    tables = schema.METADATA.tables.values()
    rules = {(key.ondelete, key.onupdate) for table in tables for key in table.foreign_key_constraints}
    assert rules == {("RESTRICT", "RESTRICT")}


def test_the_database_modules_load_no_torch() -> None:
    modules = "nightgate.runs.records, nightgate.frames.nights"
    code = f"import sys, {modules}; print({{'torch', 'prefect', 'alembic'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


# --- retries ---


@contextmanager
def locked(path: str) -> Iterator[sqlite3.Connection]:
    """Another connection that locks a SQLite database until it commits."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        yield holder


@ON_SQLITE
def test_a_write_outlasts_a_lock_longer_than_sqlite_itself_waits(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LOCK_SECONDS", 1)
    with locked(database.name) as holder:
        released = threading.Timer(2.5, holder.execute, ("COMMIT",))
        released.start()
        began = time.monotonic()
        remember(database, "after the lock")
        assert time.monotonic() - began > 1.5
        released.join()
    assert remembered(database) == {"after the lock"}


@ON_SQLITE
def test_a_permanent_lock_is_an_error_after_the_retries(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LOCK_SECONDS", 0)
    database.patience = 1.0
    with (
        locked(database.name),
        pytest.raises(DatabaseError, match=r"tried for 1 s(?s:.*)next: end the process"),
    ):
        remember(database, "never")


@ON_POSTGRESQL
def test_a_silent_client_loses_its_locks_and_retries(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that crashes or freezes during a write must not block all others."""
    monkeypatch.setattr(connections, "IDLE_SECONDS", 1)
    remember(database, "shared", "0")
    began = threading.Event()
    tries: list[int] = []

    def add(by: str, *, silent: float) -> None:
        def work(session: Any) -> None:
            row = session.get(schema.Setting, "shared", with_for_update=True)
            if by == "first":
                tries.append(1)
                began.set()
                time.sleep(silent if len(tries) == 1 else 0)
            row.value += by[0]

        database.write(work)

    silent = threading.Thread(target=add, args=("first",), kwargs={"silent": 1.6})
    silent.start()
    assert began.wait(10)
    since = time.monotonic()
    add("second", silent=0)
    assert time.monotonic() - since < 1.5
    silent.join(20)
    assert database.frame("SELECT value FROM setting WHERE key = 'shared'").iloc[0, 0] == "0sf"
    assert len(tries) == 2


def test_concurrent_writers_that_read_first_need_no_retry(database: Database) -> None:
    remember(database, "counter", "0")
    tries: list[int] = []

    def work(session: Any) -> None:
        tries.append(1)
        row = session.get(schema.Setting, "counter", with_for_update=True)
        time.sleep(0.002)
        row.value = str(int(row.value) + 1)

    with ThreadPoolExecutor(6) as writers:
        list(writers.map(database.write, [work] * 30))
    assert database.frame("SELECT value FROM setting WHERE key = 'counter'").iloc[0, 0] == "30"
    assert len(tries) == 30


def test_a_reader_sees_one_state_while_others_commit(database: Database) -> None:
    remember(database, "first", "1")

    def work(session: Any) -> list[int]:
        count = sa.select(sa.func.count()).select_from(schema.Setting)
        before = session.scalar(count)
        writer = threading.Thread(target=remember, args=(database, "second", "2"))
        writer.start()
        writer.join(60)
        return [before, session.scalar(count)]

    before, after = database.read(work)
    assert (after, len(database.frame("SELECT * FROM setting"))) == (before, before + 1)


@ON_POSTGRESQL
def test_a_transaction_whose_connection_is_cut_is_retried(database: Database, postgres: Any) -> None:
    tries: list[int] = []

    def work(session: Any) -> None:
        tries.append(1)
        session.add(schema.Setting(key="survivor", value="x"))
        session.flush()
        if len(tries) == 1:
            pid = session.scalar(sa.text("SELECT pg_backend_pid()"))
            postgres.execute(f"SELECT pg_terminate_backend({pid})")
            session.scalar(sa.text("SELECT 1"))

    database.write(work)
    assert len(tries) == 2
    assert remembered(database) == {"survivor"}


def test_transactions_that_follow_each_other_share_a_connection_which_is_closed_after_the_last(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LINGER", 0.5)
    opened, closed = [], threading.Event()
    sa.event.listen(database._engine, "connect", lambda connection, _: opened.append(connection))
    sa.event.listen(database._engine, "close", lambda *_: closed.set())
    database.disconnect()
    closed.clear()
    remember(database, "one", "value")
    remembered(database)
    assert len(opened) == 1
    assert closed.wait(30)
    remembered(database)
    assert len(opened) == 2


@ON_SQLITE
def test_sqlite_leaves_one_file_once_the_connection_is_closed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Path(f"{database._url.database}-wal")
    assert log.exists()
    monkeypatch.setattr(connections, "LINGER", 0.1)
    night_rows.within(30, lambda: not log.exists())


@ON_POSTGRESQL
def test_a_connection_that_is_cut_between_transactions_is_opened_again(database: Database, postgres: Any) -> None:
    def pid() -> int:
        return int(database.frame("SELECT pg_backend_pid() AS pid")["pid"][0])

    first = pid()
    assert pid() == first
    postgres.execute(f"SELECT pg_terminate_backend({first})")
    assert pid() != first


@ON_POSTGRESQL
def test_a_server_that_restarts_is_waited_for(
    database: Database, postgres: Any, caplog: pytest.LogCaptureFixture
) -> None:
    postgres.stop()
    back = threading.Timer(2.0, postgres.start)
    back.start()
    try:
        remember(database, "after the restart")
    finally:
        back.join()
    assert remembered(database) == {"after the restart"}
    assert caplog.records


@ON_SQLITE
def test_a_briefly_missing_sqlite_file_is_waited_for_and_not_replaced(database: Database, tmp_path: Path) -> None:
    away = Path(database.name).rename(tmp_path / "away.db")
    back = threading.Timer(1.0, away.rename, (database.name,))
    back.start()
    remember(database, "after the absence")
    back.join()
    assert remembered(database) == {"after the absence"}


def test_an_error_in_the_work_rolls_back_and_is_raised(database: Database) -> None:
    def work(session: Any) -> None:
        session.add(schema.Setting(key="half", value="x"))
        session.flush()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        database.write(work)
    assert remembered(database) == set()


# --- databases that cannot be used ---


def test_a_missing_sqlite_file_is_not_made_by_opening(home: Home) -> None:
    with pytest.raises(DatabaseError, match=r"metrics\.db(?s:.*)nightgate db upgrade"):
        Database.open(home)
    assert not (home.root / "metrics.db").exists()


def test_a_lost_sqlite_file_is_not_replaced_by_an_empty_one(home: Home) -> None:
    """The next candidate would be the first version, and promoted without a champion to beat."""
    (home.models / "reviews" / "v0001").mkdir(parents=True)
    with pytest.raises(DatabaseError, match=r"metrics\.db(?s:.*)nightgate db upgrade"):
        databases.prepare(home)
    (home.models / "reviews" / "v0001").rmdir()
    databases.prepare(home)
    with Database.open(home) as database:
        assert remembered(database) == set()


def test_a_blank_database_needs_an_upgrade(database_url: str, home: Home) -> None:
    connections.make_engine(database_url, create=True).connect().close()
    with pytest.raises(DatabaseError, match="nightgate db upgrade"):
        Database.open(home, database_url)


@pytest.mark.parametrize("content", [b"review_id,text,stars\n" * 400, b"SQLite format 3\0" + b"\xff" * 9000])
def test_a_file_that_is_not_a_database_is_refused_and_unchanged(content: bytes, home: Home) -> None:
    (home.root / "metrics.db").write_bytes(content)
    for use in (lambda: Database.open(home), lambda: databases.upgrade(connections.database_url(home))):
        with pytest.raises(DatabaseError, match="restore it from a backup"):
            use()
    assert (home.root / "metrics.db").read_bytes() == content


def test_a_path_that_is_a_folder_or_in_a_missing_folder_is_refused(home: Home) -> None:
    (home.root / "metrics.db").mkdir()
    with pytest.raises(DatabaseError, match=r"metrics\.db"):
        Database.open(home, patience=0)
    with pytest.raises(DatabaseError, match="nowhere"):
        databases.upgrade(f"sqlite:///{home.root / 'nowhere' / 'metrics.db'}")


@pytest.mark.database
def test_an_unreachable_server_is_an_error(session_root: Path, home: Home) -> None:
    url = f"postgresql://me:pw@/metrics?host={session_root}"
    for use in (lambda: Database.open(home, url, patience=0), lambda: databases.upgrade(url, patience=0)):
        with pytest.raises(DatabaseError, match="next: start its server"):
            use()


@pytest.mark.database
def test_a_database_missing_on_the_server_is_an_error_without_retries(postgres: Any, home: Home) -> None:
    began = time.monotonic()
    with pytest.raises(DatabaseError, match="no_such_database"):
        Database.open(home, postgres.url("no_such_database"))
    assert time.monotonic() - began < 5


def test_a_missing_driver_is_named_with_its_package(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DatabaseError, match=r"pip install 'nightgate\[postgres\]'"):
        Database.open(home, "postgresql://me@host/db")


def read_only(url: str, postgres: Any) -> str:
    """The URL under which the same database can only be read."""
    if url.startswith("sqlite"):
        return f"sqlite:///file:{url.removeprefix('sqlite:///')}?mode=ro&uri=true"
    name = connections.parse_url(url).database
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    return url


def test_a_read_only_database_can_be_read_and_not_written(
    database: Database, migrated_url: str, home: Home, postgres: Any
) -> None:
    remember(database, "before")
    with Database.open(home, read_only(migrated_url, postgres)) as reader:
        assert remembered(reader) == {"before"}
        with pytest.raises(DatabaseError, match=r"read-only(?s:.*)give this user the right to write"):
            remember(reader, "never")


def test_a_read_only_database_cannot_be_upgraded(database_url: str, postgres: Any) -> None:
    connections.make_engine(database_url, create=True).connect().close()
    with pytest.raises(DatabaseError, match="read-only"):
        databases.upgrade(read_only(database_url, postgres))


@ON_SQLITE
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write every file")
def test_a_file_without_write_permission_is_read_only(database: Database) -> None:
    Path(database.name).chmod(0o444)
    with pytest.raises(DatabaseError, match="read-only"):
        remember(database, "never")


@ON_POSTGRESQL
def test_a_user_without_rights_can_read_and_not_write(
    database: Database, migrated_url: str, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [str(night_rows.held_version(database, day)) for day in range(2)]
    name = connections.parse_url(migrated_url).database
    postgres.execute("CREATE ROLE reader LOGIN")
    url = postgres.url(name, user="reader")
    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", url)
    began = time.monotonic()
    try:
        refused = CliRunner().invoke(app, ["history", "reviews"])
        assert (refused.exit_code, "permission denied" in refused.stderr) == (1, True)
        postgres.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader", name)
        with Database.open(database.home, url) as reader:
            assert remembered(reader) == set()
            assert len(status(reader)) == 2
            with pytest.raises(DatabaseError, match="nightgate db grant-reader"):
                remember(reader, "never")
        for command in ("history", "versions", "champion"):
            assert CliRunner().invoke(app, [command, "reviews"]).exit_code == 0
        assert CliRunner().invoke(app, ["compare", "reviews", *versions]).exit_code == 0
        assert CliRunner().invoke(app, ["compare", "reviews", "1", "v1"]).exit_code == 2
        writes, *others = database_checks.examine().findings
        assert (writes.status, writes.check, "permission denied" in writes.found) == ("problem", "database", True)
        assert {one.status for one in others} == {"ok"}
        frozen = CliRunner().invoke(app, ["freeze", "reviews", "--reason", "test"])
        assert (frozen.exit_code, "permission denied" in frozen.stderr) == (1, True)
    finally:
        postgres.execute("DROP OWNED BY reader", name)
        postgres.execute("DROP ROLE reader")
    assert time.monotonic() - began < 20, "none of these was retried, which takes 30 s"


@ON_SQLITE
def test_a_full_disk_is_an_error_and_nothing_is_written(database: Database) -> None:
    def work(session: Any) -> None:
        session.execute(sa.text("PRAGMA max_page_count = 1"))
        session.add(schema.Setting(key="large", value="x" * 1_000_000))

    with pytest.raises(DatabaseError, match="free some space"):
        database.write(work)
    assert remembered(database) == set()


def test_a_worker_with_another_home_is_refused(database: Database, migrated_url: str, tmp_path: Path) -> None:
    stranger = open_home(tmp_path / "another")
    with pytest.raises(DatabaseError, match="NIGHTGATE_HOME"):
        Database.open(stranger, migrated_url)
    with Database.open(stranger, migrated_url, any_home=True) as reader:
        assert set(reader.frame("SELECT value FROM setting WHERE key = 'home_id'")["value"]) == {database.home.id}


def test_many_workers_may_open_a_new_database_at_once(migrated_url: str, home: Home) -> None:
    with ThreadPoolExecutor(8) as workers:
        opened = list(workers.map(lambda _: Database.open(home, migrated_url), range(8)))
    for database in opened:
        database.close()


def test_text_that_postgresql_cannot_store_is_replaced(database: Database) -> None:
    remember(database, "odd", "a\0b \ud83d c")
    assert database.frame("SELECT value FROM setting WHERE key = 'odd'").iloc[0, 0] == "a\ufffdb ? c"


@pytest.mark.parametrize("names", [("one",), ("one", "two")], ids=["a row", "rows"])
def test_rows_hold_no_number_that_is_not_finite_and_no_text_that_cannot_be_stored(
    database: Database, names: tuple[str, ...]
) -> None:
    row = {
        "run_id": "r",
        "attempt": 1,
        "reference": "champion",
        "slice_name": "Größe",
        "distance": "d",
        "value": math.nan,
    }
    row |= {"threshold": 0.1, "rows_used": 3, "reference_rows": 4, "outcome": "passed", "reason": "a\0b \ud83d c"}
    rows = [row | {"statistic": name} for name in names]
    database.write(lambda session: add_rows(session, DriftRow, rows))
    stored = database.frame("SELECT slice_name, value, threshold, reason FROM drift_statistic").to_numpy().tolist()
    assert stored == [["Größe", None, 0.1, "a\ufffdb ? c"]] * len(names)


@ON_SQLITE
def test_sqlite_stores_times_as_text_of_fixed_width(database: Database) -> None:
    kind = database.frame("SELECT type FROM pragma_table_info('run') WHERE name = 'started_at'")
    assert kind.to_numpy().tolist() == [["VARCHAR(27)"]]


def test_statistics_follow_the_rows(database: Database) -> None:
    def rows() -> int:
        query = (
            "SELECT CAST(SUBSTR(stat, 1, INSTR(stat || ' ', ' ')) AS INTEGER) FROM sqlite_stat1 WHERE tbl = 'setting'"
            if database.dialect == "sqlite"
            else "SELECT CAST(reltuples AS INTEGER) FROM pg_class WHERE relname = 'setting'"
        )
        return int(database.read(lambda session: session.execute(sa.text(query)).scalar()) or 0)

    for first in (0, 300):
        settings = [schema.Setting(key=f"{first + number}", value="") for number in range(300)]
        database.write(lambda session, settings=settings: session.add_all(settings))  # type: ignore[misc]
        database.gather_statistics()
        # SQLite looks at 400 rows and estimates the rest.
        assert (first + 300) / 3 < rows() < (first + 300) * 3
