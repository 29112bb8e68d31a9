"""The benchmarks of training and gate run, compute what they claim, and fail when a limit is exceeded."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import alarms, continued, gate_years
from benchmarks.gate import promises
from benchmarks.gate_worlds import NIGHTS, WORLDS
from benchmarks.gate_years import POLICIES, Summary, Tonight, simulate
from benchmarks.results import at_most, exit_code, ratio
from benchmarks.reviews import Reviews
from benchmarks.workload import (
    BATCH,
    SHAPES,
    STEPS_PER_EPOCH,
    Workload,
    base_model,
    drawn,
    load,
    padded_tokens,
    rounds,
)
from nightgate.config.gate import Gate
from nightgate.metrics.fall import LIMIT

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]


def run(module: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, "--quick", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


# --- training ---


@pytest.mark.slow
def test_a_quick_run_passes_its_gates_and_prints_what_it_measured() -> None:
    pytest.importorskip("accelerate", reason="the stock Trainer needs it: pip install 'nightgate[bench]'")
    ran = run("benchmarks.training")

    assert ran.returncode == 0, ran.stderr
    # One more where bf16 is native.
    assert ran.stdout.count("| ok |") in (6, 7)
    assert "packed texts" in ran.stdout
    (ours,) = (line.split(" | ") for line in ran.stdout.splitlines() if "| ours, fp32" in line)
    assert float(ours[1]) > 0
    assert ours[2]


@pytest.mark.slow
def test_predictions_are_those_of_the_pipeline_of_transformers() -> None:
    options = ("--shape", "tiny", "--rows", "48", "--rounds", "1")
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.prediction", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    differences = [line for line in ran.stdout.splitlines() if "largest difference" in line]
    assert differences, ran.stderr
    assert all(line.endswith("| ok |") for line in differences)
    assert "ours, fp32, times as fast" in ran.stdout


@pytest.mark.slow
def test_a_learning_rate_that_is_a_thousandth_too_high_fails_the_gates() -> None:
    pytest.importorskip("accelerate", reason="the stock Trainer needs it: pip install 'nightgate[bench]'")
    ran = run("benchmarks.training", "--sabotage")

    assert ran.returncode == 1
    assert "FAILED: weights, fp64" in ran.stderr
    assert "ours, fp32" not in ran.stdout


@pytest.fixture(scope="module")
def multi() -> Workload:
    return drawn(SHAPES["multi"], STEPS_PER_EPOCH * BATCH, seed=1)


def test_drawn_lengths_are_those_of_reviews(multi: Workload) -> None:
    # Half of all rows are far below the cut at 128.
    assert np.percentile(multi.lengths, [50, 90]) == pytest.approx([31, 89], rel=0.03)
    assert "median 31, mean 43" in multi.facts
    assert "median 75" in drawn(SHAPES["multi"], 8_000, seed=1, median=75).facts
    assert 50_000 < len(np.unique(multi.ids)) <= 60_000 + 3


def test_a_random_base_model_has_the_form_of_the_published_one(tmp_path: Path) -> None:
    assert (SHAPES["multi"].vocabulary, SHAPES["multi"].tokens, SHAPES["multi"].pad_id) == (250_037, 250_002, 1)
    loaded = load(base_model(SHAPES["tiny"], tmp_path / "base"))
    embedding = loaded.model.get_input_embeddings()
    assert loaded.model.config.model_type == "bert"
    assert (loaded.tokenizer.pad_token_id, loaded.model.config.pad_token_id, embedding.padding_idx) == (1, 0, 0)
    assert embedding.num_embeddings - len(loaded.tokenizer) == 35


def test_the_batches_of_a_round_are_as_long_and_as_padded_as_the_epoch_s(multi: Workload) -> None:
    whole = multi.lengths.reshape(-1, BATCH)

    for batches in rounds(multi, False, count=9, steps=2, seed=1):
        lengths = multi.lengths[np.stack(batches)]
        assert lengths.sum(axis=1).mean() == pytest.approx(whole.sum(axis=1).mean(), rel=0.03)
        assert padded_tokens(lengths).mean() == pytest.approx(padded_tokens(whole).mean(), rel=0.03)


def test_a_ratio_is_paired_by_round() -> None:
    found = ratio([10.0, 20.0, 30.0, 40.0], [5.0, 10.0, 15.0, 10.0])

    assert found == (2.0, 2.0, 4.0)
    assert str(found) == "2.00 (2.00 to 4.00)"


def test_a_limit_does_not_pass_with_nan() -> None:
    results = [at_most("difference", found, 0.1) for found in (0.1, 0.11, float("nan"))]
    assert [result.passed for result in results] == [True, False, False]
    assert (exit_code(results[:1]), exit_code(results)) == (0, 1)


# --- quality and continued nights ---


@pytest.mark.slow
def test_a_second_start_of_the_quality_benchmark_trains_nothing_again(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the stock Trainer needs it: pip install 'nightgate[bench]'")
    journal = tmp_path / "quality.jsonl"
    first = run("benchmarks.quality", "--results", str(journal))
    lines = journal.read_text(encoding="utf-8").splitlines()
    # The last line of a process that was killed.
    journal.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40], encoding="utf-8")
    second = run("benchmarks.quality", "--results", str(journal))

    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert len(lines) == 6
    assert first.stderr.count(" seed ") == 6
    assert second.stderr.count(" seed ") == 1
    [masks] = [line for line in second.stdout.splitlines() if line.startswith("| loss of the first")]
    assert masks.endswith("| ok |")


@pytest.mark.slow
def test_a_quick_run_of_continued_nights_has_every_world_and_the_cost_of_a_night() -> None:
    ran = run("benchmarks.continued")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("| champion left alone |") == len(continued.WORLDS)
    shares = [
        line.split(" | ")[2] for line in ran.stdout.splitlines() if line.startswith("| mean, full training every")
    ]
    # A night in full every 15 or 30 nights is a fifteenth or a thirtieth of the cost by itself.
    assert 100 / 15 < float(shares[0].rstrip(" %|")) < 20
    assert 100 / 30 < float(shares[1].rstrip(" %|")) < 20


def test_a_category_that_comes_late_is_half_of_what_is_new() -> None:
    workload = drawn(SHAPES["tiny"], 1_000, seed=1)
    category = np.array(["old", "late"])[np.arange(1_000) % 2]
    nights = continued.arrivals(Reviews(workload, category, ""), "category", 200, 12, "late")

    late = [(category[rows] == "late").mean() for rows in nights]
    assert late == [0.0] * 10 + [0.5] * 3
    assert [len(rows) for rows in nights[:2]] == [200, 2]
    coming = np.concatenate(nights)
    assert len(np.unique(coming)) == len(coming)
    grown = continued.arrivals(Reviews(workload, category, ""), "growth", 200, 30, "late")
    assert sum(map(len, grown)) == pytest.approx(200 * 1.05**30, rel=0.02)


def test_a_narrower_interval_leaves_out_the_extremes_of_nine_rounds() -> None:
    assert ratio([*range(1, 10)], [1.0] * 9) == (5.0, 2.0, 8.0)


# --- the refresh ---


@pytest.mark.slow
def test_a_quick_run_of_the_refresh_measures_every_night() -> None:
    ran = run("benchmarks.refresh")
    assert ran.returncode == 0, ran.stderr
    cells = [line.strip("| ").split(" | ") for line in ran.stdout.splitlines() if line.startswith("| ")]
    found = {name: figures for name, *figures in cells}
    # Nothing new costs the plan and the tip, whatever the rows.
    assert float(found["nothing new"][0]) < 0.1 * float(found["first refresh"][0]) + 0.05
    assert float(found["bytes that it adds, times those of its rows"][0]) < 10
    assert {"+1 % behind a mark", "first refresh, with near-duplicates", "10 nights of +0.1 %"} <= set(found)
    # Limits are for a million rows.
    assert "ok" not in {figures[-1] for figures in found.values()}


# --- the history ---


@pytest.mark.slow
def test_a_quick_run_of_the_history_measures_every_query_command_and_view_on_both_engines() -> None:
    ran = run("benchmarks.history")
    assert "Traceback" not in ran.stderr, ran.stderr
    cells = [line.strip("| ").split(" | ") for line in ran.stdout.splitlines() if line.startswith("| ")]
    found = {name: figures for name, *figures in cells}
    assert found.keys() >= {"KiB a night, SQLite", "all time of all pipelines, ms, PostgreSQL", "nights", "status"}
    views = next(name for name in found if name.startswith("views that DuckDB reads without types"))
    assert found[views][0] == "0"
    assert not {name for name, (first, *_) in found.items() if first == "nan"}


# --- the gate ---


def test_a_quick_simulation_of_the_gate_keeps_its_promises_and_prints_every_policy() -> None:
    ran = run("benchmarks.gate")

    assert ran.returncode == 0, ran.stderr
    assert all(ran.stdout.count(f"| {policy.title} |") == 2 for policy in POLICIES)


def flat_years() -> list[Summary]:
    """All promises kept."""
    worlds = ("equal", "drift", "decay")
    return [Summary(world, "ours", 0.56, 0.56, 3.0, 0.02, 50.0, [0.56] * NIGHTS) for world in worlds]


def test_a_margin_of_ten_points_breaks_the_gate_s_promise_and_the_command_names_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    years = flat_years()
    assert exit_code(promises(years)) == 0
    years[0] = simulate("equal", "ours", 5000, 10, Gate(margin=0.1), seed=1)

    assert exit_code(promises(years)) == 1
    assert "FAILED: equal nights: promotions that lose over" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("at", "broken", "promise"),
    [
        (0, {"lost": float("nan")}, "equal nights: promotions"),
        (1, {"mean": 0.549}, "concept drift: champion's mean"),
        (2, {"curve": [0.56] * 300 + [0.549] * 65}, "fall from its best night"),
    ],
)
def test_every_promise_can_be_broken(at: int, broken: dict[str, object], promise: str) -> None:
    years = flat_years()
    years[at] = replace(years[at], **broken)  # type: ignore[arg-type]
    assert [promise in one.what for one in promises(years) if not one.passed] == [True]


def test_a_simulated_champion_predicts_the_same_the_next_night(monkeypatch: pytest.MonkeyPatch) -> None:
    nights: list[Tonight] = []

    def every_night(tonight: Tonight, _: Gate) -> NDArray[np.bool_]:
        nights.append(tonight)
        return np.ones(len(tonight.f1), dtype=np.bool_)

    monkeypatch.setattr(gate_years, "POLICIES", [replace(POLICIES[-1], promotes=every_night)])
    years = simulate("equal", "ours", 5000, 50, Gate(), seed=1)

    assert (years.promotions, years.age) == (NIGHTS, pytest.approx(1))
    # New rows come every fifth night.
    for number, tonight in enumerate(nights, 1):
        if number % 5:
            assert tonight.champion_f1.tolist() == tonight.stored_f1.tolist()
    f1 = np.array([tonight.f1 for tonight in nights])
    # 0.6 points between seeds, and the rows that each model decides by chance.
    assert f1.mean() == pytest.approx(0.55, abs=0.002)
    gaps = np.array([tonight.gap[0] for tonight in nights])
    assert gaps.std() == pytest.approx(np.sqrt(2 * 0.006**2 + 0.2 / 5000), rel=0.05)


def test_a_new_segment_costs_a_champion_that_has_not_seen_it_five_points() -> None:
    segment = next(world for world in WORLDS if world.name == "segment")
    nights = np.array([179.0, 180.0, 194.0, 365.0])
    assert segment.change(np.array([100.0]), nights).tolist() == [0.0, -0.05, -0.05, -0.05]
    assert segment.change(nights, nights) == pytest.approx([0.0, -0.05, -0.025, 0.0], abs=0.0005)


def test_a_year_without_change_has_no_false_alarm_and_a_fall_is_seen_soon() -> None:
    even, few = alarms.WORLDS[0], alarms.WORLDS[-1]
    assert alarms.quiet_year(few, np.random.default_rng(0), lucky=False) < LIMIT
    assert alarms.nights_until_seen(even, np.random.default_rng(0), 0.25) < 5
    assert f"more than {LIMIT:g} standard errors" in (ROOT / "docs/evaluate.md").read_text(encoding="utf-8")
