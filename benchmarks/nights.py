"""Whole nights by `nightgate run`, each in a process and a copy of a home of its own, and where their seconds went.

What a night costs outside its work is read from the log that it leaves (`runs/<run_id>/log.jsonl`), on the clock of the
machine: the training and the scoring process each say how long they lived, and the refresh how long it read.

    start .. refresh .. [training process: epochs are dealt with meanwhile] .. [scoring process] .. end
    before              dealing                                             between            after
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
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.workload import Shape, base_model

SMALLEST = Shape("smallest", 2_000, 2, 32, 64, 2, 130, 1_000, pad_id=1)
CHAMPION_NIGHT, NIGHT = "2026-01-05", "2026-01-06"

PIPELINE = """
name = "small"

[data]
source = {{ kind = "sample", rows_per_day = 60, days = 10 }}
id = "review_id"
text = "text"
label = "stars"
labels = [1, 2, 3, 4, 5]
time = "created_at"
slices = ["product"]

[training]
base_model = "{model}"
epochs = 3
learning_rate = 1e-3
max_length = 64

[gate]
min_f1 = 0.0
policy = "threshold_only"
max_share_gap = 1.0
max_calibration_error = 1.0
max_latency_ratio = 1000.0
"""
"""The sample pipeline with a third of its rows and a model that trains in no time."""


class NightError(Exception):
    """A night ended in another way than it should, or a server did not start."""


@dataclass(frozen=True)
class Spent:
    """One night, in seconds."""

    wall: float
    """From the start of the process to its end."""
    work: float
    """The lives of the processes that train, score and serve, while nothing in this process held them up; the refresh;
    the statistics of the gate."""
    before: float
    """Up to the start of the training process, without the refresh."""
    dealing: float
    """With what the training process reported, epoch by epoch."""
    between: float
    """From the end of the training process to the start of the scoring process."""
    after: float
    """From the end of the scoring process to the end, without the serving process and the gate's statistics."""

    @property
    def own(self) -> float:
        """All but the work."""
        return self.before + self.dealing + self.between + self.after


def spent(lines: list[Mapping[str, Any]], began: float, ended: float) -> Spent:
    """Where the seconds of a night went: `lines` of its log, and when its process began and ended (time.time()).

    Raises:
        NightError: the log does not tell; the night was not trained, or a process was started twice.
    """
    from nightgate.data.refresh import READ
    from nightgate.night.verdict import DECIDED
    from nightgate.training.supervisor import DEALT, LIFE

    lives, dealt = _told(lines, LIFE), _told(lines, DEALT)
    reads, decided = _told(lines, READ), _told(lines, DECIDED)
    if [name for _, (name, *_) in lives] != ["training", "scoring", "serving"] or not len(reads) == len(decided) == 1:
        raise NightError(f"the night's log tells of {[name for _, (name, *_) in lives]} and {len(reads)} refreshes")
    (trained, (_, training, _)), (scored, (_, scoring, _)), (_, (_, serving, _)) = lives
    read, later = float(reads[0][1][-1]), float(serving) + float(decided[0][1][-1])
    dealing = sum(float(seconds) for _, (seconds,) in dealt)
    starts = [trained - float(training), scored - float(scoring)]
    return Spent(
        wall=ended - began,
        work=read + float(training) - dealing + float(scoring) + later,
        before=starts[0] - began - read,
        dealing=dealing,
        between=starts[1] - trained,
        after=ended - scored - later,
    )


def _told(lines: list[Mapping[str, Any]], template: str) -> list[tuple[float, tuple[str, ...]]]:
    """When each line of this form was written, and the values in it."""
    words = re.compile(re.escape(template).replace("%s", "(.*)").replace(r"%\.2f", "([0-9.]+)"))
    found = [(line, words.search(line["message"])) for line in lines]
    return [(datetime.fromisoformat(line["time"]).timestamp(), match.groups()) for line, match in found if match]


def write_pipeline(folder: Path) -> Path:
    """A pipeline file with a tiny model beside it."""
    path = folder / "small.toml"
    model = base_model(SMALLEST, folder / "model")
    path.write_text(PIPELINE.format(model=model), encoding="utf-8")
    return path


class Nights:
    """The same night again and again, from copies of a home in which a champion reigns."""

    def __init__(self, pipeline: Path, scratch: Path) -> None:
        self._pipeline, self._scratch = pipeline, scratch
        self._prepared = scratch / "home"
        self._count = 0
        self.told = ""
        """How the night ended: all must end alike."""

    def prepare(self) -> None:
        """Make the home, its database and the champion."""
        self._prepared.mkdir()
        bare = {"NIGHTGATE_HOME": str(self._prepared)}
        _nightgate(["db", "upgrade"], bare)
        _nightgate(["run", str(self._pipeline), "--night", CHAMPION_NIGHT, "--no-prefect"], bare)

    def run(self, options: list[str], environment: Mapping[str, str]) -> Spent:
        """One night.

        Raises:
            NightError: it failed, or ended otherwise than the ones before.
        """
        self._count += 1
        home = Path(shutil.copytree(self._prepared, self._scratch / f"home-{self._count}"))
        old = {path.name for path in (home / "runs").iterdir()}
        began = time.time()
        told = _nightgate(
            ["run", str(self._pipeline), "--night", NIGHT, *options], {**environment, "NIGHTGATE_HOME": str(home)}
        )
        ended = time.time()
        (run,) = (path for path in (home / "runs").iterdir() if path.name not in old)
        # Up to the verdict: what follows may speak of speed, and of the home.
        verdict = re.split("\n\n(?:Diagnosis|Champion):", told)[0]
        # How long a text took is the machine's, not the night's.
        verdict = re.sub(r"[\d.,]+ ms a text, [\d.]+ times [\d.]+", "", verdict)
        if self.told and verdict != self.told:
            raise NightError(f"two nights that should be the same are not:\n{self.told}\n\n{verdict}")
        self.told = verdict
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        shutil.rmtree(home)
        return spent(lines, began, ended)


def _nightgate(arguments: list[str], environment: Mapping[str, str]) -> str:
    """What the command printed."""
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
    """This process's environment without settings of Nightgate's and Prefect's, and offline."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NIGHTGATE_", "PREFECT_"))}
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    # `nightgate run` looks for the server of this machine: there is none on a port that nobody uses.
    return {**kept, **quiet, "PREFECT_SERVER_API_PORT": str(free_port())}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """A Prefect server with a home of its own; gives the address of its API."""
    import httpx

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
        deadline = time.monotonic() + 120
        while True:
            if server.poll() is not None or time.monotonic() > deadline:
                raise NightError(f"no Prefect server came up:\n{(folder / 'log.txt').read_text()[-2000:]}")
            try:
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
