"""A training process that makes no step is started again once; the second stall is an error."""

from __future__ import annotations

import time
from datetime import date
from functools import partial
from pathlib import Path

import pytest

from nightgate.database.connection import database_url
from nightgate.database.transactions import upgrade
from nightgate.errors import StalledError
from nightgate.home import Home
from nightgate.night import steps
from nightgate.night.run import open_night
from nightgate.schedule import chosen_night
from nightgate.training import supervisor
from nightgate.training.protocol import TrainJob
from nightgate.training.supervisor import train
from tests.support.stand_in import stand_in
from tests.support.tiny import tiny_pipeline

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    """A job that no process reads."""
    return TrainJob(tmp_path / "run", 1, tmp_path / "snapshot", {}, "2026-01-05T00:00:00+00:00")


def test_a_child_that_sends_messages_but_makes_no_step_twice_is_stalled(job: TrainJob, tmp_path: Path) -> None:
    python = stand_in(tmp_path / "python", hangs=2)
    restarts: list[str] = []
    began = time.monotonic()
    with pytest.raises(StalledError, match=r"\d s \(epoch 2/3, step 7/9.*\).* \d s \(epoch 2/3, step 7/9") as caught:
        next(train(job, python=python, on_restart=restarts.append, stall_seconds=1, start_seconds=20))
    assert time.monotonic() - began < 20
    assert str(job.attempt_dir / "log.txt") in caught.value.next_step
    assert len(restarts) == 1
    assert (tmp_path / "python.times").read_text() == "xx"


def test_a_child_that_never_starts_to_train_is_stalled(job: TrainJob) -> None:
    running = train(job, start_seconds=0.0)
    with pytest.raises(StalledError, match=r"\(starting\).*\(starting\)"):
        next(running)


@pytest.mark.slow
def test_a_restart_is_counted_with_the_attempt(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade(database_url(home))
    pipeline = tiny_pipeline(tmp_path, rows=60, epochs=1)
    impatient = partial(supervisor.train, python=stand_in(tmp_path / "python", hangs=1), stall_seconds=1)
    monkeypatch.setattr(supervisor, "train", impatient)
    with open_night(pipeline, chosen_night(pipeline.schedule, date(2026, 1, 5))) as run:
        snapshot = steps.refresh(run)
        steps.fine_tune(run, snapshot, partial(steps.record_epoch, run, snapshot))
        [row] = run.db.frame("SELECT restarts, resumed_from_epoch, engine FROM attempt").to_dict("records")
        tokens = run.db.frame("SELECT tokens_per_second FROM epoch_results")["tokens_per_second"]
    assert row == {"restarts": 1, "resumed_from_epoch": 0, "engine": "packed"}
    assert (tokens > 0).all()
