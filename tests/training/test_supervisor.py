"""The supervised training process: kills, hangs, crashes, resumption and the files that remain."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from nightgate.errors import CrashedError, ModelError, NonFiniteLossError, OutOfMemoryError
from nightgate.metrics.classification import score
from nightgate.training.protocol import EpochReport, Progress, ScoreJob, TrainJob, TrainResult
from nightgate.training.supervisor import score_models, train
from tests.support.stand_in import stand_in
from tests.support.tiny import tiny_job, write_tiny_model

pytestmark = pytest.mark.process

SLOW_EPOCHS: dict[str, Any] = {"rows": 700, "batch_size": 2}
"""Epochs of about a second, long enough for a kill."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@dataclass
class Ended:
    reports: list[EpochReport]
    result: TrainResult
    seen: list[Progress] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)

    def numbers(self) -> list[tuple[float, ...]]:
        """The numbers that must not depend on kills, bit for bit."""
        return [
            (r.epoch, r.step, r.training_loss, r.validation_loss, r.learning_rate, r.is_best, r.stopped_early)
            for r in self.reports
        ]

    def logits(self) -> list[bytes]:
        return [np.load(report.predictions)["logits"].tobytes() for report in self.reports]


def finish(running: Generator[EpochReport, None, TrainResult]) -> Ended:
    reports: list[EpochReport] = []
    while True:
        try:
            reports.append(next(running))
        except StopIteration as stop:
            return Ended(reports, stop.value)


def workers(parent: int | None = None) -> list[psutil.Process]:
    """The training processes of a parent that are alive; ours by default."""
    return [
        child
        for child in psutil.Process(parent).children()
        if "nightgate.training.worker" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE
    ]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


