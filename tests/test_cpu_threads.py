"""Threads for PyTorch on the CPU: their number, and how idle ones wait."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nightgate import cpu_threads

pytestmark = pytest.mark.process

OWN = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
SPIN = {"GOMP_SPINCOUNT": "10000"}
SLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OWN:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("others", "settings"), [(0.0, SPIN), (0.15, SPIN), (0.16, SLEEP), (1.0, SLEEP), (None, SLEEP)]
)
def test_idle_threads_spin_only_on_an_idle_machine(others: float | None, settings: dict[str, str]) -> None:
    assert cpu_threads.choose_waiting(others)[0] == settings


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("KMP_BLOCKTIME", "0")])
def test_the_users_own_settings_win(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv(name, value)
    added = cpu_threads.openmp_settings()
    assert not set(OWN) & set(added)
    for setting, reason in added.items():
        monkeypatch.setenv(setting, reason)
    count, why = cpu_threads.pick_threads()
    assert count == 3
    assert name in why


def test_a_single_thread_needs_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cpu_threads.openmp_settings() == {}
    assert cpu_threads.pick_threads()[0] == 1


@pytest.fixture
def busy_processes() -> Iterator[None]:
    """One on each CPU."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    yield
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("busy_processes")
def test_busy_processes_are_measured_and_the_reason_reaches_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    settings = cpu_threads.openmp_settings()
    assert settings["OMP_WAIT_POLICY"] == "PASSIVE"
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert "other processes use" in cpu_threads.pick_threads()[1]
