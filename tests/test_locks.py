"""Locks that processes share: limit, order, the death of those that hold or wait, and a home that cannot have them."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nightgate import locks
from nightgate.errors import StorageError
from nightgate.home import Home
from tests.cli.test_read_only import without_rights

HOLD = """
import sys, time
from pathlib import Path
from nightgate.home import Home
from nightgate.locks import hold
home, name, limit, holder, priority = sys.argv[1:]
said = []
says = lambda _: said or (said.append(1), print("waiting", flush=True))
with hold(Home(Path(home), ""), name, limit=int(limit), holder=holder, priority=int(priority), on_wait=says):
    print("holding", flush=True)
    sys.stdin.read()
"""
Start = Callable[..., subprocess.Popen[str]]


def names(home: Home, name: str, *, waits: bool = False) -> list[str]:
    """Those that hold the lock, or that wait for it, in order."""
    return [place.holder for place in locks.queue(home, name) if place.waits == waits]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, "")


@pytest.fixture
def start(home: Home) -> Iterator[Start]:
    """Start a process that holds a lock, or waits for it first, until its input ends."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str, holder: str, *, limit: int = 1, priority: int = 0, waits: bool = False) -> Any:
        command = [sys.executable, "-c", HOLD, str(home.root), name, str(limit), holder, str(priority)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == ("waiting\n" if waits else "holding\n")
        return process

    yield start
    for process in started:
        process.kill()
        with process:
            pass


@pytest.mark.process
def test_as_many_processes_as_the_limit_hold_a_name_and_a_killed_one_frees_it_at_once(home: Home, start: Start) -> None:
    first, second = start("slot-gpu", "reviews (r1)", limit=2), start("slot-gpu", "news (n1)", limit=2)
    assert names(home, "slot-gpu") == ["reviews (r1)", "news (n1)"]
    assert names(home, "slot-gpu1") == []

    waited: list[str] = []

    def kill_first(sentence: str) -> None:
        waited.append(sentence)
        if len(waited) == 1:
            first.send_signal(signal.SIGKILL)
            first.wait()

    started = time.monotonic()
    with locks.hold(home, "slot-gpu", limit=2, holder="shop (s1)", on_wait=kill_first):
        assert time.monotonic() - started < 3 * locks.POLL_SECONDS
        assert "reviews (r1)" in waited[0]
        assert "news (n1)" in waited[0]
        assert names(home, "slot-gpu") == ["news (n1)", "shop (s1)"]
    assert names(home, "slot-gpu") == ["news (n1)"]
    second.stdin.close()
    assert second.wait(10) == 0
    assert names(home, "slot-gpu") == []


@pytest.mark.process
def test_the_highest_priority_goes_first_then_the_longest_wait_and_a_killed_one_has_no_place(
    home: Home, start: Start
) -> None:
    first = start("slot-gpu", "first")
    early, late = (start("slot-gpu", name, waits=True) for name in ("early", "late"))
    urgent, killed = (start("slot-gpu", name, priority=5, waits=True) for name in ("urgent", "killed"))
    assert names(home, "slot-gpu", waits=True) == ["urgent", "killed", "early", "late"]
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert names(home, "slot-gpu", waits=True) == ["urgent", "early", "late"]
    for holder, after in ((first, urgent), (urgent, early), (early, late)):
        holder.stdin.close()
        assert after.stdout.readline() == "holding\n"
    late.stdin.close()
    assert late.wait(10) == 0
    assert [path.name for path in (home.root / "locks").iterdir()] == ["slot-gpu.0"]


def test_what_check_raises_ends_the_wait_and_leaves_the_holder(home: Home) -> None:
    def taken_over() -> None:
        raise InterruptedError

    with locks.hold(home, "data-reviews", holder="night r1"):
        with (
            pytest.raises(InterruptedError),
            locks.hold(home, "data-reviews", holder="night r2", check=taken_over),
        ):
            pytest.fail("held twice")
        assert [place.holder for place in locks.queue(home, "data-reviews")] == ["night r1"]
        with locks.hold(home, "data-news", holder="night n1", check=taken_over):
            pass


@pytest.mark.process
def test_a_program_that_a_holder_starts_does_not_keep_the_lock(home: Home) -> None:
    with locks.hold(home, "slot-gpu", holder="reviews (r1)"):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert names(home, "slot-gpu") == []
    finally:
        child.kill()
        child.wait()


def test_a_home_that_is_gone_is_an_error_and_has_no_holders(home: Home) -> None:
    shutil.rmtree(home.root)
    assert names(home, "slot-gpu") == []
    with pytest.raises(StorageError) as caught, locks.hold(home, "slot-gpu", holder="reviews (r1)"):
        pass
    assert "NIGHTGATE_HOME" in caught.value.next_step


@pytest.mark.process
def test_who_may_not_write_to_the_home_sees_holders_and_cannot_be_one(home: Home) -> None:
    code = """
import sys
from pathlib import Path
from nightgate import locks
from nightgate.errors import StorageError
from nightgate.home import Home
home = Home(Path(sys.argv[1]), "")
print(*(place.holder for place in locks.queue(home, "slot-gpu")))
try:
    with locks.hold(home, "slot-gpu", holder="a reader"):
        pass
except StorageError as error:
    print(error.next_step)
"""
    with locks.hold(home, "slot-gpu", holder="reviews (r1)"):
        for path, mode in ((home.root / "locks" / "slot-gpu.0", 0o444), (home.root / "locks", 0o555)):
            path.chmod(mode)
        command = [*without_rights(), sys.executable, "-c", code, str(home.root)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    holder, next_step = done.stdout.splitlines()
    assert holder == "reviews (r1)"
    assert "NIGHTGATE_HOME" in next_step
