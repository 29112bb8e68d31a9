"""Many pipelines that are due at one minute: what waits, for how long, and whether each runs once.

A real server and worker, and the pipelines' own deployments. Every night begins as any: it starts a process, claims its
row, takes the slot and reads the source. A data check then ends it (two of five labels are unknown), before a training.
"""

from __future__ import annotations

import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from benchmarks.nights import SMALLEST, NightError, clean_environment, nightgate, running_server
from benchmarks.results import Result, at_most, log
from benchmarks.workload import base_model

PATIENCE = 1800
"""Seconds after which those that have not run are lost."""
OVERLAP = 3
"""A process ends a moment after its night: while its successor starts, there are more of them than the limit."""
PIPELINE = """
name = "{name}"
[data]
source = {{ kind = "sample", rows_per_day = 30, days = 10 }}
id = "review_id"
text = "text"
label = "stars"
labels = [1, 2, 3]
time = "created_at"
[training]
base_model = "{model}"
[schedule]
cron = "15 3 * * *"
"""


@dataclass
class Seen:
    """What was seen of processes, once a second, in MB of memory that is theirs alone."""

    nights: list[list[float]] = field(default_factory=list)
    """Of each process of a night."""
    worker: list[float] = field(default_factory=list)
    seconds: float = 0.0
    """From the worker's start to the end of the last night."""


def measure(scratch: Path, count: int, at_once: int) -> tuple[list[Result], dict[str, str]]:
    """Let `count` nights be due, of which `at_once` may run; returns results with their limits, and facts.

    Raises:
        NightError: a command failed.
    """
    names = [f"pipeline-{number:03}" for number in range(count)]
    (scratch / "pipelines").mkdir()
    model = base_model(SMALLEST, scratch / "model")
    for name in names:
        path = scratch / "pipelines" / f"{name}.toml"
        path.write_text(PIPELINE.format(name=name, model=model), encoding="utf-8")
    with running_server(scratch / "server") as url:
        environment = {
            "NIGHTGATE_HOME": str(scratch / "home"),
            "NIGHTGATE_PIPELINES": str(scratch / "pipelines"),
            "NIGHTGATE_SLOT_LIMITS": f"default={at_once}",
            "PREFECT_HOME": str(scratch / "worker"),
            "PREFECT_API_URL": url,
            "PREFECT_WORKER_QUERY_SECONDS": "2",
        }
        log(f"{count} pipelines are deployed")
        nightgate(["db", "upgrade"], environment)
        nightgate(["deploy", *names], environment)
        with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
            _schedule(client, names)
            with _worker(environment, scratch / "worker.log") as worker:
                seen = _watch(client, worker, count)
            delays = _delays(client)
    with closing(sqlite3.connect(scratch / "home" / "metrics.db")) as database:
        query = "SELECT pipeline, attempts, error_type, started_at, slot_wait_seconds, finished_at FROM nightly_runs"
        rows = database.execute(query).fetchall()
    return _results(names, at_once, seen, rows), _facts(count, seen, delays)


def _schedule(client: SyncPrefectClient, names: Sequence[str]) -> None:
    """Create the runs of the last instant of the cron, as the server's scheduler does."""
    now = datetime.now(UTC)
    day = {"start_time": str(now - timedelta(days=1)), "end_time": str(now), "min_runs": 1, "max_runs": 1}
    for name in names:
        found = client.read_deployment_by_name(f"nightly/{name}")
        client.request("POST", f"/deployments/{found.id}/schedule", json=day).raise_for_status()


@contextmanager
def _worker(environment: dict[str, str], path: Path) -> Iterator[psutil.Process]:
    with path.open("wb") as output:
        command = [sys.executable, "-m", "deployments.worker"]
        worker = subprocess.Popen(command, env=clean_environment() | environment, stdout=output, stderr=output)
    try:
        yield psutil.Process(worker.pid)
    finally:
        worker.terminate()
        worker.wait(120)


def _watch(client: SyncPrefectClient, worker: psutil.Process, count: int) -> Seen:
    """Wait until so many nights have ended, or for PATIENCE."""
    seen, began, ended = Seen(), time.monotonic(), 0
    while ended < count and time.monotonic() - began < PATIENCE:
        time.sleep(1)
        seen.nights.append([mb for child in worker.children(recursive=True) if (mb := _memory(child))])
        seen.worker.append(_memory(worker))
        if len(seen.worker) % 5 == 0:
            before, ended = ended, _count(client, ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"])
            if ended // 10 > before // 10:
                log(f"{ended} of {count} have ended")
    seen.seconds = time.monotonic() - began
    return seen


def _memory(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().uss) / 1e6
    except psutil.Error:
        return 0.0


def _count(client: SyncPrefectClient, states: list[str]) -> int:
    wanted = {"flows": {"name": {"any_": ["nightly"]}}, "flow_runs": {"state": {"type": {"any_": states}}}}
    return int(client.request("POST", "/flow_runs/count", json=wanted).raise_for_status().json())


def _delays(client: SyncPrefectClient) -> list[float]:
    """Seconds from when each run of `reconcile` was due to its start."""
    wanted = {"flows": {"name": {"any_": ["reconcile"]}}, "flow_runs": {"start_time": {"is_null_": False}}}
    runs = client.request("POST", "/flow_runs/filter", json=wanted).raise_for_status().json()
    moments = [[datetime.fromisoformat(run[key]) for key in ("expected_start_time", "start_time")] for run in runs]
    return [(start - due).total_seconds() for due, start in moments]


def _results(names: Sequence[str], at_once: int, seen: Seen, rows: Sequence[tuple[Any, ...]]) -> list[Result]:
    ran = [pipeline for pipeline, _, error, *_ in rows if error == "data_check_failed"]
    twice = sum(attempts - 1 for _, attempts, *_ in rows) + len(rows) - len({row[0] for row in rows})
    most = max(len(one) for one in seen.nights)
    if not ran:
        raise NightError("no night has run: read worker.log")
    return [
        at_most("nights that did not run", len(set(names) - set(ran)), 0),
        at_most("nights that ran twice", twice, 0),
        at_most("nights at work at once", overlap(rows), at_once),
        at_most("processes of nights at once", most, at_once * OVERLAP),
    ]


def overlap(rows: Sequence[tuple[Any, ...]]) -> int:
    """The largest number of nights that held the slot at one time: rows end with start, wait and end."""
    changes = []
    for *_, started, waited, finished in rows:
        held = datetime.fromisoformat(started) + timedelta(seconds=waited or 0.0)
        changes += [(held, 1), (datetime.fromisoformat(finished), -1)]
    held, most = 0, 0
    for _, change in sorted(changes):
        held += change
        most = max(most, held)
    return most


def _facts(count: int, seen: Seen, delays: Sequence[float]) -> dict[str, str]:
    each = [mb for one in seen.nights for mb in one]
    third = len(seen.worker) // 3
    first, last = statistics.median(seen.worker[:third]), statistics.median(seen.worker[-third:])
    return {
        "until all have run": f"{seen.seconds:.0f} s, {seen.seconds / count:.1f} s a night",
        "what waits": f"no process; the worker has {first:.0f} MB in the first third and {last:.0f} MB in the last",
        "nights": f"processes of {statistics.median(each):.0f} MB, {max(map(sum, seen.nights)):.0f} MB at most in all",
        "reconcile": f"{len(delays)} runs, at most {max(delays, default=0):.0f} s after they were due",
    }
