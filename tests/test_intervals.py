from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from nightgate.intervals import Average, _cells_of_rows, _statistic, f1_difference_interval, f1_interval

Labels = NDArray[np.int64]
AVERAGES: list[Average] = ["weighted", "macro"]


def review_labels(rows: int, seed: int, right: float = 0.6, num_labels: int = 5) -> tuple[Labels, Labels]:
    """True labels, uneven, and predictions of which a share of `right` is correct."""
    rng = np.random.default_rng(seed)
    true = rng.choice(num_labels, size=rows, p=np.arange(1, num_labels + 1) / sum(range(1, num_labels + 1)))
    return true, np.where(rng.random(rows) < right, true, rng.integers(num_labels, size=rows))


def f1(true: Labels, predicted: Labels, average: str) -> float:
    return float(f1_score(true, predicted, average=average, zero_division=0))


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("rows", [1, 3, 200])
def test_the_statistic_of_undisturbed_counts_is_scikit_learn_s_f1(average: Average, rows: int) -> None:
    for seed in range(20):
        true, predicted = review_labels(rows, seed, num_labels=7)
        counts, cells = _cells_of_rows(true, [predicted], 7)
        assert _statistic(counts[None].astype(float) @ cells, 7, average)[0] == pytest.approx(
            f1(true, predicted, average), abs=1e-12
        )


@pytest.mark.parametrize("average", AVERAGES)
def test_the_interval_agrees_with_resampling_row_by_row(average: Average) -> None:
    true, predicted = review_labels(300, 1)
    _, other = review_labels(300, 1, right=0.5)
    rng = np.random.default_rng(0)
    picks = rng.integers(300, size=(1500, 300))
    single = [f1(true[pick], predicted[pick], average) for pick in picks[:500]]
    found = f1_interval(true, predicted, 5, average)
    assert found is not None
    assert found == pytest.approx(np.quantile(single, [0.025, 0.975]), abs=0.012)
    paired = [f1(true[p], predicted[p], average) - f1(true[p], other[p], average) for p in picks[500:1000]]
    difference = f1_difference_interval(true, other, predicted, 5, average)
    assert difference is not None
    assert difference == pytest.approx(np.quantile(paired, [0.025, 0.975]), abs=0.015)


def test_the_interval_by_groups_agrees_with_resampling_group_by_group() -> None:
    true, predicted = review_labels(300, 2)
    groups = np.repeat(np.arange(30), 10)
    # Half of the groups are easy: their rows stand or fall together.
    predicted = np.where(groups % 2 == 0, true, predicted)
    rng = np.random.default_rng(0)
    values = []
    for _ in range(600):
        rows = np.concatenate([np.flatnonzero(groups == group) for group in rng.integers(30, size=30)])
        values.append(f1(true[rows], predicted[rows], "weighted"))
    found = f1_interval(true, predicted, 5, "weighted", groups=groups)
    assert found is not None
    assert found == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.012)
    by_row = f1_interval(true, predicted, 5, "weighted")
    assert by_row is not None
    assert found.high - found.low > by_row.high - by_row.low


def test_groups_of_one_row_give_the_interval_of_single_rows() -> None:
    true, predicted = review_labels(400, 3)
    by_row = f1_interval(true, predicted, 5, "macro")
    for groups in (np.arange(400), [None] * 400, [float("nan")] * 400, [f"product {row}" for row in range(400)]):
        assert f1_interval(true, predicted, 5, "macro", groups=groups) == pytest.approx(by_row, abs=0.01)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    everyone, guesses = review_labels(200_000, 4)
    truth = f1(everyone, guesses, "weighted")
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        sample = rng.integers(len(everyone), size=400)
        found = f1_interval(everyone[sample], guesses[sample], 5, "weighted", resamples=500, seed=seed)
        assert found is not None
        covered += found.low <= truth <= found.high
    assert 0.91 <= covered / 200 <= 0.99


def test_the_paired_interval_covers_no_difference_between_equally_good_models() -> None:
    rng = np.random.default_rng(6)
    covered = 0
    for seed in range(200):
        true = rng.integers(3, size=300)
        first, second = (np.where(rng.random(300) < 0.7, true, rng.integers(3, size=300)) for _ in range(2))
        found = f1_difference_interval(true, first, second, 3, "macro", resamples=500, seed=seed)
        assert found is not None
        covered += found.low <= 0 <= found.high
    assert 0.91 <= covered / 200 <= 0.99


def test_a_model_compared_with_itself_differs_by_exactly_nothing() -> None:
    true, predicted = review_labels(200, 7)
    assert f1_difference_interval(true, predicted, predicted, 5, "weighted") == (0.0, 0.0)


def test_swapping_the_models_turns_the_sign() -> None:
    true, predicted = review_labels(500, 8)
    _, worse = review_labels(500, 8, right=0.3)
    found = f1_difference_interval(true, worse, predicted, 5, "weighted")
    swapped = f1_difference_interval(true, predicted, worse, 5, "weighted")
    assert found is not None
    assert swapped is not None
    assert found.low > 0
    assert swapped.high < 0
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low), abs=0.01)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    true, predicted = review_labels(300, 9)
    assert f1_interval(true, predicted, 5, "macro", seed=1) == f1_interval(true, predicted, 5, "macro", seed=1)
    assert f1_interval(true, predicted, 5, "macro", seed=1) != f1_interval(true, predicted, 5, "macro", seed=2)


def test_more_confidence_means_a_wider_interval() -> None:
    true, predicted = review_labels(300, 10)
    usual = f1_interval(true, predicted, 5, "macro")
    wide = f1_interval(true, predicted, 5, "macro", confidence=0.99)
    assert usual is not None
    assert wide is not None
    assert wide.low < usual.low
    assert wide.high > usual.high


@pytest.mark.parametrize("rows", [0, 1])
def test_with_fewer_than_two_rows_or_groups_there_is_no_interval(rows: int) -> None:
    true = np.zeros(rows, dtype=np.int64)
    assert f1_interval(true, true, 2, "weighted") is None
    assert f1_interval(true, true, 2, "weighted", groups=["a"] * rows) is None
    assert f1_difference_interval(true, true, true, 2, "weighted") is None
    many = np.zeros(50, dtype=np.int64)
    assert f1_interval(many, many, 2, "weighted", groups=["a"] * 50) is None


def test_labels_that_never_occur_do_not_count_towards_macro() -> None:
    true = np.array([0, 1] * 50)
    assert f1_interval(true, true, 9, "macro") == (1.0, 1.0)


def test_twenty_thousand_rows_take_a_moment_with_groups_or_without() -> None:
    true, predicted = review_labels(20_000, 11)
    _, other = review_labels(20_000, 12)
    groups = np.random.default_rng(0).integers(4000, size=20_000)
    started = time.perf_counter()
    assert f1_difference_interval(true, other, predicted, 5, "weighted") is not None
    assert f1_difference_interval(true, other, predicted, 5, "weighted", groups=groups) is not None
    assert time.perf_counter() - started < 10
