"""A process lives or is dead whatever happens to the clock: it is looked up by boot, container, pid and start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from nightgate.database.schema import Attempt
from nightgate.database.transactions import Database
from nightgate.runs.liveness import Owner, cause_of_death, start_ticks
from tests.support import night_rows
from tests.support.night_rows import one, opened

pytestmark = pytest.mark.process

NOW = datetime(2026, 3, 1, 3, 15, tzinfo=UTC)
HOURS = timedelta(hours=3)

linux = pytest.mark.skipif(sys.platform != "linux", reason="the start in clock ticks comes from /proc")


@pytest.fixture(scope="module")
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def owner(sleeper: subprocess.Popen[bytes]) -> Owner:
    return Owner.of(sleeper.pid)


def death(owner: Owner, *, beat: datetime = NOW, moment: datetime = NOW) -> str:
    attempt = Attempt(
        attempt=1,
        host=owner.host,
        pid=owner.pid,
        owner_started=owner.started,
        owner_ticks=owner.ticks,
        process_space=owner.space,
        started_at=NOW,
        heartbeat_at=beat,
    )
    return cause_of_death(attempt, moment)


@linux
@pytest.mark.parametrize("step", [HOURS, -HOURS, timedelta(days=40)], ids=["forward", "back", "suspended for long"])
def test_a_living_process_of_this_machine_lives_however_the_clock_was_set(owner: Owner, step: timedelta) -> None:
    shifted = replace(owner, started=owner.started + step)
    assert death(shifted, moment=NOW + step) == ""
    assert death(owner, beat=NOW + step) == ""


@linux
def test_another_process_with_its_pid_is_not_taken_for_it(owner: Owner) -> None:
    """As after the restart of a container, whose first pid is 1 each time."""
    assert owner.ticks is not None
    assert "ended unexpectedly" in death(replace(owner, ticks=owner.ticks - 1))


def test_a_process_that_has_ended_is_dead_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owner = Owner.of(process.pid)
        assert death(owner) == ""
        process.communicate(b"\n")
    assert "ended unexpectedly" in death(owner)


@pytest.mark.parametrize("elsewhere", [{"space": "another boot/1"}, {"host": "worker-7"}])
def test_a_process_elsewhere_is_dead_once_its_heartbeat_is_old(owner: Owner, elsewhere: dict[str, str]) -> None:
    other = replace(owner, **elsewhere)
    assert death(other, moment=NOW + timedelta(seconds=119)) == ""
    assert "no heartbeat for 2 minutes" in death(other, moment=NOW + timedelta(seconds=121))


def test_a_row_without_ticks_is_judged_by_the_start_while_it_agrees_else_by_the_heartbeat(owner: Owner) -> None:
    """Of an earlier version, or of a system without /proc."""
    earlier = replace(owner, ticks=None)
    assert death(earlier, moment=NOW + HOURS) == ""
    disagrees = replace(earlier, started=owner.started - HOURS)
    assert death(disagrees) == ""
    assert "no heartbeat" in death(disagrees, moment=NOW + HOURS)


def test_a_night_that_this_process_has_outlived_ends_with_its_heartbeat() -> None:
    assert death(Owner.here()) == ""
    assert "no heartbeat" in death(Owner.here(), moment=NOW + HOURS)


def test_a_name_with_spaces_and_parentheses_does_not_move_the_ticks(owner: Owner) -> None:
    script = "open('/proc/self/comm', 'w').write('a) b (1 2'); print(); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        ticks = start_ticks(process.pid)
        process.communicate(b"\n")
    assert ticks is None or (owner.ticks or 0) <= ticks < (owner.ticks or 0) + 100 * 3600


# --- in the database ---


def test_the_silence_of_a_heartbeat_from_the_future_counts_from_its_first_reading(database: Database) -> None:
    first = opened(database, owner=replace(Owner.here(), host="worker-7"))
    silence = "sent no heartbeat"

    def beat_at(ago: timedelta) -> None:
        change = sa.update(Attempt).values(heartbeat_at=datetime.now(UTC) - ago)
        database.write(lambda session: session.execute(change))

    beat_at(-HOURS)
    assert opened(database, day=1).status == "superseded"
    after = database.frame("SELECT heartbeat_at FROM attempt WHERE run_id = :id", {"id": first.run_id}).iloc[0, 0]
    assert datetime.fromisoformat(str(after)) < datetime.now(UTC) + timedelta(minutes=1)
    beat_at(timedelta(seconds=125))
    opened(database, day=2)
    assert silence in one(database, first.run_id)["reason"]


def test_a_claim_is_a_heartbeat_by_the_clock_that_heartbeats_use(database: Database) -> None:
    """The claimer's own clock may be hours behind the database's."""
    opened(database, owner=replace(Owner.here(), host="worker-7"))
    database.write(lambda session: session.execute(sa.update(Attempt).values(started_at=NOW - HOURS)))
    assert opened(database, day=1).status == "superseded"


@linux
def test_the_start_in_ticks_is_stored_with_the_claim(database: Database) -> None:
    opened(database, owner=Owner.here())
    assert database.frame("SELECT owner_ticks FROM attempt").iloc[0, 0] == Owner.here().ticks


def test_a_dead_owner_of_the_tests_is_of_this_machine() -> None:
    assert "ended unexpectedly" in death(night_rows.dead_owner())
