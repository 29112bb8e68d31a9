"""Bootstrap intervals compared with scikit-learn's F1, resampling row by row, and nominal coverage."""

from __future__ import annotations

import math
import time
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.metrics import f1_score

from nightgate.metrics.bootstrap import (
    Statistic,
    _columns,
    _expanded_tail,
    _statistic,
    f1_difference,
    f1_estimate,
    group_numbers,
)
from nightgate.metrics.classification import score
from nightgate.metrics.confusion import Average

Labels = NDArray[np.int64]
AVERAGES: list[Average] = ["weighted", "macro"]
QUANTILES = [0.025, 0.5, 0.975]
STATISTICS: list[Statistic] = ["weighted", "macro", 0, 4]


def review_labels(rows: int, seed: int, right: float = 0.6, num_labels: int = 5) -> tuple[Labels, Labels]:
    """True labels, uneven, and predictions of which a share of `right` is correct."""
    rng = np.random.default_rng(seed)
    true = rng.choice(num_labels, size=rows, p=np.arange(1, num_labels + 1) / sum(range(1, num_labels + 1)))
    return true, np.where(rng.random(rows) < right, true, rng.integers(num_labels, size=rows))


def f1(true: Labels, predicted: Labels, statistic: Statistic) -> float:
    if isinstance(statistic, int):
        return float(f1_score(true, predicted, labels=[statistic], average=None, zero_division=0)[0])
    return float(f1_score(true, predicted, labels=np.unique(true), average=statistic, zero_division=0))


def value(true: Labels, predicted: Labels, statistic: Statistic) -> float:
    """scikit-learn's F1, but faster; the first test compares the two."""
    return f1_estimate(true, predicted, 5, statistic, resamples=2).value


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("rows", [1, 3, 200])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_value_is_scikit_learn_s_f1_and_the_difference_of_two(
    statistic: Statistic, rows: int, grouped: bool
) -> None:
    for seed in range(20):
        true, predicted = review_labels(rows, seed, num_labels=7)
        _, other = review_labels(rows, seed + 100, num_labels=7)
        groups = np.arange(rows) % 5 if grouped else None
        first, second = f1(true, other, statistic), f1(true, predicted, statistic)
        found = f1_estimate(true, predicted, 7, statistic, groups=groups, resamples=2)
        assert found.value == pytest.approx(second, abs=1e-12)
        difference = f1_difference(true, other, predicted, 7, statistic, groups=groups, resamples=2)
        assert difference.value == pytest.approx(second - first, abs=1e-12)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Labels, Labels, Labels]:
    """True labels, a model's and another's; some classes are only predicted."""
    classes = st.lists(st.integers(0, 4), min_size=1, max_size=40)
    true = np.array(draw(st.lists(st.integers(0, 3), min_size=1, max_size=40)))
    models = (np.resize(draw(classes), len(true)) for _ in range(2))
    return true, *models


@settings(max_examples=200, derandomize=True)
@given(labelled(), st.integers(0, 2**32 - 1))
def test_a_model_whose_wrong_rows_become_right_is_never_worse(rows: tuple[Labels, Labels, Labels], seed: int) -> None:
    """Not by any average or class, alone or against another model, on all rows or on any resample of them."""
    true, other, before = rows
    rng = np.random.default_rng(seed)
    after = np.where(rng.random(len(true)) < rng.random(), true, before)
    whole = [asdict(score(true, labels, 5)) for labels in (before, after)]
    assert all(whole[1][name] >= value for name, value in whole[0].items())
    picks = np.concatenate([np.arange(len(true))[None], rng.integers(len(true), size=(20, len(true)))])
    for statistic in ("weighted", "macro", *range(5)):
        of_resamples = [_resampled(true, [labels], picks, statistic) for labels in (before, after)]
        assert (of_resamples[1] >= of_resamples[0]).all(), statistic
        of_pairs = [_resampled(true, [other, labels], picks, statistic) for labels in (before, after)]
        assert (of_pairs[1] >= of_pairs[0]).all(), statistic
        assert of_resamples[1][0] == f1_estimate(true, after, 5, statistic, resamples=2).value
        assert of_pairs[1][0] == f1_difference(true, other, after, 5, statistic, resamples=2).value


