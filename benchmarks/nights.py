"""Whole nights by `nightgate run`, and the seconds of work in each.

The log of a night (`runs/<run_id>/log.jsonl`) has the lifetimes of its processes, and the time of reading and deciding.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.workload import Shape, base_model

SMALLEST = Shape("smallest", 2_000, 2_000, 2, 32, 64, 2, 1_000, pad_id=1)
CHAMPION_NIGHT, NIGHT = "2026-01-05", "2026-01-06"

SETTINGS = {
    "data.source.rows_per_day": "60",
    "data.source.days": "10",
    "training.epochs": "3",
    "training.learning_rate": "1e-3",
    "training.max_length": "64",
    "gate.min_f1": "0.0",
    "gate.policy": "threshold_only",
    "gate.max_share_gap": "1.0",
    "gate.max_calibration_error": "1.0",
    "gate.max_latency_ratio": "1000.0",
}
"""The sample pipeline with a third of its rows and seconds of training."""


class NightError(Exception):
    """A night ended in an unexpected way, or a server did not start."""


@dataclass(frozen=True)
class Spent:
    """Seconds of a night."""

    wall: float
    """From start to end of the command."""
    work: float
    """Lifetimes of the processes that train, score and serve, less the time that they waited for this one; the refresh;
    the statistics of the gate."""

    @property
    def own(self) -> float:
        """All except the work."""
        return self.wall - self.work


def spent(lines: list[Mapping[str, Any]], wall: float) -> Spent:
    """Divide a night's `wall` seconds by the lines of its log.

    Raises:
        NightError: the night was not trained, or a process was started twice.
    """
    from nightgate.data.refresh import READ
    from nightgate.night.verdict import DECIDED
    from nightgate.training.supervisor import DEALT, LIFE

    lives, dealt = _found(lines, LIFE), _found(lines, DEALT)
    reads, decided = _found(lines, READ), _found(lines, DECIDED)
    names = [name for name, *_ in lives]
    if names != ["training", "scoring", "serving"] or not len(reads) == len(decided) == 1:
        raise NightError(f"the night's log names the processes {names} and {len(reads)} refreshes")
    lived = sum(float(seconds) for _, seconds, _ in lives) - sum(float(seconds) for (seconds,) in dealt)
    return Spent(wall, lived + float(reads[0][-1]) + float(decided[0][-1]))


def _found(lines: list[Mapping[str, Any]], template: str) -> list[tuple[str, ...]]:
    """The values in each line of this form."""
    words = re.compile(re.escape(template).replace("%s", "(.*)").replace(r"%\.2f", "([0-9.]+)"))
    return [match.groups() for line in lines if (match := words.search(line["message"]))]


class Nights:
    """Repetitions of one night, each from a copy of a home with a champion."""

    def __init__(self, scratch: Path) -> None:
        settings = {**SETTINGS, "training.base_model": str(base_model(SMALLEST, scratch / "model"))}
        self._command = ["run", "sample", *(f"--set={name}={value}" for name, value in settings.items())]
        self._scratch, self._prepared = scratch, scratch / "home"
        self._count = 0
        self._ended = ""
        """Printed result of the first night, which all others must have."""
        self._prepared.mkdir()
        bare = {"NIGHTGATE_HOME": str(self._prepared)}
        nightgate(["db", "upgrade"], bare)
        nightgate([*self._command, "--night", CHAMPION_NIGHT, "--no-prefect"], bare)

    def run(self, options: list[str], environment: Mapping[str, str]) -> Spent:
        """Run the night once.

        Raises:
            NightError: it failed, or ended otherwise than those before.
        """
        self._count += 1
        home = Path(shutil.copytree(self._prepared, self._scratch / f"home-{self._count}"))
        old = {path.name for path in (home / "runs").iterdir()}
        began = time.monotonic()
        printed = nightgate([*self._command, "--night", NIGHT, *options], {**environment, "NIGHTGATE_HOME": str(home)})
        wall = time.monotonic() - began
        (run,) = (path for path in (home / "runs").iterdir() if path.name not in old)
        ended = next(line for line in printed.splitlines() if line.startswith("Night "))
        if self._ended not in ("", ended):
            raise NightError(f"repetitions of one night differ: {self._ended!r}, {ended!r}")
        self._ended = ended
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        shutil.rmtree(home)
        return spent(lines, wall)


def nightgate(arguments: list[str], environment: Mapping[str, str]) -> str:
    """Run a command of Nightgate; returns its output."""
    done = subprocess.run(
        [sys.executable, "-m", "nightgate.cli.app", *arguments],
        env=clean_environment() | dict(environment),
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NightError(f"nightgate {' '.join(arguments)} ended with code {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def clean_environment() -> dict[str, str]:
    """This process's environment, offline and without settings of Nightgate and Prefect."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NIGHTGATE_", "PREFECT_"))}
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    # `nightgate run` would use a server of this machine: there is none on a free port.
    return {**kept, **quiet, "PREFECT_SERVER_API_PORT": str(free_port())}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """Run a Prefect server with a home of its own; yields the address of its API."""
    folder.mkdir()
    port = str(free_port())
    url = f"http://127.0.0.1:{port}/api"
    with (folder / "log.txt").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port],
            env={**clean_environment(), "PREFECT_HOME": str(folder)},
            stdout=log,
            stderr=log,
        )
    try:
        _wait_for(f"{url}/health", server, folder / "log.txt")
        yield url
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)
        server.kill()
        server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2).is_success:
                return
        time.sleep(0.5)
    raise NightError(f"the Prefect server did not start:\n{log.read_text()[-2000:]}")
