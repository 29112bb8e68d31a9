"""How idle threads wait, and who decides it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from nightgate import cpu_threads

OWN = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OWN:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("others", "settings", "reason"),
    [
        (0.0, {"GOMP_SPINCOUNT": "10000"}, "idle ones spin briefly: others use 0% of these CPUs"),
        (0.15, {"GOMP_SPINCOUNT": "10000"}, "idle ones spin briefly: others use 15% of these CPUs"),
        (0.16, {"OMP_WAIT_POLICY": "PASSIVE"}, "idle ones sleep: others use 16% of these CPUs"),
        (1.0, {"OMP_WAIT_POLICY": "PASSIVE"}, "idle ones sleep: others use 100% of these CPUs"),
        (None, {"OMP_WAIT_POLICY": "PASSIVE"}, "idle ones sleep: how busy the machine is cannot be read"),
    ],
)
def test_idle_threads_spin_only_where_nobody_else_computes(
    others: float | None, settings: dict[str, str], reason: str
) -> None:
    assert cpu_threads.choose_waiting(others) == (settings, reason)


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("KMP_BLOCKTIME", "0")])
def test_a_setting_of_the_users_own_wins(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv(name, value)
    for setting, reason in cpu_threads.openmp_settings().items():
        monkeypatch.setenv(setting, reason)
    assert cpu_threads.pick_threads() == (3, f"3 threads: OMP_NUM_THREADS says so; idle ones wait as {name} says")


def test_one_thread_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cpu_threads.openmp_settings() == {}
    assert cpu_threads.pick_threads() == (1, "1 threads: OMP_NUM_THREADS says so")


@pytest.fixture
def busy_neighbours() -> Iterator[None]:
    """One on each CPU."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    yield
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("busy_neighbours")
def test_busy_neighbours_are_seen_and_the_reason_reaches_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    settings = cpu_threads.openmp_settings()
    assert settings["OMP_WAIT_POLICY"] == "PASSIVE"
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert "idle ones sleep: others use" in cpu_threads.pick_threads()[1]


@pytest.mark.parametrize(
    ("since_the_look", "slept", "share"),
    [(10.0, 0.0, 0.2), (0.1, 0.2, 1.0), (61.0, 0.3, 1.0)],
    ids=["long enough ago", "waits until it was", "of another hour: anew"],
)
def test_what_others_use_is_what_we_and_our_children_do_not(
    since_the_look: float, slept: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine of two CPUs that are both busy; in the ten seconds we used four, a child that has ended twelve."""
    clock = [1000.0]
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        clock[0] += seconds

    def cpu_times(percpu: bool) -> list[Any]:
        assert percpu
        return [namedtuple("times", ["user", "idle"])(clock[0], 7.0)] * 2

    long_ago = since_the_look == 10.0
    monkeypatch.setattr(cpu_threads, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    monkeypatch.setattr(psutil, "cpu_times", cpu_times)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(cpu_threads, "_looks", [])
    used = [SimpleNamespace(user=1.0, system=0.0, children_user=0.0, children_system=0.0)]
    monkeypatch.setattr(os, "times", lambda: used[0])
    cpu_threads.look()
    clock[0] += since_the_look
    if long_ago:
        used[0] = SimpleNamespace(user=4.0, system=1.0, children_user=10.0, children_system=2.0)
    assert cpu_threads.use_by_others() == pytest.approx(share)
    assert sum(waited) == pytest.approx(slept)