def _resampled(true: Labels, models: list[Labels], picks: Labels, statistic: Statistic) -> NDArray[np.float64]:
    """The estimated value on each of `picks`, rows by index: [resamples, rows]."""
    num_labels = 5
    if isinstance(statistic, int):
        true, *models = ((labels == statistic).astype(np.int64) for labels in (true, *models))
        num_labels, statistic = 2, 1
    drawn = _columns(true, models, num_labels)[picks].sum(axis=1)
    return _statistic(drawn, num_labels=num_labels, statistic=statistic, num_classes=len(np.unique(true)))


def test_every_resample_averages_the_same_classes() -> None:
    """A class of one row among 51 is missing from 36 % of the resamples, where its F1 is 0."""
    true = np.array([0] * 50 + [1])
    draws = f1_estimate(true, true, 3, "macro").draws
    assert set(draws) == {0.5, 1.0}
    assert np.mean(draws == 0.5) == pytest.approx((50 / 51) ** 51, abs=0.02)


@pytest.mark.parametrize("statistic", ["weighted", "macro", 2])
def test_resampled_values_have_the_spread_of_resampling_row_by_row(statistic: Statistic) -> None:
    true, predicted = review_labels(300, 1)
    _, other = review_labels(300, 1, right=0.5)
    picks = np.random.default_rng(0).integers(300, size=(1000, 300))
    single = np.array([value(true[pick], predicted[pick], statistic) for pick in picks])
    paired = single - [value(true[pick], other[pick], statistic) for pick in picks]
    # The F1 of one class depends on a fifth of the rows.
    within = 0.02 if isinstance(statistic, str) else 0.04
    for found, expected in (
        (f1_estimate(true, predicted, 5, statistic), single),
        (f1_difference(true, other, predicted, 5, statistic), paired),
    ):
        assert np.quantile(found.draws, QUANTILES) == pytest.approx(np.quantile(expected, QUANTILES), abs=within)


def test_resampled_groups_have_the_spread_of_resampling_group_by_group() -> None:
    true, predicted = review_labels(300, 2)
    groups = np.repeat(np.arange(30), 10)
    # Half of the groups are easy, so that rows of a group are correlated.
    predicted = np.where(groups % 2 == 0, true, predicted)
    rng = np.random.default_rng(0)
    values = []
    for _ in range(1000):
        rows = np.concatenate([np.flatnonzero(groups == group) for group in rng.integers(30, size=30)])
        values.append(value(true[rows], predicted[rows], "weighted"))
    found = f1_estimate(true, predicted, 5, "weighted", groups=groups)
    assert np.quantile(found.draws, QUANTILES) == pytest.approx(np.quantile(values, QUANTILES), abs=0.015)
    by_row = f1_estimate(true, predicted, 5, "weighted")
    assert found.std_error > 1.2 * by_row.std_error


def test_groups_of_one_row_give_the_interval_of_single_rows() -> None:
    true, predicted = review_labels(400, 3)
    by_row = f1_estimate(true, predicted, 5, "macro").interval
    for names in (range(400), [None] * 400, [float("nan")] * 400, [f"product {row}" for row in range(400)]):
        groups = group_numbers(list(names))
        assert f1_estimate(true, predicted, 5, "macro", groups=groups).interval == pytest.approx(by_row, abs=0.01)


def test_the_interval_has_its_nominal_coverage() -> None:
    population, guesses = review_labels(200_000, 4)
    truth = f1(population, guesses, "weighted")
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        sample = rng.integers(len(population), size=400)
        found = f1_estimate(population[sample], guesses[sample], 5, "weighted", resamples=500, seed=seed).interval
        covered += found.low <= truth <= found.high
    assert 0.91 <= covered / 200 <= 0.99


