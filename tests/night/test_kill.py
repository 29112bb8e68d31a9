"""Nights that are killed, stopped or lose their training process, with kill -9 and signals, on the real command line.

Every broken night is resumed by the same command and must end with the numbers of an undisturbed one.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.night import NIGHT, command, nightgate, write_pipeline
from tests.support.tiny import write_tiny_model

# Epochs of a second and more, so that a signal that follows the first row lands in the second epoch.
SETTINGS = ("--set", "data.source.rows_per_day=150", "--set", "training.epochs=3")
SECONDS_FOR_ORPHANS = 10
METRICS = (
    "epoch, step, training_loss, validation_loss, accuracy, f1, precision, recall, f1_weighted, f1_macro, "
    "learning_rate, nonfinite"
)
RESULTS = "test_f1, f1_ci_low, f1_ci_high, best_epoch, verdict, status, snapshot_id, model_version"

pytestmark = pytest.mark.faults


@dataclass(frozen=True)
class Site:
    """A pipeline and a home of its own."""

    pipeline: Path
    home: Path
    in_prefect: bool = False
    """On a temporary server of its own."""

    @property
    def arguments(self) -> tuple[object, ...]:
        bare = () if self.in_prefect else ("--no-prefect",)
        return ("run", self.pipeline, "--night", NIGHT, *bare, *SETTINGS)

    @property
    def environment(self) -> dict[str, str]:
        return {"NIGHTGATE_HOME": str(self.home)}

    def run(self) -> subprocess.CompletedProcess[str]:
        return nightgate(*self.arguments, cwd=self.pipeline.parent, env=self.environment)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        if not (self.home / "metrics.db").exists():
            return []
        with closing(sqlite3.connect(self.home / "metrics.db", timeout=10)) as connection:
            try:
                return connection.execute(query).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
                return []  # they are being made


@dataclass(frozen=True)
class Broken:
    """How a disturbed process ended."""

    code: int
    output: str
    errors: str
    epochs: list[tuple[Any, ...]]
    """(attempt, epoch) in the database when it had ended."""
    run: tuple[Any, ...]
    """(status, error_type, reason, next_step, attempts) of the row then."""
    orphan_seconds: float
    """How long the training process lived on."""


Disturb = Callable[[psutil.Process, psutil.Process], None]


def break_night(site: Site, epoch: int, disturb: Disturb, child: str = "job.json") -> Broken:
    """Start the night, wait until it trains and `epoch` is in the database, then `disturb(parent, training)` it.

    With an epoch of an earlier attempt the blow falls while the training process starts. `child` is in the command
    line of the process that is disturbed.
    """
    with subprocess.Popen(
        command(*site.arguments),
        cwd=site.pipeline.parent,
        env={**os.environ, **site.environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that starts the tests in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        parent = psutil.Process(process.pid)
        deadline = time.monotonic() + 120
        while not (training := _child(parent, child)) or (epoch,) not in site.rows("SELECT epoch FROM epoch_results"):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        disturb(parent, training)
        output, errors = process.communicate(timeout=60)
    ended = time.monotonic()
    while training.is_running() and training.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() - ended < SECONDS_FOR_ORPHANS, "the training process outlives the night"
        time.sleep(0.05)
    [run] = site.rows("SELECT status, error_type, reason, next_step, attempts FROM nightly_runs")
    epochs = site.rows("SELECT attempt, epoch FROM epoch_results ORDER BY epoch")
    return Broken(process.returncode, output, errors, epochs, run, time.monotonic() - ended)


def _child(parent: psutil.Process, sign: str) -> psutil.Process | None:
    for process in parent.children():
        with suppress(psutil.NoSuchProcess):
            if any(argument.endswith(sign) for argument in process.cmdline()):
                return process
    return None


def _kill_parent(parent: psutil.Process, training: psutil.Process) -> None:
    del training
    parent.kill()


def _kill_training(parent: psutil.Process, training: psutil.Process) -> None:
    del parent
    training.kill()


def _crash_training(parent: psutil.Process, training: psutil.Process) -> None:
    del parent
    training.send_signal(signal.SIGSEGV)


def _interrupt(parent: psutil.Process, training: psutil.Process) -> None:
    # As a terminal does it: Ctrl-C reaches every process of the foreground.
    del training
    os.killpg(parent.pid, signal.SIGINT)


def _terminate(parent: psutil.Process, training: psutil.Process) -> None:
    del training
    parent.send_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    path = write_pipeline(folder)
    write_tiny_model(folder / "tiny-model", num_hidden_layers=4, hidden_size=128)
    return path


@pytest.fixture(scope="module")
def quiet(pipeline: Path) -> Site:
    """The undisturbed night."""
    site = Site(pipeline, pipeline.parent / "quiet")
    done = site.run()
    assert done.returncode == 0, done.stderr
    return site


@dataclass(frozen=True)
class Story:
    site: Site
    broken: list[Broken]
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def killed(pipeline: Path) -> Story:
    """kill -9 of the whole command in the second epoch, then the same command again."""
    site = Site(pipeline, pipeline.parent / "killed")
    broken = break_night(site, 1, _kill_parent)
    return Story(site, [broken], site.run())


@pytest.fixture(scope="module")
def disturbed(pipeline: Path) -> Story:
    """One night that is stopped by SIGINT and by SIGTERM, loses its training twice, and then may end."""
    site = Site(pipeline, pipeline.parent / "disturbed")
    blows = [(1, _interrupt), (1, _terminate), (2, _kill_training), (2, _crash_training)]
    broken = [break_night(site, epoch, blow) for epoch, blow in blows]
    return Story(site, broken, site.run())


# --- kill -9 of the command ---


def test_a_killed_command_leaves_its_first_epoch_and_a_running_row(killed: Story) -> None:
    [broken] = killed.broken
    assert broken.code == -signal.SIGKILL
    assert broken.epochs == [(1, 1)]
    assert broken.run[0] == "running"


def test_the_training_of_a_killed_command_ends_within_seconds(killed: Story) -> None:
    assert killed.broken[0].orphan_seconds < SECONDS_FOR_ORPHANS


def test_the_same_command_takes_a_killed_night_up_as_the_second_attempt_of_the_same_run(killed: Story) -> None:
    assert killed.done.returncode == 0, killed.done.stderr
    assert killed.site.rows("SELECT attempts, trigger, status FROM nightly_runs") == [(2, "retry", "promoted")]
    assert "in attempt 1" in killed.done.stderr
    assert "resuming after epoch 1" in killed.done.stderr


def test_no_epoch_of_a_killed_night_stands_twice(killed: Story) -> None:
    found = killed.site.rows("SELECT attempt, epoch FROM epoch_results ORDER BY epoch")
    assert found == [(1, 1), (2, 2), (2, 3)]


def test_a_killed_night_ends_with_the_numbers_of_an_undisturbed_one(killed: Story, quiet: Site) -> None:
    for query in (f"SELECT {METRICS} FROM epoch_results ORDER BY epoch", f"SELECT {RESULTS} FROM nightly_runs"):
        assert killed.site.rows(query) == quiet.rows(query) != []


def test_a_killed_night_ends_with_the_weights_of_an_undisturbed_one(killed: Story, quiet: Site) -> None:
    weights = Path("models/small/v0001/model.safetensors")
    assert (killed.site.home / weights).read_bytes() == (quiet.home / weights).read_bytes()


def test_a_killed_night_leaves_no_checkpoints_behind_once_it_has_ended(killed: Story) -> None:
    left = {path.name for path in killed.site.home.glob("runs/*/attempt-*/*")}
    assert "log.txt" in left
    assert not left & {"checkpoint", "weights", "best"}


# --- signals, and the training alone ---


@pytest.mark.parametrize(("place", "name"), [(0, "SIGINT"), (1, "SIGTERM")])
def test_a_signal_cancels_the_night_in_words_with_exit_1(disturbed: Story, place: int, name: str) -> None:
    broken = disturbed.broken[place]
    assert broken.code == 1, f"{name}: {broken.errors}"
    assert broken.run[:2] == ("cancelled", "cancelled")
    assert "the last checkpoint is kept" in broken.run[2]
    assert broken.run[3] == "run the same command again, without --force: it goes on from the last checkpoint"
    assert f"cancelled: {broken.run[3]}" in broken.errors
    assert "Traceback" not in broken.errors


def test_ctrl_c_ends_a_night_on_a_temporary_server_as_soon(pipeline: Path) -> None:
    """The server is in the terminal's foreground too, and a run whose server has gone asks for it for minutes."""
    broken = break_night(Site(pipeline, pipeline.parent / "in Prefect", in_prefect=True), 1, _interrupt)
    assert broken.code == 1, broken.errors
    assert broken.run[:2] == ("cancelled", "cancelled")
    assert f"cancelled: {broken.run[3]}" in broken.errors
    assert "Traceback" not in broken.errors


