"""Cost of the data refresh in CPU, memory and disk, beside a bare copy of the same rows by pyarrow.

    python -m benchmarks.refresh [--rows N] [--nights N] [--only NAME ...] [--quick]

Rows are generated (`benchmarks.generated_rows`). Each refresh runs in a process of its own after three small ones that
load its libraries. CPU seconds and memory are those of all its processes. docs/refresh.md has the figures of one run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.generated_rows import LABELS, copy, rows, write
from benchmarks.results import Result, exit_code, facts_list, log, machine_facts, parser, results_table, table
from nightgate.config.pipeline import Pipeline
from nightgate.data.refresh import refresh
from nightgate.home import open_home
from nightgate.schedule import Night

BEGIN = datetime(2026, 1, 5, 3, 15, tzinfo=UTC)
"""The first night's data limit."""
FILES = 10
GROWTH = 0.01
URL = "BENCHMARK_URL"
"""Environment variable with the address of the database."""
DAILY = 0.001
TABLE = {"kind": "sql", "url_env": URL, "table": "reviews"}
MARKS = {"updated": "time", "deleted": "deleted"}
WARM_ROWS = 2_000
FROM_ROWS = 1_000_000
"""Limits hold from this many rows on: fixed costs of some 20 ms outweigh small shares."""


@dataclass(frozen=True)
class Spent:
    """What something took, all processes together."""

    cpu: float
    """Seconds."""
    wall: float
    peak: int
    """Bytes of memory, the libraries included."""
    value: Any = None
    """What it returned."""


class Bench:
    """A source of generated files and the home that takes it in, in a scratch folder."""

    def __init__(self, scratch: Path, num_rows: int) -> None:
        self.scratch, self.num_rows, self.files = scratch, num_rows, scratch / "source"
        self.results: list[tuple[str, Spent]] = []
        self.checks: list[Result] = []
        self.files.mkdir()
        size = num_rows // FILES
        for number in range(FILES):
            since = BEGIN - timedelta(days=300 - 30 * number)
            part = rows(number * size, size, since, since + timedelta(days=30))
            write(part, self.files / f"part-{number:03}.parquet")

    def pipeline(self, **data: Any) -> dict[str, Any]:
        source = {"kind": "files", "paths": [str(self.files / "*.parquet")]}
        return pipeline(source, **data)

    def measure(self, title: str, work: Callable[..., Any], *arguments: Any) -> Spent:
        """Run a function of this module in a process of its own."""
        spent = in_own_process(work, *arguments)
        self.results.append((title, spent))
        log(f"{title}: {spent.cpu:.2f} s of CPU, {spent.peak / 2**20:.0f} MiB")
        return spent

    def check(self, what: str, found: float, limit: float, form: str = "{:.3g}") -> None:
        passed = None if self.num_rows < FROM_ROWS else bool(found <= limit)
        self.checks.append(Result(what, form.format(found), f"at most {form.format(limit)}", passed))


def pipeline(source: dict[str, Any], **data: Any) -> dict[str, Any]:
    columns = {"id": "id", "text": "text", "label": "stars", "time": "time", "slices": ["product"]}
    return {
        "name": "bench",
        "data": {"source": source, "labels": list(LABELS), "near_duplicates": False, **columns, **data},
    }


def night(day: int) -> Night:
    until = BEGIN + timedelta(days=day)
    return Night(until.date(), "manual", until)


def new_rows(first: int, count: int, day: int) -> Any:
    """Rows of the 24 hours before a night."""
    return rows(first, count, night(day - 1).data_until, night(day).data_until)


def insert(rows: pa.Table, file: Path) -> None:
    """Append rows to the table `reviews` of a SQLite file."""
    frame = rows.to_pandas().assign(deleted=None)
    with closing(sqlite3.connect(file)) as connection:
        frame.to_sql("reviews", connection, if_exists="append", index=False)
        connection.execute("CREATE INDEX IF NOT EXISTS reviews_time ON reviews (time)")
        connection.commit()


def disk(folder: Path) -> int:
    """Bytes of all files, each rounded up to blocks as the file system does."""
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())


# --- work, each in a process of its own ---


def take_in(settings: dict[str, Any], day: int, home: Path) -> int:
    """One refresh; returns the rows of its snapshot."""
    return refresh(Pipeline.model_validate(settings), night(day), open_home(home)).rows_total


