"""The benchmarks of the training engine and of the gate: that they run, that their figures are what they say, and that
their bounds bite."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from benchmarks.batches import padded_tokens, rounds
from benchmarks.gate import QUICK, Results, promises, verdict
from benchmarks.gate_coverage import SHARES, Coverage, Population
from benchmarks.gate_trials import labelled_night
from benchmarks.gate_worlds import NIGHTS, WORLDS
from benchmarks.gate_years import POLICIES, Summary, Tonight, paired_interval, simulate, summary
from benchmarks.pairing import coverage, ratio
from benchmarks.plot import Bar, svg
from benchmarks.workload import BATCH, SHAPES, STEPS_PER_EPOCH, Workload, drawn
from nightgate import config
from nightgate.metrics.bootstrap import f1_difference

ROOT = Path(__file__).parents[2]


def benchmark(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("accelerate", reason="the stock Trainer needs it: pip install 'nightgate[bench]'")
    command = [sys.executable, "-m", "benchmarks.training", "--quick", "--out", str(out), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_random_base_model_has_the_form_of_the_published_one(tmp_path: Path) -> None:
    from benchmarks.workload import base_model, load

    assert (SHAPES["multi"].vocabulary, SHAPES["multi"].tokens, SHAPES["multi"].pad_id) == (250_037, 250_002, 1)
    loaded = load(base_model(SHAPES["tiny"], tmp_path / "base"))
    embedding = loaded.model.get_input_embeddings()
    assert loaded.model.config.model_type == "bert"
    assert (loaded.tokenizer.pad_token_id, loaded.model.config.pad_token_id, embedding.padding_idx) == (1, 0, 0)
    assert embedding.num_embeddings - len(loaded.tokenizer) == 35


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


def test_a_quick_simulation_of_the_gate_keeps_its_promises_and_writes_tables_and_a_picture(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gate", "--quick", "--out", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)

    assert ran.returncode == 0, ran.stderr
    tables = (tmp_path / "gate.md").read_text()
    assert tables in ran.stdout
    assert "**NO**" not in tables
    picture = (tmp_path / "gate-simulation.svg").read_text()
    assert "concept drift" in picture
    assert "superior on all rows" in picture
    found = json.loads((tmp_path / "gate.json").read_text())
    assert len(found["years"]) == 2 * len(POLICIES)
    assert all(len(year["curve"]) == NIGHTS for year in found["years"])


def quick_results() -> Results:
    """All promises kept, the years flat."""
    size = replace(QUICK, worlds=("equal", "drift", "decay"), timed=True)
    flat = [Summary(world, "ours", 5000, 0.56, 0.56, 3.0, 0.02, 50.0, [0.56] * NIGHTS) for world in size.worlds]
    covered = [Coverage("F1", "weighted", "balanced", 1000, False, 0.95, 2000)]
    return Results(size, config.Gate(), flat, covered, superior=0.025, agreement=1.0, slices=0.0, decision_seconds=0.2)


def test_a_margin_of_ten_points_breaks_the_gate_s_promise_and_the_command_says_which(
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = quick_results()
    assert verdict(results) == 0
    results.years[0] = summary("equal", "ours", 5000, 10, config.Gate(margin=0.1), seed=1)

    assert verdict(results) == 1
    assert "FAILED: equal nights: promotions that lose over 0.5 points: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        ({"superior": 0.051}, "of two equal models"),
        ({"slices": 0.06}, "one of 40 slices"),
        ({"grouped_slices": 0.06}, "rows in groups of 25"),
        ({"agreement": 0.97}, "as by the bootstrap"),
        ({"decision_seconds": 0.6}, "bootstrap of one decision"),
        ({"slices": float("nan")}, "one of 40 slices"),
        ({"coverage": [Coverage("F1", "macro", "skewed", 1000, True, 0.9395, 2000)]}, "macro F1, skewed, 1,000 rows"),
        ({"coverage": [Coverage("F1", "macro", "skewed", 1000, True, 0.9605, 2000)]}, "macro F1, skewed, 1,000 rows"),
    ],
)
def test_every_promise_can_be_broken(broken: dict[str, Any], promise: str) -> None:
    results = replace(quick_results(), **broken)
    assert [promise in one.title for one in promises(results) if not one.holds] == [True]


def test_a_champion_below_the_average_candidate_under_drift_breaks_a_promise() -> None:
    results = quick_results()
    results.years[1] = replace(results.years[1], mean=0.549)
    assert ["concept drift: champion's mean" in one.title for one in promises(results) if not one.holds] == [True]


def test_a_champion_that_slides_by_more_than_a_point_under_silent_decay_breaks_a_promise() -> None:
    results = quick_results()
    results.years[2] = replace(results.years[2], curve=[0.56] * 300 + [0.549] * 65)
    assert ["fall from its best night" in one.title for one in promises(results) if not one.holds] == [True]


def test_the_simulated_interval_of_a_gap_is_that_of_resampling_its_rows() -> None:
    true, (champion, candidate) = labelled_night(5000, (0.0, 0.01), np.random.default_rng(3))
    gains = np.count_nonzero((candidate == true) & (champion != true))
    losses = np.count_nonzero((candidate != true) & (champion == true))
    found = paired_interval(np.array([gains]), np.array([losses]), 5000, 0.95)
    resampled = f1_difference(true, champion, candidate, 5, "weighted")
    assert resampled.interval is not None
    assert [float(part[0]) for part in found] == pytest.approx([resampled.value, *resampled.interval], abs=0.0015)


def test_the_truth_of_a_population_is_what_very_many_of_its_rows_show() -> None:
    for name, shares in SHARES.items():
        population = Population.of(shares)
        (true, reference, candidate), authors = population.draw(400_000, True, np.random.default_rng(4))
        for average in ("weighted", "macro"):
            f1, difference = population.truth(average)
            seen, other = (float(f1_score(true, labels, average=average)) for labels in (candidate, reference))
            assert seen == pytest.approx(f1, abs=0.006), name
            assert seen - other == pytest.approx(difference, abs=0.006), name
        assert np.bincount(authors).tolist() == [10] * 40_000


def test_what_a_simulated_champion_had_right_it_has_right_the_next_night() -> None:
    """The stored score of a champion of last night is tonight's: nearly all rows are the same."""
    nights: list[Tonight] = []

    def every_night(tonight: Tonight, gate: config.Gate) -> NDArray[np.bool_]:
        del gate
        nights.append(tonight)
        return np.ones(len(tonight.f1), dtype=np.bool_)

    policy = replace(POLICIES[-1], promotes=every_night)
    years = simulate(WORLDS[0], policy, 5000, 50, config.Gate(), seed=1)

    assert years.promoted.all()
    assert (years.age == 1).all()
    # New rows come every fifth night.
    for number, tonight in enumerate(nights, 1):
        if number % 5:
            assert tonight.champion_f1.tolist() == tonight.stored_f1.tolist()
    f1 = np.array([tonight.f1 for tonight in nights])
    # 0.6 points between seeds, and of the rows those that are decided anew by each model.
    assert f1.mean() == pytest.approx(0.55, abs=0.002)
    gaps = np.array([tonight.gap[0] for tonight in nights])
    assert gaps.std() == pytest.approx(np.sqrt(2 * 0.006**2 + 0.2 / 5000), rel=0.05)


def test_a_new_segment_costs_a_champion_that_has_not_seen_it_five_points() -> None:
    segment = next(world for world in WORLDS if world.name == "segment")
    nights = np.array([179.0, 180.0, 194.0, 365.0])
    assert segment.change(np.array([100.0]), nights).tolist() == [0.0, -0.05, -0.05, -0.05]
    assert segment.change(nights, nights) == pytest.approx([0.0, -0.05, -0.025, 0.0], abs=0.0005)