def test_a_signal_takes_the_training_along_at_once(disturbed: Story) -> None:
    assert disturbed.broken[0].orphan_seconds < 1
    assert disturbed.broken[1].orphan_seconds < 1


@pytest.mark.parametrize(
    ("place", "error_type", "reason"),
    [(2, "out_of_memory", "was killed (SIGKILL)"), (3, "crashed", "died of SIGSEGV")],
)
def test_a_night_whose_training_dies_ends_failed_in_words(
    disturbed: Story, place: int, error_type: str, reason: str
) -> None:
    broken = disturbed.broken[place]
    assert broken.code == 1
    assert broken.run[:2] == ("failed", error_type)
    assert reason in broken.run[2]
    assert "run the same command again" in broken.run[3]
    assert f"error: {broken.run[2].splitlines()[0]}" in broken.errors
    assert "Traceback" not in broken.errors


def test_every_blow_is_followed_by_the_next_attempt_of_the_same_run(disturbed: Story) -> None:
    assert [broken.run[4] for broken in disturbed.broken] == [1, 2, 3, 4]
    assert disturbed.done.returncode == 0, disturbed.done.stderr
    assert disturbed.site.rows("SELECT attempts, status FROM nightly_runs") == [(5, "promoted")]


def test_a_night_of_five_attempts_ends_with_the_numbers_of_an_undisturbed_one(disturbed: Story, quiet: Site) -> None:
    for query in (f"SELECT {METRICS} FROM epoch_results ORDER BY epoch", f"SELECT {RESULTS} FROM nightly_runs"):
        assert disturbed.site.rows(query) == quiet.rows(query)


