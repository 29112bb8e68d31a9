"""The benchmark of orchestration: that its figures are what it says, and that its bounds bite."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.nights import NightError, Spent, spent
from benchmarks.orchestration import VARIANTS, Results, findings, markdown, verdict
from benchmarks.pairing import difference
from nightgate.data.refresh import READ
from nightgate.night.verdict import DECIDED
from nightgate.training.supervisor import DEALT, LIFE

ROOT = Path(__file__).parents[2]
BARE = Spent(wall=12.0, work=10.5, before=0.9, dealing=0.2, between=0.1, after=0.3)


def line(at: float, message: str) -> dict[str, Any]:
    """As `nightgate.logs` writes it."""
    return {"time": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"), "message": message}


def log_of_a_night() -> list[dict[str, Any]]:
    """Began at 100.0; refresh 101.0 to 101.5, training 102.0 to 108.0, scoring 108.25 to 110.25, serving from 110.3 on,
    and the gate's statistics."""
    return [
        line(101.5, READ % ("s-1", "100 rows, 7 of them new, 0 quarantined", 0.5)),
        line(107.9, "epoch 1: training loss 1.0000"),
        line(108.0, LIFE % ("training", 6.0, DEALT % 0.75)),
        line(110.25, LIFE % ("scoring", 2.0, "")),
        line(112.3, LIFE % ("serving", 2.0, "")),
        line(112.9, DECIDED % 0.5),
    ]


def test_the_seconds_of_a_night_are_divided_among_work_and_what_lies_around_it() -> None:
    found = spent(log_of_a_night(), 100.0, 113.5)
    assert found.before == pytest.approx(1.5)
    assert found.dealing == pytest.approx(0.75)
    assert found.between == pytest.approx(0.25)
    assert found.after == pytest.approx(0.75)
    assert found.own == pytest.approx(3.25)
    assert found.work + found.own == pytest.approx(found.wall) == 13.5


def test_a_night_whose_process_was_started_twice_is_no_measurement() -> None:
    lines = log_of_a_night()
    with pytest.raises(NightError, match=r"\['training', 'training', 'scoring', 'serving'\] and 1"):
        spent([lines[0], lines[2], *lines[2:]], 100.0, 111.0)


def nights(added: dict[str, float], own: float = 1.5) -> dict[str, list[Spent]]:
    """Three rounds on a machine that gets slower; every bound is met but for `added`."""
    rounds = [replace(BARE, wall=BARE.wall + slower, before=own - 0.6) for slower in (0.0, 3.0, 9.0)]
    found = {"bare": rounds}
    for variant in VARIANTS:
        if variant.bound is not None:
            more = added.get(variant.name, variant.bound)
            found[variant.name] = [replace(night, wall=night.wall + more) for night in rounds]
    return found


def test_added_seconds_are_paired_by_round_and_a_bound_that_is_just_met_holds() -> None:
    found = findings(nights({"server": 7.0}))
    assert [finding.found.median for finding in found] == pytest.approx([7.0, 20.0, 40.0, 1.5])
    assert [finding.bound for finding in found] == [8, 20, 40, 2]
    assert all(finding.holds for finding in found)
    assert verdict(nights({})) == 0


@pytest.mark.parametrize(
    ("measured", "named"),
    [
        (nights({"server": 8.1}), "with a server that runs: 8.1 s, the bound is 8 s"),
        (nights({"temporary": 20.1}), "with a temporary server: 20.1 s, the bound is 20 s"),
        (nights({"fresh": 40.1}), "with a temporary server in a fresh Prefect home: 40.1 s, the bound is 40 s"),
        (nights({}, own=2.1), "our own bookkeeping, of the night without Prefect: 2.1 s, the bound is 2 s"),
    ],
    ids=["server", "temporary", "fresh", "own"],
)
def test_a_bound_that_does_not_hold_is_named_and_fails_the_command(
    measured: dict[str, list[Spent]], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verdict(measured) == 1
    assert capsys.readouterr().err == f"FAILED: {named}\n"
    assert markdown(Results({}, measured)).count("**NO**") == 1


def test_the_table_says_what_was_measured_and_how_sure_it_is() -> None:
    told = markdown(Results({"processor": "2 cores"}, nights({"server": 3.0})))
    assert "- processor: 2 cores" in told
    assert "| with a server that runs | 18.0 | 3.00 | 8 | yes |" in told
    assert "| `--no-prefect` | 0.90 | 0.20 | 0.10 | 0.30 | 10.50 |" in told
    assert str(difference([1.0, 1.0, 1.0], [2.0, 3.0, 5.0])) == "2.00 (1.00 to 4.00, 75%)"


@pytest.mark.faults
def test_one_round_runs_and_writes_what_it_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.orchestration", "--rounds", "1", "--only", "server"]
    ran = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    # Whether the bounds hold is the machine's affair.
    assert ran.returncode in {0, 1}, ran.stderr
    assert "FAILED" in ran.stderr or ran.returncode == 0
    assert (tmp_path / "orchestration.md").read_text() in ran.stdout
    assert "| with a server that runs |" in ran.stdout