def take_in_all(settings: dict[str, Any], waiting: Path, files: Path, home: Path) -> None:
    """One refresh for each waiting file, which comes that day."""
    for day, file in enumerate(sorted(waiting.iterdir()), 1):
        file.rename(files / file.name)
        take_in(settings, day, home)


def bare_copy(files: Path, target: Path) -> int:
    return copy(sorted(files.glob("*.parquet")), target)


def in_own_process(work: Callable[..., Any], *arguments: Any) -> Spent:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, work, arguments).result()


def _measured(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Spent:
    _warm_up()
    cpu, wall, ended = _cpu_seconds(), time.monotonic(), _largest_child()
    value = work(*arguments)
    return Spent(_cpu_seconds() - cpu, time.monotonic() - wall, _peak_memory(ended), value)


def _warm_up() -> None:
    """Three small refreshes, one of a table: what the first ones import is no cost of a row."""
    with tempfile.TemporaryDirectory(prefix="nightgate-bench-") as folder:
        part = rows(0, WARM_ROWS, BEGIN - timedelta(days=1), BEGIN)
        write(part, Path(folder) / "rows.parquet")
        settings = pipeline({"kind": "files", "paths": [f"{folder}/*.parquet"]})
        for day in range(2):
            take_in(settings, day, Path(folder) / "home")
        insert(part, Path(folder) / "reviews.db")
        address = os.environ.get(URL, "")
        os.environ[URL] = f"sqlite:///{folder}/reviews.db"
        take_in(pipeline(TABLE, **MARKS), 0, Path(folder) / "other")
        os.environ[URL] = address


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _peak_memory(ended: int) -> int:
    """The most that this process had, and the largest of the children that it started for the work, in bytes.

    Args:
        ended: `_largest_child` before the work: an import runs `file` on the interpreter, and was taken for 150 MiB.
            A child of the work counts as more, since it is counted with what its parent has had by then.
    """
    child = _largest_child()
    child = child if child > ended else 0
    with suppress(OSError), Path("/proc/self/status").open(encoding="utf-8") as status:
        # `ru_maxrss` is at least what the parent had when it started this process: the generated rows.
        return child + 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return child + 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _largest_child() -> int:
    """The most memory that a child had that has ended, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


# --- what is measured ---


def first_refreshes(bench: Bench, near: bool) -> None:
    """The first refresh of all rows, beside the copy."""
    bare = bench.measure("bare copy by pyarrow", bare_copy, bench.files, bench.scratch / "copy.parquet")
    first = bench.measure("first refresh", take_in, bench.pipeline(), 0, bench.scratch / "first")
    bench.check("first refresh, µs a row", 1e6 * first.cpu / bench.num_rows, 20)
    bench.check("first refresh, times the copy", first.cpu / bare.cpu, 10)
    most = 0.6 if bench.num_rows <= FROM_ROWS else 2
    bench.check("first refresh, peak memory in GiB", first.peak / 2**30, most)
    if near:
        settings, home = bench.pipeline(near_duplicates=True), bench.scratch / "near"
        again = bench.measure("first refresh, with near-duplicates", take_in, settings, 0, home)
        bench.check("first refresh, with near-duplicates, µs a row", 1e6 * again.cpu / bench.num_rows, 55)
        bench.check("its peak memory in GiB", again.peak / 2**30, most)
        size = disk(home / "snapshots") / disk(bench.scratch / "first" / "snapshots")
        bench.checks.append(Result("its disk, times that without", f"{size:.2f}"))
        added, before = bench.files / "added.parquet", disk(home)
        write(new_rows(bench.num_rows, round(GROWTH * bench.num_rows), 1), added)
        later = bench.measure("+1 % in a file of their own, with near-duplicates", take_in, settings, 1, home)
        adds = (disk(home) - before) / copy([added], bench.scratch / "added.parquet")
        bench.checks.append(Result("its +1 %, % of the first refresh", f"{100 * later.cpu / again.cpu:.1f}"))
        bench.check("bytes that it adds, times those of its rows", adds, 1.2)
        added.unlink()
        shutil.rmtree(home)


def later_nights(bench: Bench) -> None:
    """Nights after the first one, each on a copy of its home."""
    first = dict(bench.results)["first refresh"].cpu

    def after(name: str, title: str, share: float) -> None:
        home = shutil.copytree(bench.scratch / "first", bench.scratch / name)
        before = disk(home)
        spent = bench.measure(title, take_in, bench.pipeline(), 1, home)
        bench.check(f"{title}, % of the first refresh", 100 * spent.cpu / first, share)
        if name == "new":
            own = copy([added], bench.scratch / "added.parquet")
            bench.check("bytes that it adds, times those of its rows", (disk(home) - before) / own, 1.2)
        if name == "same":
            bench.check("nothing new, seconds", spent.wall, 2)
        shutil.rmtree(home)

    after("same", "nothing new", 1)
    count = round(GROWTH * bench.num_rows)
    grown = new_rows(bench.num_rows, count, 1)
    added = bench.files / "added.parquet"
    write(grown, added)
    after("new", "+1 % in a file of their own", 3)
    added.unlink()
    rewritten = bench.files / f"part-{FILES // 2:03}.parquet"
    kept = bench.scratch / "kept.parquet"
    shutil.move(rewritten, kept)
    write(pa.concat_tables([pq.read_table(kept), grown]), rewritten)
    after("rewritten", "+1 % in one of ten files, which is written again", 25)
    rewritten.unlink()
    shutil.move(kept, rewritten)


def behind_a_mark(bench: Bench) -> None:
    """The same rows in a table of a database, which tells by two columns what has changed."""
    file, home = bench.scratch / "reviews.db", bench.scratch / "table"
    os.environ[URL] = f"sqlite:///{file}"
    settings = pipeline(TABLE, **MARKS)
    for part in sorted(bench.files.glob("*.parquet")):
        insert(pq.read_table(part), file)
    first = bench.measure("first refresh from a table in SQLite", take_in, settings, 0, home)
    insert(new_rows(bench.num_rows, round(GROWTH * bench.num_rows), 1), file)
    later = bench.measure("+1 % behind a mark", take_in, settings, 1, home)
    bench.check("+1 % behind a mark, % of the first refresh", 100 * later.cpu / first.cpu, 3)


def year(bench: Bench, nights: int) -> None:
    """Nights of +0.1 % each."""
    daily = round(DAILY * bench.num_rows)
    home, waiting = bench.scratch / "first", bench.scratch / "waiting"
    waiting.mkdir()
    for day in range(1, nights + 1):
        write(new_rows(bench.num_rows + day * daily, daily, day), waiting / f"day-{day:03}.parquet")
    spent = bench.measure(f"{nights} nights of +0.1 %", take_in_all, bench.pipeline(), waiting, bench.files, home)
    one = copy(sorted(bench.files.glob("*.parquet")), bench.scratch / "whole.parquet")
    bench.check(f"disk after {nights} nights of +0.1 %, copies of all rows", disk(home / "snapshots") / one, 1.6)
    bench.checks.append(Result("one of these nights, seconds of CPU", f"{spent.cpu / nights:.2f}"))


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every limit is kept, else 1."""
    options = _options(arguments)
    facts = machine_facts("pyarrow", "pandas") | {"rows": f"{options.rows:,}"}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nightgate-refresh-", dir=options.scratch) as scratch:
        bench = Bench(Path(scratch), options.rows)
        first_refreshes(bench, near="near" in options.only)
        if "later" in options.only:
            later_nights(bench)
        if "mark" in options.only:
            behind_a_mark(bench)
        if "year" in options.only:
            year(bench, options.nights)
    facts["duration"] = f"{time.monotonic() - began:.0f} s"
    print(f"{facts_list(facts)}\n\n{_spent_table(bench)}\n\n{results_table(bench.checks)}")
    return exit_code(bench.checks)


def _spent_table(bench: Bench) -> str:
    rows = [
        (title, f"{spent.cpu:.2f}", f"{spent.wall:.2f}", f"{spent.peak / 2**20:.0f}") for title, spent in bench.results
    ]
    return table(["", "CPU s", "seconds", "peak memory, MiB"], rows)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    cli = parser("refresh", __doc__)
    parts = ["near", "later", "mark", "year"]
    cli.add_argument("--rows", type=int, default=FROM_ROWS, help="rows of the first refresh")
    cli.add_argument("--nights", type=int, default=365, help="nights of +0.1 %%")
    cli.add_argument("--only", nargs="*", choices=parts, default=parts, help="what to measure beside the first refresh")
    cli.add_argument("--scratch", type=Path, help="where sources and homes are written")
    cli.add_argument("--quick", action="store_true", help="20,000 rows and ten nights: a smoke test")
    options = cli.parse_args(arguments)
    if options.quick:
        options.rows, options.nights = min(options.rows, 20_000), min(options.nights, 10)
    if options.rows < 10_000:
        cli.error("--rows is at least 10,000")
    return options


if __name__ == "__main__":
    sys.exit(main())
