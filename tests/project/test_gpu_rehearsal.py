"""`python -m benchmarks.gpu` without a GPU: every part runs, gates can fail, and a failed part does not stop others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import PARTS, main

pytestmark = pytest.mark.process


def rehearsal(*options: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("accelerate", reason="the stock Trainer needs it: pip install 'nightgate[bench]'")
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", *options]
    return subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=580, check=False
    )


def failed(ran: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.split("|")[1].strip() for line in ran.stdout.splitlines() if "**FAILED**" in line]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_part_runs_on_the_cpu_and_passes_its_gates() -> None:
    ran = rehearsal()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert failed(ran) == []
    begun = {line.split("|")[1].split(":")[0].strip() for line in ran.stdout.splitlines()}
    assert {"out of memory" if part == "memory" else part for part in PARTS} <= begun


@pytest.mark.slow
def test_a_learning_rate_that_is_five_percent_too_high_fails_the_gates_of_fp32() -> None:
    ran = rehearsal("--sabotage", "--only", "reference", "fp32")
    assert ran.returncode == 1
    assert failed(ran) == ["fp32: losses of 20 steps", "fp32: logits after them"]


@pytest.mark.slow
def test_a_part_that_dies_is_reported_and_the_next_one_runs() -> None:
    # Without the reference there is no file to compare with.
    ran = rehearsal("--only", "fp32", "memory")
    assert ran.returncode == 1
    assert failed(ran) == ["fp32"]
    assert "reference.npz" in ran.stdout
    assert "out of memory: loss of the batch" in ran.stdout


def test_a_part_for_which_no_time_is_left_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--minutes", "0"]) == 1
    assert capsys.readouterr().out.count("**FAILED**") == len(PARTS)


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_stopped() -> None:
    ran = rehearsal("--minutes", "0.02", "--only", "night")
    assert ran.returncode == 1
    assert failed(ran) == ["night"]
