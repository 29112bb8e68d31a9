"""The benchmark of the training engine: that it runs, that its figures are what it says, and that its gates bite."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.batches import padded_tokens, rounds
from benchmarks.pairing import coverage, ratio
from benchmarks.plot import Bar, svg
from benchmarks.workload import BATCH, SHAPES, STEPS_PER_EPOCH, Workload, drawn

ROOT = Path(__file__).parents[1]


def benchmark(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("accelerate", reason="the stock Trainer needs it: pip install 'nightgate[bench]'")
    command = [sys.executable, "-m", "benchmarks.training", "--quick", "--out", str(out), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


def test_a_quick_run_passes_its_gates_and_writes_tables_measurements_and_a_picture(tmp_path: Path) -> None:
    ran = benchmark(tmp_path)

    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "tiny-cpu.md").read_text() in ran.stdout
    assert (tmp_path / "tiny-cpu.svg").read_text().startswith("<svg")
    found = json.loads((tmp_path / "tiny-cpu.json").read_text())
    assert found["parity"]
    assert all(gate["found"] <= gate["limit"] for gate in found["parity"])
    assert found["engine"].startswith("packed texts")
    assert set(found["variants"]) == {"dynamic", "ours"}
    for measured in found["variants"].values():
        assert all(seconds > 0 for table in measured["steps"].values() for seconds in table)
        assert measured["memory"] > 0
    assert found["variants"]["ours"]["save"]["finished"] > 0


def test_a_learning_rate_of_ours_that_is_a_thousandth_too_high_fails_the_gates(tmp_path: Path) -> None:
    ran = benchmark(tmp_path, "--sabotage")

    assert ran.returncode == 1
    assert "FAILED: weights, fp64" in ran.stderr
    assert "no speed was measured" in ran.stderr
    assert not (tmp_path / "tiny-cpu.md").exists()


def test_drawn_lengths_are_those_of_reviews(multi: Workload) -> None:
    first, last = multi.tables["median 31"]
    # Before the cut at 128; half of all rows are far below it.
    assert np.percentile(multi.lengths[first:last], [50, 90]) == pytest.approx([31, 89], rel=0.03)
    assert "median 31, mean 43" in multi.facts["median 31"]
    assert "median 75" in multi.facts["median 75"]
    assert 50_000 < len(np.unique(multi.ids)) <= 60_000 + 3


def test_the_batches_of_a_round_are_as_long_and_as_padded_as_the_epoch_s(multi: Workload) -> None:
    first, last = multi.tables["median 31"]
    whole = multi.lengths[first:last].reshape(-1, BATCH)

    for batches in rounds(multi, "median 31", "random", count=9, steps=2, seed=1):
        lengths = multi.lengths[np.stack(batches)]
        assert lengths.sum(axis=1).mean() == pytest.approx(whole.sum(axis=1).mean(), rel=0.03)
        assert padded_tokens(lengths).mean() == pytest.approx(padded_tokens(whole).mean(), rel=0.03)


def test_a_ratio_is_paired_by_round_and_its_interval_is_that_of_the_sign_test() -> None:
    reference = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0]
    found = ratio(reference, [5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 30.0])

    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)
    assert found.confidence == pytest.approx(0.9609, abs=1e-4)


def test_fewer_than_six_rounds_cannot_give_a_95_percent_interval_and_say_so() -> None:
    found = ratio([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])

    assert coverage(5, 1) < 0.95 < coverage(6, 1)
    assert str(found) == "2.00 (1.00 to 3.00, 75%)"


def test_the_picture_names_every_variant_and_shows_its_interval() -> None:
    picture = svg("Steps", "note", [Bar("a < b", ratio([2.0, 4.0], [1.0, 1.0]), is_ours=True)])

    assert "a &lt; b" in picture
    assert ">3.00x<" in picture
    assert 'class="whisker"' in picture


@pytest.fixture(scope="module")
def multi() -> Workload:
    return drawn(SHAPES["multi"], STEPS_PER_EPOCH * BATCH, seed=1)