STOCK = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainJob, Ended]:
    job, seen = tiny_job(tmp_path_factory.mktemp("uninterrupted"), **SLOW_EPOCHS), list[Progress]()
    logger, lines = logging.getLogger("nightgate"), BufferingHandler(1_000)
    logger.addHandler(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        ended = finish(train(job, on_progress=seen.append))
    logger.removeHandler(lines)
    return job, replace(ended, seen=seen, logged=[record.getMessage() for record in lines.buffer])


def test_a_run_reports_every_epoch_and_leaves_exactly_these_files(uninterrupted: tuple[TrainJob, Ended]) -> None:
    job, ended = uninterrupted
    assert [(r.attempt, r.epoch) for r in ended.reports] == [(1, 1), (1, 2), (1, 3)]
    best = f"epoch-{ended.result.best_epoch:04d}"
    assert files(job.run_dir) == {
        "attempt-1/job.json",
        "attempt-1/log.txt",
        "attempt-1/checkpoint/epoch-0003/state.json",
        *(f"attempt-1/epochs/epoch-000{epoch}.npz" for epoch in (1, 2, 3)),
        *(f"attempt-1/best/{best}/{name}" for name in (*STOCK, "learnt.parquet")),
    }
    assert ended.result.best_model == job.attempt_dir / "best" / best
    assert (ended.result.epochs_run, ended.result.resumed_from, ended.result.device) == (3, 0, "cpu")
    assert workers() == []


def test_the_best_epoch_is_the_first_with_the_highest_validation_f1(uninterrupted: tuple[TrainJob, Ended]) -> None:
    _, ended = uninterrupted
    f1 = []
    for report in ended.reports:
        stored = np.load(report.predictions, allow_pickle=False)
        f1.append(score(stored["labels"], stored["logits"].argmax(axis=1), 3).f1("weighted"))
    assert ended.result.best_epoch == 1 + int(np.argmax(f1))
    assert [report.is_best for report in ended.reports] == [f1[k] > max(f1[:k], default=-1) for k in range(3)]
    assert f1[ended.result.best_epoch - 1] > 0.6


def test_the_best_model_opens_in_a_process_without_nightgate_and_gives_the_same_logits(
    uninterrupted: tuple[TrainJob, Ended],
) -> None:
    job, ended = uninterrupted
    from nightgate.data.snapshots import open_snapshot

    texts = open_snapshot(job.snapshot).rows("validation")["text"].tolist()
    stored = np.load(ended.reports[ended.result.best_epoch - 1].predictions)["logits"]
    code = """
        import json, sys, torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        folder, texts = json.load(sys.stdin)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        short, long = tokenizer(texts[:1])["input_ids"][0], tokenizer("bad " * 90)["input_ids"]
        with torch.no_grad():
            logits = model(**tokenizer(texts, truncation=True, padding=True, return_tensors="pt")).logits
        assert "nightgate" not in sys.modules
        print(json.dumps({
            "logits": logits.tolist(), "id2label": model.config.id2label, "label2id": model.config.label2id,
            "max": tokenizer.model_max_length, "short": len(short), "long": len(long),
        }))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        input=json.dumps([str(ended.result.best_model), texts]),
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    found = json.loads(done.stdout)
    assert np.abs(np.array(found["logits"]) - stored).max() < 1e-5
    assert found["id2label"] == {"0": "bad", "1": "middling", "2": "good"}
    assert found["label2id"] == {"bad": 0, "middling": 1, "good": 2}
    # The base's tokenizer.json pads and cuts to 24 tokens, always: neither may be carried over.
    assert (found["max"], found["long"]) == (32, 92)
    assert found["short"] < 24
    carried = json.loads((ended.result.best_model / "tokenizer.json").read_text())
    assert carried["truncation"] is carried["padding"] is None


@pytest.mark.faults
def test_a_run_killed_in_its_second_epoch_ends_with_the_numbers_of_an_uninterrupted_one(
    uninterrupted: tuple[TrainJob, Ended],
) -> None:
    whole_job, whole = uninterrupted
    job = replace(whole_job, run_dir=whole_job.run_dir.with_name("killed"))
    running = train(job)
    first = next(running)
    workers()[0].kill()
    with pytest.raises(OutOfMemoryError, match="SIGKILL"):
        next(running)
    assert {name for name in files(job.attempt_dir) if "epoch-" in name} == {
        "epochs/epoch-0001.npz",
        "weights/epoch-0001.safetensors",
        *(f"checkpoint/epoch-0001/{name}" for name in ("moments.safetensors", "state.json")),
    }
    second = replace(job, attempt=2)
    resumed = finish(train(second))
    assert resumed.reports[0] == first
    assert [report.attempt for report in resumed.reports] == [1, 2, 2]
    assert resumed.result.resumed_from == 1
    assert resumed.numbers() == whole.numbers()
    assert resumed.logits() == whole.logits()
    weights = [(ended.result.best_model / "model.safetensors").read_bytes() for ended in (whole, resumed)]
    assert weights[0] == weights[1]
    assert {name for name in files(job.run_dir) if "checkpoint" in name} == {
        "attempt-2/checkpoint/epoch-0003/state.json"
    }


def test_a_run_that_had_ended_reports_its_epochs_again_without_training(uninterrupted: tuple[TrainJob, Ended]) -> None:
    job, whole = uninterrupted
    again = finish(train(replace(job, attempt=2)))
    assert again.reports == whole.reports
    assert again.result == replace(whole.result, resumed_from=3)


@pytest.mark.faults
def test_killing_the_parent_ends_the_child_and_the_next_attempt_goes_on(
    uninterrupted: tuple[TrainJob, Ended],
) -> None:
    whole_job, whole = uninterrupted
    job = replace(whole_job, run_dir=whole_job.run_dir.with_name("orphan"))
    code = f"""
        import os, signal, sys
        import psutil
        from nightgate.training.protocol import TrainJob
        from nightgate.training.supervisor import train
        running = train(TrainJob.from_json({job.to_json()!r}))
        next(running)
        print(*[child.pid for child in psutil.Process().children()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    parent = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    child = int(parent.stdout)
    deadline = time.monotonic() + 5
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child outlives its parent"
        time.sleep(0.05)
    assert "epochs/epoch-0002.npz" not in files(job.attempt_dir)
    resumed = finish(train(replace(job, attempt=2)))
    assert resumed.numbers() == whole.numbers()
    assert resumed.logits() == whole.logits()


@pytest.mark.slow
def test_closing_the_generator_stops_the_child_within_seconds_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, **SLOW_EPOCHS)
    running = train(job)
    next(running)
    child = workers()[0]
    began = time.monotonic()
    running.close()
    assert time.monotonic() - began < 5
    assert not child.is_running()
    assert "checkpoint/epoch-0001/state.json" in files(job.attempt_dir)


@pytest.mark.slow
def test_an_exception_in_the_caller_stops_the_child(tmp_path: Path) -> None:
    class Cancelled(BaseException):
        pass

    def on_progress(progress: Progress) -> None:
        if progress.phase == "train":
            raise Cancelled

    with pytest.raises(Cancelled):
        next(train(tiny_job(tmp_path), on_progress=on_progress))
    assert workers() == []


@pytest.mark.faults
def test_a_child_that_hangs_resumes_from_its_checkpoint_once_and_reports_each_epoch_once(
    uninterrupted: tuple[TrainJob, Ended], caplog: pytest.LogCaptureFixture
) -> None:
    whole_job, whole = uninterrupted
    job = replace(whole_job, run_dir=whole_job.run_dir.with_name("hung"))
    restarts: list[str] = []
    running = train(job, on_restart=restarts.append, stall_seconds=3, start_seconds=60)
    first = next(running)
    hung = workers()[0]
    hung.send_signal(signal.SIGSTOP)
    resumed = finish(running)
    resumed.reports.insert(0, first)
    assert not hung.is_running()
    assert resumed.numbers() == whole.numbers()
    assert [report.attempt for report in resumed.reports] == [1, 1, 1]
    assert resumed.result.resumed_from == 0
    assert len(restarts) == 1
    assert str(job.attempt_dir / "log.txt") in caplog.text
    stacks = (job.attempt_dir / "log.txt").read_text().partition("it made no step for")[2]
    assert "most recent call first" in stacks
    assert 'nightgate/training/loop.py", line' in stacks
    assert workers() == []


@pytest.mark.slow
def test_scoring_that_hangs_is_started_anew(uninterrupted: tuple[TrainJob, Ended], tmp_path: Path) -> None:
    job, ended = uninterrupted
    scores = ScoreJob(job.pipeline, job.snapshot, {"candidate": ended.result.best_model}, tmp_path / "scores")
    python = stand_in(tmp_path / "python", hangs=1)
    restarts: list[str] = []
    scored = score_models(scores, python=python, on_restart=restarts.append, stall_seconds=1)
    assert len(restarts) == 1
    assert scored.written["candidate"].is_file()


@pytest.mark.slow
def test_a_crash_names_the_signal_and_shows_the_last_lines_of_the_log(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, **SLOW_EPOCHS)
    running = train(job)
    next(running)
    workers()[0].send_signal(signal.SIGSEGV)
    with pytest.raises(CrashedError, match=r"SIGSEGV.*Segmentation fault|SIGSEGV.*: ") as caught:
        next(running)
    assert str(job.attempt_dir / "log.txt") in caught.value.next_step
    assert "Segmentation fault" in (job.attempt_dir / "log.txt").read_text()


@pytest.mark.slow
def test_the_child_is_never_more_than_one_epoch_ahead_of_its_caller(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, epochs=4)
    running = train(job, stall_seconds=1.0)
    next(running)
    time.sleep(3)  # longer than an epoch and than the limit: the caller's time is not a stall of the child
    assert "epochs/epoch-0003.npz" not in files(job.attempt_dir)
    assert len(finish(running).reports) == 3


@pytest.mark.slow
def test_weights_that_are_nan_fail_the_run_at_its_first_step(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    base = write_tiny_model(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"][:] = np.nan
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteLossError, match=r"nan in epoch 1, step 1 \(learning rate 0.003"):
        next(train(tiny_job(tmp_path)))


@pytest.mark.slow
def test_an_unreachable_hub_is_an_error_within_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(ModelError, match="some/model") as caught:
        next(train(tiny_job(tmp_path, base_model="some/model")))
    assert "training.base_model" in caught.value.next_step
    assert time.monotonic() - began < 60


def test_the_parent_logs_the_device_and_the_reports_have_the_reasons_of_the_engine(
    uninterrupted: tuple[TrainJob, Ended],
) -> None:
    _, ended = uninterrupted
    assert any("fp32 on the CPU: " in line for line in ended.logged)
    for reason in ("packed texts", "vocabulary: ", "OMP_NUM_THREADS"):
        assert all(reason in report.engine_reason for report in ended.reports)
        assert not any(reason in line for line in ended.logged)


def test_progress_is_reported_in_every_phase(uninterrupted: tuple[TrainJob, Ended]) -> None:
    _, ended = uninterrupted
    assert {progress.phase for progress in ended.seen} == {"load", "train", "evaluate", "save"}
    steps = [progress for progress in ended.seen if progress.phase == "train"]
    assert all(p.loss and p.examples_per_second and p.eta_seconds is not None and p.total_steps for p in steps)


def test_models_are_scored_on_the_same_rows_and_by_the_labels_of_the_pipeline(
    uninterrupted: tuple[TrainJob, Ended], tmp_path: Path
) -> None:
    job, ended = uninterrupted
    turned = shutil.copytree(ended.result.best_model, tmp_path / "turned")
    settings = json.loads((turned / "config.json").read_text())
    settings["id2label"] = {"0": "good", "1": "bad", "2": "middling"}
    settings["label2id"] = {"good": 0, "bad": 1, "middling": 2}
    (turned / "config.json").write_text(json.dumps(settings))
    models = {"candidate": ended.result.best_model, "champion": turned}
    scores = ScoreJob(job.pipeline, job.snapshot, models, tmp_path / "scores", split="validation")
    scored = score_models(scores)
    assert files(tmp_path / "scores") == {"candidate.npz", "champion.npz", "score.json", "score.log"}
    stored = np.load(ended.reports[ended.result.best_epoch - 1].predictions)
    candidate, champion = (np.load(scored.written[name], allow_pickle=False) for name in ("candidate", "champion"))
    assert (candidate["labels"] == stored["labels"]).all()
    assert (champion["labels"] == stored["labels"]).all()
    assert np.abs(candidate["logits"] - stored["logits"]).max() < 1e-5
    assert (champion["logits"][:, [2, 0, 1]] == candidate["logits"]).all()
