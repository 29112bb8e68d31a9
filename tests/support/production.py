"""A real Prefect server and a real worker, each a process that a test may kill.

with Production(folder, {"reviews": ""}) as production:
    run = production.start("reviews")
    flow, training = production.training(run)
    kill(production.worker)
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from flows.server.connection import SERVER_ENVIRONMENT
from nightgate import locks
from nightgate.database.connection import database_url
from nightgate.database.transactions import Database, upgrade
from nightgate.home import Home, open_home
from tests.conftest import free_port
from tests.support.night import nightgate, write_pipeline
from tests.support.tiny import write_tiny_model

ROOT = Path(__file__).parents[2]


def within(seconds: float, what: Callable[[], Any], name: str) -> Any:
    """Call `what` until its result is true, and return that."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"{name}: not within {seconds} s"
        time.sleep(0.1)
    return found


class Production:
    """Server, worker, metrics database and deployments of a few small pipelines."""

    def __init__(self, folder: Path, pipelines: Mapping[str, str], *, url: str | None = None) -> None:
        """Pipelines by name, with text to append to their file; `url` is the database, None for a SQLite file."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.names = list(pipelines)
        self._write(pipelines)
        self.port = free_port()
        self.api_url = f"http://127.0.0.1:{self.port}/api"
        self.environment = {
            "PYTHONPATH": str(ROOT),
            "NIGHTGATE_HOME": str(folder / "home"),
            "NIGHTGATE_PIPELINES": str(folder),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_API_PORT": str(self.port),
            **SERVER_ENVIRONMENT,
            "COLUMNS": "200",
        }
        if url:
            self.environment["NIGHTGATE_DATABASE_URL"] = url
        self.home: Home = open_home(folder / "home")
        self.url = url or database_url(self.home)
        upgrade(self.url)
        self.server: subprocess.Popen[bytes] | None = None
        self.worker: subprocess.Popen[bytes] | None = None

    def _write(self, pipelines: Mapping[str, str]) -> None:
        # No cron fires while the tests run.
        self.due_at = time_of_day((datetime.now(UTC).hour + 12) % 24, 30)
        for name, more in pipelines.items():
            path = write_pipeline(self.folder, name)
            with path.open("a", encoding="utf-8") as file:
                file.write(f'{more}\n[schedule]\ncron = "30 {self.due_at.hour} * * *"\n')
        # Slow enough that a signal that follows an epoch's row lands in the next one.
        write_tiny_model(self.folder / "tiny-model", num_hidden_layers=4, hidden_size=128)

    def __enter__(self) -> Self:
        self.start_server()
        self.deploy()
        self.start_worker()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, in whatever state the tests left them."""
        kill(*self._processes())
        for started in (self.worker, self.server):
            if started is not None:
                started.wait()

    def _processes(self) -> Iterator[psutil.Process]:
        """Every process of this production, also those whose parent was killed."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("NIGHTGATE_HOME") == self.environment["NIGHTGATE_HOME"]:
                    yield process

    # --- processes ---

    def start_server(self) -> None:
        self.server = self._start("server.log", "-m", "flows.own_server")
        within(120, self._is_healthy, f"the server: {self.log('server.log')[-3000:]}")

    def start_worker(self, *, ours: bool = True) -> None:
        """Start our worker, which waits for its runs when it is stopped, or Prefect's."""
        prefects = ["-m", "prefect", "worker", "start", "--pool", "nightgate", "--type", "process"]
        self.worker = self._start("worker.log", *(["-m", "deployments.worker"] if ours else prefects))

    def _start(self, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as output:
            return subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
                # A shell that starts the tests in the background has SIGINT ignored, and children inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def log(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def _is_healthy(self) -> bool:
        from flows.server.connection import answers

        assert self.server is not None
        assert self.server.poll() is None, self.log("server.log")
        return answers(f"http://127.0.0.1:{self.port}")

    # --- Prefect ---

    @contextmanager
    def client(self) -> Iterator[Any]:
        with temporary_settings({PREFECT_API_URL: self.api_url}), get_client(sync_client=True) as client:
            yield client

    def deploy(self) -> None:
        """Deploy with `nightgate deploy`; `reconcile` has no schedule here, tests run it."""
        done = self.nightgate("deploy", *self.names)
        assert done.returncode == 0, done.stderr
        with self.client() as client:
            found = client.read_deployment_by_name("reconcile/nightgate")
            for one in found.schedules:
                client.update_deployment_schedule(found.id, one.id, active=False)

    def start(self, name: str, **parameters: Any) -> FlowRun:
        """Create a run as the form does."""
        return self._start_run(f"nightly/{name}", {"pipeline": name, **parameters})

    def reconcile(self) -> Any:
        """Run the flow `reconcile` in a worker; returns its final state."""
        return self.ended(self._start_run("reconcile/nightgate", {}))

    def _start_run(self, deployment: str, parameters: dict[str, Any]) -> FlowRun:
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            run: FlowRun = client.create_flow_run_from_deployment(found.id, parameters=parameters)
        return run

    def schedule(self, name: str, since: datetime, until: datetime) -> list[FlowRun]:
        """Create the runs of a deployment's cron in between, as the server's scheduler does; oldest first."""
        with self.client() as client:
            found = client.read_deployment_by_name(f"nightly/{name}")
            times = {"start_time": since.isoformat(), "end_time": until.isoformat(), "min_runs": 100, "max_runs": 100}
            client.request("POST", f"/deployments/{found.id}/schedule", json=times).raise_for_status()
            runs: list[FlowRun] = client.read_flow_runs(
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[found.id])),
                flow_run_filter=FlowRunFilter(
                    expected_start_time=FlowRunFilterExpectedStartTime(before_=until, after_=since)
                ),
                sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            )
        return runs

    def state(self, run: FlowRun) -> Any:
        with self.client() as client:
            return client.read_flow_run(run.id).state

    def ended(self, run: FlowRun, seconds: float = 120) -> Any:
        """The final state of a run."""

        def final() -> Any:
            state = self.state(run)
            return state if state.is_final() else None

        return within(seconds, final, f"the end of {run.name}: {self.log('worker.log')[-5000:]}")

    def cancel(self, run: FlowRun) -> None:
        """Cancel a run as the UI does."""
        with self.client() as client:
            client.set_flow_run_state(run.id, Cancelling())

    def prefect(self, *arguments: str) -> str:
        """Output of a command of Prefect's."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def retry(self, run: FlowRun) -> None:
        self.prefect("flow-run", "retry", str(run.id))

    def announced(self, status: str, count: int = 1) -> list[dict[str, Any]]:
        """Payloads of the events `nightgate.<status>`, oldest first, once the server has stored so many."""

        def stored() -> list[dict[str, Any]] | None:
            found = {"filter": {"event": {"name": [f"nightgate.{status}"]}, "order": "ASC"}, "limit": 50}
            with self.client() as client:
                events = client.request("POST", "/events/filter", json=found).json()["events"]
            return [one["payload"] for one in events] if len(events) >= count else None

        payloads: list[dict[str, Any]] = within(30, stored, f"{count} events of {status}")
        return payloads

    def champion(self, name: str) -> int | None:
        """The current champion's version."""
        query = "SELECT model_version FROM champion_timeline WHERE pipeline = :name AND valid_to IS NULL"
        found = self.rows(query, name=name)
        return int(found[0]["model_version"]) if found else None

    def held(self, name: str) -> list[str]:
        """Slots that a pipeline holds or waits for: in the home, and of its deployment."""
        places = locks.queue(self.home, locks.SLOT + "default")
        found = [place.holder for place in places if place.holder.startswith(f"{name}-2")]
        return found + ["deployment"] * self._at_work(name)

    def _at_work(self, name: str) -> int:
        with self.client() as client:
            limit = client.read_deployment_by_name(f"nightly/{name}").global_concurrency_limit
        return int(limit.active_slots)

    # --- the metrics database ---

    def rows(self, query: str, **parameters: Any) -> list[dict[str, Any]]:
        with Database.open(self.home, self.url) as db:
            found = db.frame(query, parameters).to_dict("records")
        return [{str(name): value for name, value in row.items()} for row in found]

    def night(self, run: FlowRun) -> dict[str, Any]:
        """The row of a flow run; {} while it has none."""
        found = self.rows("SELECT * FROM nightly_runs WHERE prefect_flow_run_id = :id", id=str(run.id))
        return found[0] if found else {}

    def epochs(self, run: FlowRun) -> list[tuple[int, int]]:
        """(attempt, epoch) of each epoch of a flow run."""
        query = (
            "SELECT attempt, epoch FROM epoch_results WHERE run_id IN "
            "(SELECT run_id FROM nightly_runs WHERE prefect_flow_run_id = :id) ORDER BY epoch"
        )
        return [(row["attempt"], row["epoch"]) for row in self.rows(query, id=str(run.id))]

    def execute(self, statement: str, **parameters: Any) -> None:
        """Change the database directly."""
        import sqlalchemy as sa

        with Database.open(self.home, self.url, patience=5) as db:
            db.write(lambda session: session.execute(sa.text(statement), parameters))

    def set_back(self, run: FlowRun, by: timedelta) -> None:
        """Move the end of a night and its state on the server into the past."""
        run_id = self.night(run)["run_id"]
        for table in ("run", "attempt"):
            past = as_sqlite(datetime.now(UTC) - by)
            self.execute(f"UPDATE {table} SET finished_at = :past WHERE run_id = :id", past=past, id=run_id)
        with closing(sqlite3.connect(self.folder / "prefect" / "prefect.db", timeout=30)) as server, server:
            state = "SELECT state_id FROM flow_run WHERE id = ?"
            moment = str((datetime.now(UTC) - by).replace(tzinfo=None))
            changed = server.execute(
                f"UPDATE flow_run_state SET timestamp = ? WHERE id = ({state})", (moment, str(run.id))
            )
            assert changed.rowcount == 1

    def nightgate(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return nightgate(*arguments, cwd=self.folder, env=self.environment)

    # --- processes of a run ---

    def process(self, run: FlowRun) -> psutil.Process:
        """The flow process of the run's current attempt."""
        [row] = self.rows(
            "SELECT a.pid FROM attempt AS a JOIN nightly_runs AS r ON r.run_id = a.run_id AND r.attempts = a.attempt "
            "WHERE r.prefect_flow_run_id = :id",
            id=str(run.id),
        )
        return psutil.Process(int(row["pid"]))

    def training(self, run: FlowRun, *, attempt: int = 1) -> tuple[psutil.Process, psutil.Process]:
        """Flow process and training process of a run, once that attempt or a later one has added an epoch."""

        def trains() -> Any:
            state = self.state(run)
            assert not state.is_final(), f"{state}: {self.log('worker.log')[-5000:]}"
            night = self.night(run)
            if not night or night["status"] != "running" or night["attempts"] < attempt:
                return None
            if night["attempts"] not in {attempt for attempt, _ in self.epochs(run)}:
                return None
            with suppress(psutil.NoSuchProcess):
                flow = self.process(run)
                for child in flow.children():
                    if child.cmdline()[-1].endswith("job.json"):
                        return flow, child
            return None

        found: tuple[psutil.Process, psutil.Process] = within(120, trains, f"an epoch of {run.name}")
        return found


def as_sqlite(moment: datetime) -> str:
    """A time as the database stores it in SQLite."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill(*processes: psutil.Process | subprocess.Popen[bytes] | None, number: int = signal.SIGKILL) -> None:
    """Send a signal to all of them; after SIGKILL, wait for our children."""
    for process in processes:
        assert process is not None
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    for process in processes:
        if isinstance(process, subprocess.Popen) and number == signal.SIGKILL:
            process.wait(20)