# --- the processes after the training ---


@pytest.fixture(scope="module")
def starved(pipeline: Path) -> Story:
    """A night that loses the process that scores, then the one that serves."""
    site = Site(pipeline, pipeline.parent / "starved")
    broken = [break_night(site, 3, _kill_training, child) for child in ("score.json", "serving_probe.py")]
    return Story(site, broken, site.run())


@pytest.mark.parametrize(("place", "name"), [(0, "scoring"), (1, "serving")])
def test_a_killed_scoring_or_serving_process_fails_the_night_by_its_name(starved: Story, place: int, name: str) -> None:
    broken = starved.broken[place]
    assert broken.code == 1
    assert broken.run[:2] == ("failed", "out_of_memory")
    assert f"the {name} process was killed (SIGKILL)" in broken.run[2]
    assert "run the same command again" in broken.run[3]


def test_the_same_command_ends_it_with_the_numbers_of_an_undisturbed_one(starved: Story, quiet: Site) -> None:
    assert starved.done.returncode == 0, starved.done.stderr
    assert starved.site.rows(f"SELECT {RESULTS} FROM nightly_runs") == quiet.rows(f"SELECT {RESULTS} FROM nightly_runs")
    assert starved.site.rows("SELECT DISTINCT attempt FROM epoch_results") == [(1,)]
    assert starved.site.rows("SELECT attempts FROM nightly_runs") == [(3,)]
