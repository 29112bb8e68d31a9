"""Statistical rules of the gate on plain numbers, with their boundaries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from nightgate.config.gate import Gate
from nightgate.gate.statistics import (
    Rule,
    beats,
    detectable_gain,
    holm,
    is_non_inferior,
    is_superior,
    mcnemar,
    unseen_gain,
)
from nightgate.metrics.bootstrap import Interval

BETTER, UNCLEAR, WORSE = Interval(0.001, 0.03), Interval(-0.009, 0.02), Interval(-0.03, 0.02)
NARROW = Interval(-0.006, 0.016)
SUPERIOR, NON_INFERIOR, THRESHOLD = (Gate(policy=policy) for policy in ("superior", "non_inferior", "threshold_only"))


def test_an_interval_must_begin_above_zero_to_be_superior_and_above_the_margin_to_be_non_inferior() -> None:
    starts = (0.0, math.ulp(0.0), math.nan)
    assert [is_superior(Interval(low, 0.1)) for low in starts] == [False, True, False]
    starts = (-0.01, -0.01 + 1e-12, math.nan)
    assert [is_non_inferior(Interval(low, 0.1), 0.01) for low in starts] == [False, True, False]
    assert not is_non_inferior(Interval(0.0, 0.0), 0.0)


@pytest.mark.parametrize(
    ("gate", "gap", "interval", "nights", "rule"),
    [
        (SUPERIOR, 0.015, BETTER, 0, "superior"),
        (SUPERIOR, 0.015, BETTER, 99, "superior"),
        (SUPERIOR, 0.005, UNCLEAR, 29, None),
        (SUPERIOR, 0.005, NARROW, 29, None),
        (SUPERIOR, 0.005, NARROW, 30, "refresh"),
        (SUPERIOR, 0.0, Interval(-0.0087, 0.0087), 30, "refresh"),
        # Non-inferior, but not at half the error that a refresh needs.
        (SUPERIOR, 0.0, Interval(-0.0088, 0.0088), 30, None),
        (SUPERIOR, -1e-9, NARROW, 30, None),
        (SUPERIOR, -1e-9, UNCLEAR, 30, None),
        (SUPERIOR, 0.005, WORSE, 30, None),
        (SUPERIOR, 0.005, UNCLEAR, None, None),
        (SUPERIOR, 0.015, BETTER, None, "superior"),
        (SUPERIOR.model_copy(update={"refresh_after": 0}), 0.005, UNCLEAR, 10_000, None),
        (NON_INFERIOR, -0.005, UNCLEAR, 0, "non_inferior"),
        (NON_INFERIOR, 0.005, WORSE, 99, None),
        (THRESHOLD, -0.5, WORSE, 0, "threshold_only"),
        (THRESHOLD, math.nan, None, None, "threshold_only"),
    ],
)
def test_a_candidate_beats_the_champion_by_the_rule_of_the_policy(
    gate: Gate, gap: float, interval: Interval, nights: int | None, rule: Rule | None
) -> None:
    assert beats(gap, interval, gate, margin=0.01, champion_nights=nights) == rule


@pytest.mark.parametrize("gate", [SUPERIOR, NON_INFERIOR])
def test_nothing_is_beaten_without_a_gap_and_its_interval(gate: Gate) -> None:
    for gap, interval in ((math.nan, BETTER), (math.inf, BETTER), (0.02, None), (0.02, Interval(math.nan, math.nan))):
        assert beats(gap, interval, gate, margin=0.01, champion_nights=30) is None


def test_models_that_never_differ_on_n_rows_may_differ_on_some_3_of_n() -> None:
    assert unseen_gain(52, 0.95) == pytest.approx(3 / 52, rel=0.05)
    assert unseen_gain(5_000, 0.95) == pytest.approx(3 / 5_000, rel=0.01)
    # The probability of not seeing a share of that size.
    assert (1 - unseen_gain(52, 0.95)) ** 52 == pytest.approx(0.05)


def test_the_detectable_gain_is_called_superior_four_times_in_five() -> None:
    gain = detectable_gain(0.006, 0.95)
    assert gain == pytest.approx((1.959964 + 0.841621) * 0.006, rel=1e-5)
    assert norm.sf(norm.ppf(0.975), loc=gain / 0.006) == pytest.approx(0.8)
    assert detectable_gain(0.006, 0.95, power=0.5) == pytest.approx(norm.ppf(0.975) * 0.006)


def test_holm_rejects_in_order_of_the_p_values_and_stops_at_the_first_that_is_not_rejected() -> None:
    # Limits 0.05 / 4, 0.05 / 3, 0.05 / 2: the third is not rejected, nor the fourth, which alone would be.
    assert holm([0.04, 0.01, 0.03, 0.016], 0.05) == [False, True, False, True]
    assert holm([0.0125, 0.05 / 3, 0.025, 0.05], 0.05) == [True] * 4
    assert holm([0.0126, 0.0126], 0.025) == [False, False]
    assert holm([], 0.05) == []
    assert holm([math.nan, 0.0, 0.01], 0.05) == [False, True, True]
    assert holm([math.nan], 1.0) == [False]


def test_holm_rejects_a_true_hypothesis_no_more_often_than_the_level() -> None:
    p_values = np.random.default_rng(0).random((4000, 40))
    assert np.mean([any(holm(family.tolist(), 0.05)) for family in p_values]) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(("losses", "gains"), [(0, 0), (2, 2), (3, 9), (9, 3), (0, 5), (1, 0), (40, 61), (700, 800)])
def test_mcnemar_s_p_value_is_that_of_the_binomial_test(losses: int, gains: int) -> None:
    true = np.zeros(losses + gains + 20, dtype=np.int64)
    reference, candidate = true.copy(), true.copy()
    candidate[:losses] = 1
    reference[losses : losses + gains] = 1
    # Both wrong, in different ways.
    reference[-3:], candidate[-3:] = 1, 2
    found = mcnemar(true, reference, candidate)
    assert found[:2] == (losses, gains)
    assert found[2] == pytest.approx(binomtest(losses, losses + gains).pvalue if losses + gains else 1)