def test_the_paired_interval_of_equally_good_models_has_its_nominal_coverage() -> None:
    rng = np.random.default_rng(6)
    covered = 0
    for seed in range(200):
        true = rng.integers(3, size=300)
        first, second = (np.where(rng.random(300) < 0.7, true, rng.integers(3, size=300)) for _ in range(2))
        found = f1_difference(true, first, second, 3, "macro", resamples=500, seed=seed).interval
        covered += found.low <= 0 <= found.high
    assert 0.91 <= covered / 200 <= 0.99


def test_swapping_the_models_turns_the_sign_and_a_model_does_not_differ_from_itself() -> None:
    true, predicted = review_labels(500, 8)
    assert f1_difference(true, predicted, predicted, 5, "weighted").interval == (0.0, 0.0)
    _, worse = review_labels(500, 8, right=0.3)
    found = f1_difference(true, worse, predicted, 5, "weighted").interval
    swapped = f1_difference(true, predicted, worse, 5, "weighted").interval
    assert found.low > 0
    assert swapped.high < 0
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low), abs=0.01)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    true, predicted = review_labels(300, 9)
    first, again, other = (f1_estimate(true, predicted, 5, "macro", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.draws.tolist() == again.draws.tolist()
    assert first.interval != other.interval
    assert first.value == other.value


def test_more_confidence_means_a_wider_interval() -> None:
    true, predicted = review_labels(300, 10)
    usual = f1_estimate(true, predicted, 5, "macro").interval
    wide = f1_estimate(true, predicted, 5, "macro", confidence=0.99).interval
    assert wide.low < usual.low
    assert wide.high > usual.high


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_with_fewer_than_five_rows_or_groups_there_is_no_interval(rows: int) -> None:
    true = np.zeros(rows, dtype=np.int64)
    many = np.zeros(50, dtype=np.int64)
    for found in (
        f1_estimate(true, true, 2, "weighted"),
        f1_estimate(true, true, 2, 0),
        f1_estimate(true, true, 2, "macro", groups=true),
        f1_difference(true, true, true, 2, "weighted"),
        f1_estimate(many, many, 2, "weighted", groups=np.arange(50) % max(rows, 1)),
    ):
        assert found.interval is None
        assert found.std_error is None
        assert len(found.draws) == 0
        assert found.p_value(2.0) == 1.0
    value = f1_estimate(true, true, 2, "weighted").value
    assert math.isnan(value) if rows == 0 else value == 1.0


def test_labels_that_never_occur_are_ignored_by_macro() -> None:
    true = np.array([0, 1] * 50)
    assert f1_estimate(true, true, 9, "macro").interval == (1.0, 1.0)
    assert f1_estimate(true, true, 9, 5).interval == (0.0, 0.0)


def test_the_standard_error_is_that_of_the_resampled_values_and_falls_with_the_square_root_of_the_rows() -> None:
    few, many = (f1_estimate(*review_labels(rows, 13), 5, "weighted") for rows in (500, 8000))
    assert few.std_error == pytest.approx(float(np.std(few.draws, ddof=1)))
    assert few.std_error / many.std_error == pytest.approx(4, rel=0.1)


def test_the_p_value_counts_the_threshold_itself_and_beyond_all_draws_it_is_student_s() -> None:
    true, predicted = review_labels(300, 14)
    found = f1_estimate(true, predicted, 5, "weighted", resamples=999)
    assert found.p_value(0.0) == 1.0
    low = float(np.quantile(found.draws, 0.1))
    assert found.p_value(low) == pytest.approx(np.mean(found.draws >= low), abs=0.02)
    beyond = found.value + 6 * found.std_error
    assert found.draws.max() < beyond
    unbiased = found.std_error * math.sqrt(300 / 299)
    assert found.p_value(beyond) == pytest.approx(student.sf(6 * found.std_error / unbiased, 299), rel=1e-9)
    same = f1_difference(true, predicted, predicted, 5, "weighted", resamples=999)
    assert same.p_value(0.0) == 1.0
    assert same.p_value(0.1) == 0.0


@pytest.mark.parametrize("groups", [5, 8, 12])
def test_the_false_positive_rate_is_nominal_on_few_groups_too(groups: int) -> None:
    """Each group favours one of two equal models by chance: 2.5 % a side, and 1.25 % for the p-value."""
    rng, nights = np.random.default_rng(groups), 400
    superior = worse = plainly_worse = 0
    of_row = np.repeat(np.arange(groups), 20)
    for seed in range(nights):
        true = rng.integers(0, 3, len(of_row))
        right = rng.normal(0.65, 0.05, size=(2, groups))[:, of_row]
        first, second = np.where(rng.random(right.shape) < right, true, (true + 1) % 3)
        gap = f1_difference(true, first, second, 3, "weighted", groups=of_row, seed=seed, resamples=800)
        superior += gap.interval.low > 0
        worse += gap.p_value(0.0) <= 0.0125
        plainly_worse += np.mean(gap.draws >= 0) <= 0.0125
    # Three standard errors of 400 nights.
    assert superior / nights <= 0.025 + 0.024
    assert worse / nights <= 0.0125 + 0.017
    if groups == 5:
        assert plainly_worse / nights > 0.04, "the share of draws alone"


def test_the_expanded_tails_are_those_of_hesterberg() -> None:
    for size in (5, 20, 100, 5000):
        expected = norm.cdf(-math.sqrt(size / (size - 1)) * student.ppf(0.975, size - 1))
        assert _expanded_tail(0.025, size) == pytest.approx(expected, rel=1e-9)
    assert _expanded_tail(0.025, 20) < 0.017 < _expanded_tail(0.025, 5000) < 0.025
    assert 0 <= _expanded_tail(0.025, 2) < 1e-12


def test_the_interval_of_few_groups_covers_more_than_a_plain_percentile_interval() -> None:
    """For 8 groups plain percentiles cover 89 % instead of 95 %."""
    rng = np.random.default_rng(15)
    covered = np.zeros(2, dtype=np.int64)
    for seed in range(150):
        # With one class F1 follows the share of correct rows, which varies between groups.
        right = rng.random((8, 200)) < rng.normal(0.6, 0.1, size=(8, 1))
        predicted = np.where(right.ravel(), 0, 1)
        found = f1_estimate(
            np.zeros(1600, dtype=np.int64), predicted, 2, 0, groups=np.arange(1600) // 200, seed=seed, resamples=1000
        )
        truth = 2 * 0.6 / 1.6
        plain = np.quantile(found.draws, [0.025, 0.975])
        covered += [found.interval.low <= truth <= found.interval.high, plain[0] <= truth <= plain[1]]
    assert 0.92 <= covered[0] / 150 <= 0.99
    assert covered[1] < covered[0] - 3


def test_the_bootstrap_of_one_decision_takes_less_than_half_a_second() -> None:
    true, predicted = review_labels(5000, 11)
    _, other = review_labels(5000, 12)
    taken = []
    for _ in range(3):
        started = time.process_time()
        assert f1_difference(true, other, predicted, 5, "weighted").interval is not None
        taken.append(time.process_time() - started)
    assert min(taken) < 0.5


def test_twenty_thousand_rows_in_groups_take_seconds() -> None:
    true, predicted = review_labels(20_000, 11)
    _, other = review_labels(20_000, 12)
    groups = np.random.default_rng(0).integers(2000, size=20_000)
    started = time.process_time()
    assert f1_difference(true, other, predicted, 5, "weighted", groups=groups).interval is not None
    assert time.process_time() - started < 10
