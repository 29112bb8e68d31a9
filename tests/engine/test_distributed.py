"""Training by two processes under torchrun with gloo gives the numbers of one, and a lost process is an error."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from nightgate.errors import CrashedError
from nightgate.training import launch
from nightgate.training.protocol import EpochReport, TrainJob, TrainResult
from nightgate.training.supervisor import train
from tests.support.tiny import tiny_job

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
    pytest.mark.process,
]


def finish(job: TrainJob) -> tuple[list[EpochReport], TrainResult]:
    reports = []
    running = train(job)
    while True:
        try:
            reports.append(next(running))
        except StopIteration as ended:
            return reports, ended.value


def ranks(above: int) -> list[psutil.Process]:
    """The workers below this process, by rank."""
    found = [
        process
        for process in psutil.Process(above).children(recursive=True)
        if "nightgate.training.worker" in process.cmdline() and "RANK" in process.environ()
    ]
    return sorted(found, key=lambda process: int(process.environ()["RANK"]))


@pytest.mark.slow
def test_two_processes_give_the_losses_and_weights_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    # 13 leaves a last batch that is smaller, and odd shares.
    recipe = {"dropout": 0.0, "batch_size": 13, "epochs": 2, "learning_rate": 1e-3, "class_weight": "balanced"}
    alone, result = finish(tiny_job(tmp_path, run="alone", **recipe))
    monkeypatch.setenv("NIGHTGATE_PROCESSES", "2")
    job = tiny_job(tmp_path, run="two", **recipe)
    together, other = finish(job)
    assert [report.step for report in together] == [report.step for report in alone]
    for one, two in zip(alone, together, strict=True):
        assert two.training_loss == pytest.approx(one.training_loss, abs=1e-5)
        assert two.validation_loss == pytest.approx(one.validation_loss, abs=1e-5)
        logits = [np.load(report.predictions)["logits"] for report in (one, two)]
        np.testing.assert_allclose(logits[1], logits[0], atol=1e-4)
    weights = [load_file(ended.best_model / "model.safetensors") for ended in (result, other)]
    for name, tensor in weights[0].items():
        if name.endswith("key.bias"):
            # Softmax ignores it: its gradient is rounding alone, which Adam scales up to whole steps.
            continue
        np.testing.assert_allclose(weights[1][name], tensor, atol=1e-4, err_msg=name)
    assert other.threads == max(1, result.threads // 2)


@pytest.mark.faults
def test_a_process_that_dies_ends_the_attempt_with_an_error_and_the_next_attempt_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTGATE_PROCESSES", "2")
    job = tiny_job(tmp_path, epochs=50)
    running = train(job)
    next(running)
    victim = ranks(os.getpid())[1]
    began = time.monotonic()
    victim.send_signal(signal.SIGKILL)
    with pytest.raises(CrashedError):
        for _ in running:
            pass
    assert time.monotonic() - began < 45
    assert not ranks(os.getpid())
    monkeypatch.setenv("NIGHTGATE_PROCESSES", "1")
    resumed = train(replace(job, attempt=2))
    assert next(resumed).attempt == 1
    resumed.close()


def test_gpus_are_those_that_this_process_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTGATE_PROCESSES", "gpus")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,3")
    assert launch.processes() == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch.processes() == 1
