"""The gate's verdict, and how good a candidate has to be: by itself, against the champion, against the anchor."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from syrupy.assertion import SnapshotAssertion

from nightgate.config.gate import Gate
from nightgate.gate.decide import decide
from nightgate.gate.evidence import Evidence, Side, Slice
from nightgate.gate.wording import distinct
from tests.support.gate_night import (
    TONIGHT,
    YESTERDAY,
    check,
    first_night,
    labels,
    night,
    of_candidate,
    of_champion,
    outcomes,
    rows,
    side,
)

POLICY = Gate(min_f1=0.54)
NO_EVIDENCE: list[dict[str, Any]] = [
    {"predictions": None},
    {"flaw": "knows the labels a and b"},
    {"predictions": np.zeros(1999, dtype=np.int64)},
    {"predictions": np.full(2000, 2)},
    {"predictions": np.full(2000, -1)},
    {"predictions": np.full(2000, math.nan)},
]


# --- min_f1 ---


@pytest.mark.parametrize(
    ("ours", "minimum", "outcome"),
    [
        (0.60, 0.54, "passed"),
        (0.54, 0.54, "passed"),
        (0.54, math.nextafter(0.54, 1), "failed"),
        (0.539, 0.54, "failed"),
        (0.0, 0.0, "passed"),
        (1.0, 1.0, "passed"),
    ],
)
def test_min_f1_passes_from_the_threshold_up(
    ours: float, minimum: float, outcome: str, snapshot: SnapshotAssertion
) -> None:
    decision = decide(first_night(ours), Gate(min_f1=minimum, max_share_gap=1))
    found = check(decision, "min_f1")
    assert found.outcome == outcome
    assert (found.candidate_value, found.threshold, found.rows_used) == (ours, minimum, 2000)
    assert decision.verdict == ("promote" if outcome == "passed" else "hold")
    assert found.reason == snapshot


def test_min_f1_can_ask_for_the_lower_end_of_the_interval(snapshot: SnapshotAssertion) -> None:
    assert check(decide(first_night(0.60), Gate(min_f1=0.59)), "min_f1").outcome == "passed"
    lower = check(decide(first_night(0.60), Gate(min_f1=0.59, min_f1_on="lower")), "min_f1")
    assert (lower.outcome, lower.reason) == ("failed", snapshot)
    at = decide(first_night(0.60), Gate(min_f1=lower.ci_low, min_f1_on="lower"))
    assert check(at, "min_f1").outcome == "passed"


def test_without_an_interval_there_is_no_lower_end(snapshot: SnapshotAssertion) -> None:
    one_group = rows(groups=np.zeros(2000, dtype=np.int64))
    policy = Gate(min_f1=0.1, min_f1_on="lower")
    found = check(decide(first_night(0.60, test=one_group), policy), "min_f1")
    assert (found.outcome, found.reason) == ("failed", snapshot)


@pytest.mark.parametrize("average", ["weighted", "macro"])
def test_by_default_the_candidate_must_beat_the_commonest_class(average: str, snapshot: SnapshotAssertion) -> None:
    test = replace(rows(), true=(np.arange(2000) < 1400).astype(np.int64))
    policy = Gate.model_validate({"average": average, "max_share_gap": 1})
    constant = decide(
        first_night(test=test, candidate=side(test, 0.5, predictions=np.ones(2000, dtype=np.int64))), policy
    )
    found = check(constant, "min_f1")
    majority = f1_score(test.true, np.ones(2000), average=average)
    assert (found.outcome, found.threshold) == ("failed", pytest.approx(majority))
    assert constant.measured.min_f1 == found.threshold == found.candidate_value
    # One row better.
    given = np.ones(2000, dtype=np.int64)
    given[1999] = 0
    better = decide(first_night(test=test, candidate=side(test, 0.5, predictions=given)), policy)
    assert (check(better, "min_f1").outcome, better.verdict) == ("passed", "promote")
    assert [found.reason, check(better, "min_f1").reason] == snapshot


def test_of_two_commonest_classes_either_asks_for_the_same_f1() -> None:
    found = check(decide(first_night(0.62), Gate()), "min_f1")
    assert (found.outcome, found.threshold) == ("passed", pytest.approx(1 / 3))
    lower = check(decide(first_night(0.35), Gate(min_f1_on="lower")), "min_f1")
    assert (lower.outcome, lower.ci_low < lower.threshold) == ("failed", True)


@pytest.mark.parametrize("minimum", ["majority", 0.0])
def test_no_test_rows_promote_nothing(minimum: Any) -> None:
    decision = decide(first_night(test=rows(0)), Gate(min_f1=minimum))
    assert (check(decision, "min_f1").outcome, decision.verdict) == ("failed", "hold")
    assert decision.measured.min_f1 == (None if minimum == "majority" else 0.0)


# --- beats_champion ---


@pytest.mark.parametrize(
    ("ours", "theirs", "changes", "outcome", "verdict"),
    [
        (0.62, 0.60, {}, "passed", "promote"),
        (0.605, 0.60, {}, "passed", "promote"),
        (0.60, 0.60, {}, "failed", "hold"),
        (0.59, 0.60, {}, "failed", "hold"),
        (0.60, 0.60, {"policy": "non_inferior"}, "passed", "promote"),
        (0.595, 0.60, {"policy": "non_inferior"}, "passed", "promote"),
        (0.59, 0.60, {"policy": "non_inferior"}, "failed", "hold"),
        (0.595, 0.60, {"policy": "threshold_only"}, "passed", "promote"),
        (0.601, 0.60, {"confidence": 0.99}, "failed", "hold"),
    ],
)
def test_the_candidate_must_beat_the_champion_by_the_policy(
    ours: float, theirs: float, changes: dict[str, Any], outcome: str, verdict: str, snapshot: SnapshotAssertion
) -> None:
    decision = decide(night(ours, theirs), Gate(**({"min_f1": 0.54} | changes)))
    found = check(decision, "beats_champion")
    assert (found.outcome, decision.verdict) == (outcome, verdict)
    assert (found.candidate_value, found.champion_value, found.reason) == (ours, theirs, snapshot)


@pytest.mark.parametrize("better", ["champion", "candidate"])
def test_a_prediction_of_a_class_without_rows_neither_promotes_the_worse_nor_holds_the_better_model(
    better: str,
) -> None:
    """The better model gives 4 of the rows that it has wrong a fifth class, which has no rows.

    Averaged over what each model predicts it would be 10.7 points worse by macro F1: 4/5 of 71.6 against 67.9.
    """
    test = replace(rows(), true=np.arange(2000) % 4, slices=(Slice("shop", ("hats",), np.zeros(2000, np.int64)),))

    def predictions(share_right: float, strays: int) -> NDArray[np.int64]:
        wrong = np.arange(2000) >= round(share_right * 2000)
        wrong_label = np.where(np.cumsum(wrong) <= strays, 4, (test.true + 1) % 4)
        return np.where(wrong, wrong_label, test.true)

    good, bad = predictions(0.716, 4), predictions(0.679, 0)
    ours, theirs = (good, bad) if better == "candidate" else (bad, good)
    evidence = replace(night(test=test), label_names=tuple("abcde"), golden=test)
    evidence = of_champion(of_candidate(evidence, predictions=ours, golden=ours), predictions=theirs, golden=theirs)
    decision = decide(evidence, Gate(min_f1=0.54, average="macro"))
    assert decision.verdict == ("promote" if better == "candidate" else "hold")
    for name, shop in (("beats_champion", ""), ("golden", ""), ("slice_margin", "hats")):
        found = check(decision, name, shop)
        gain = found.candidate_value - found.champion_value
        assert gain == pytest.approx(0.037 if better == "candidate" else -0.037, abs=0.001)
        assert found.ci_low < gain < found.ci_high
        assert np.sign(found.ci_low) == np.sign(found.ci_high) == np.sign(gain)


@pytest.mark.parametrize(
    ("ours", "nights", "after", "outcome"),
    [
        (0.60, 30, 30, "passed"),
        (0.60, 29, 30, "failed"),
        (0.60, 400, 0, "failed"),
        (0.60, None, 30, "failed"),
        (0.599, 31, 30, "failed"),
    ],
)
def test_an_old_champion_is_replaced_by_a_candidate_that_is_not_below_it(
    ours: float, nights: int | None, after: int, outcome: str, snapshot: SnapshotAssertion
) -> None:
    decision = decide(night(ours, 0.60, champion_nights=nights), Gate(min_f1=0.5, refresh_after=after))
    found = check(decision, "beats_champion")
    assert (found.outcome, found.threshold) == (outcome, -0.01 if outcome == "passed" else 0.0)
    assert found.reason == snapshot


def test_a_refresh_that_misses_the_higher_confidence_names_its_lower_end() -> None:
    decision = decide(crossed(0.605, 0.60, champion_nights=31), POLICY)
    found = check(decision, "beats_champion")
    assert found.outcome == "underpowered"
    assert "97.5 % confidence (lower end -0.0" in found.reason


def crossed(ours: float, theirs: float, **changes: Any) -> Evidence:
    """A candidate that errs on other rows than the champion: the less they agree, the lower the power."""
    test = rows()
    return of_candidate(night(ours, theirs, test, **changes), predictions=labels(test, ours, first_error=0.5))


@pytest.mark.parametrize("rule", ["superior", "non_inferior"])
@pytest.mark.parametrize(("ours", "gap"), [(0.599, -2), (0.60, 0), (0.601, 2)])
def test_the_sign_of_two_rows_of_2000_decides_no_verdict(
    ours: float, gap: int, rule: str, snapshot: SnapshotAssertion
) -> None:
    policy = Gate.model_validate({"min_f1": 0.54, "policy": rule})
    wide, narrow = decide(crossed(ours, 0.60), policy), decide(night(ours, 0.60), policy)
    assert round(2000 * (wide.measured.candidate.f1 - wide.measured.champion.f1)) == gap
    assert wide.verdict == "underpowered"
    # Where they differ on so few rows, a gain of a point is excluded, and so is a loss.
    assert narrow.verdict == ("hold" if rule == "superior" else "promote")
    assert [wide.reason, narrow.reason] == snapshot


@pytest.mark.parametrize(
    ("ours", "margin", "rule", "outcome"),
    [
        (0.601, 0.08, "superior", "failed"),
        (0.601, 0.01, "superior", "underpowered"),
        (0.50, 0.01, "superior", "failed"),
        (0.50, 0.0, "superior", "failed"),
        (0.50, 0.01, "non_inferior", "failed"),
        (0.50, 0.09, "non_inferior", "failed"),
        (0.59, 0.01, "non_inferior", "underpowered"),
        (0.59, 0.08, "non_inferior", "passed"),
    ],
)
def test_a_check_fails_only_where_the_interval_excludes_what_is_asked(
    ours: float, margin: float, rule: str, outcome: str
) -> None:
    policy = Gate.model_validate({"min_f1": 0.4, "policy": rule, "margin": margin})
    decision = decide(crossed(ours, 0.60), policy)
    found = check(decision, "beats_champion")
    least = -margin if rule == "non_inferior" else 0
    by_hand = "passed" if found.ci_low > least else "failed" if found.ci_high < least + margin else "underpowered"
    assert found.outcome == by_hand == outcome
    verdicts = {"failed": "hold", "underpowered": "underpowered", "passed": "promote"}
    assert decision.verdict == verdicts[outcome]


@pytest.mark.parametrize(
    ("groups", "outcome", "gain"),
    [
        pytest.param(None, "failed", 0.0015, id="2,000 rows"),
        pytest.param(np.arange(2000) // 50, "underpowered", 0.0722, id="40 groups of them"),
    ],
)
def test_the_detectable_gain_of_models_that_never_differ_depends_on_the_independent_units(
    groups: NDArray[np.int64] | None, outcome: str, gain: float
) -> None:
    decision = decide(night(0.60, 0.60, rows(groups=groups)), POLICY)
    assert check(decision, "beats_champion").outcome == outcome
    assert decision.measured.detectable_gain == pytest.approx(gain, abs=5e-5)


@pytest.mark.parametrize("rule", ["superior", "non_inferior"])
@pytest.mark.parametrize("num_rows", [20, 2000])
def test_a_candidate_that_has_all_rows_wrong_is_worse_than_one_that_has_them_right(rule: str, num_rows: int) -> None:
    found = check(decide(night(0.0, 1.0, rows(num_rows)), Gate.model_validate({"policy": rule})), "beats_champion")
    assert (found.ci_low, found.ci_high, found.outcome) == (-1, -1, "failed")
    assert "worse" in found.reason


def test_a_single_group_shows_nothing(snapshot: SnapshotAssertion) -> None:
    test = rows(groups=np.zeros(2000, dtype=np.int64))
    decision = decide(night(0.9, 0.5, test), POLICY)
    assert decision.verdict == "underpowered"
    assert check(decision, "beats_champion").reason == snapshot
    assert decision.measured.detectable_gain is None


@pytest.mark.parametrize("changes", NO_EVIDENCE)
def test_no_comparison_passes_without_evidence_of_both(changes: dict[str, Any], snapshot: SnapshotAssertion) -> None:
    of_ours = decide(of_candidate(night(), **changes), POLICY)
    of_theirs = decide(of_champion(night(), **changes), POLICY)
    assert (of_ours.verdict, of_theirs.verdict) == ("hold", "hold")
    names = ("min_f1", "beats_champion", "slices", "degenerate")
    assert {outcomes(of_ours)[name] for name in names} == {"failed"}
    of_anchor = decide(replace(night(), anchor=side(rows(), 0.6, version=1, **changes)), POLICY)
    assert (of_anchor.verdict, check(of_anchor, "anchor").outcome) == ("hold", "failed")
    reasons = [check(of_ours, name).reason for name in names]
    assert [*reasons, check(of_theirs, "beats_champion").reason, check(of_anchor, "anchor").reason] == snapshot


def test_threshold_only_needs_a_score_of_the_candidate_alone(snapshot: SnapshotAssertion) -> None:
    policy = Gate(min_f1=0.54, policy="threshold_only")
    decision = decide(of_champion(night(), predictions=None, flaw="knows other labels"), policy)
    assert decision.verdict == "promote"
    assert check(decision, "beats_champion").outcome == "warning"
    assert check(decision, "slices").outcome == "not_run"
    assert [decision.reason, *(check(decision, name).reason for name in ("beats_champion", "slices"))] == snapshot
    held = decide(of_candidate(night(), predictions=None), policy)
    assert held.verdict == "hold"
    for name in ("beats_champion", "slices"):
        assert check(held, name).outcome == "failed", name


def test_no_policy_promotes_over_a_champion_whose_labels_mean_something_else() -> None:
    before = of_champion(night(0.9), predictions=None, golden=None, flaw="was trained on other labels", relabelled=True)
    for policy in ("superior", "non_inferior", "threshold_only"):
        decision = decide(before, Gate(min_f1=0.54, policy=policy))
        assert decision.verdict == "hold"
        assert check(decision, "beats_champion").outcome == "failed"
        assert "was trained on other labels" in decision.reason
        assert decision.measured.champion is None or decision.measured.champion.f1 is None
        assert check(decision, "golden").candidate_value is None


def test_threshold_only_still_reports_both_comparisons_and_is_held_by_neither() -> None:
    policy = Gate(min_f1=0.54, policy="threshold_only")
    decision = decide(anchored(0.58, 0.60, 0.61), policy)
    assert decision.verdict == "promote"
    for name in ("beats_champion", "anchor"):
        found = check(decision, name)
        assert (found.outcome, found.ci_high < 0) == ("warning", True)
    assert check(decide(night(0.62, 0.60), policy), "beats_champion").outcome == "passed"


def test_without_a_champion_nothing_is_compared_and_the_candidate_becomes_the_first(
    snapshot: SnapshotAssertion,
) -> None:
    decision = decide(first_night(), POLICY)
    assert decision.verdict == "promote"
    assert (decision.measured.moves_anchor, decision.measured.anchor) == (True, None)
    assert outcomes(decision) == {
        "clean_test": "passed",
        "min_f1": "passed",
        "beats_champion": "not_run",
        "anchor": "not_run",
        "golden": "not_run",
        "slices": "not_run",
        "degenerate": "passed",
        "serving": "passed",
        "not_older": "not_run",
    }
    assert [decision.reason, *(found.reason for found in decision.checks)] == snapshot


# --- margin by the spread between seeds ---


def test_the_margin_can_be_in_units_of_the_spread_between_seeds() -> None:
    policy = Gate(min_f1=0.5, policy="non_inferior", margin=2, margin_unit="seed_spread")
    wide = check(decide(night(0.59, 0.60, seed_spread=0.01), policy), "beats_champion")
    assert (wide.outcome, wide.threshold) == ("passed", -0.02)
    assert "0.0200 (margin)" in wide.reason
    narrow = check(decide(night(0.59, 0.60, seed_spread=0.001), policy), "beats_champion")
    assert (narrow.outcome, narrow.threshold) == ("failed", -0.002)
    for average, outcome in (("weighted", "passed"), ("macro", "failed")):
        of_study = night(0.59, 0.60, seed_spread=0.01, seed_average=average)
        assert check(decide(of_study, policy), "beats_champion").outcome == outcome


@pytest.mark.parametrize("spread", [None, math.nan, math.inf, -1.0])
@pytest.mark.parametrize("rule", ["superior", "non_inferior"])
def test_a_margin_in_units_that_were_not_measured_passes_nothing(spread: float | None, rule: str) -> None:
    policy = Gate.model_validate({"min_f1": 0.5, "policy": rule, "margin": 1, "margin_unit": "seed_spread"})
    evidence = replace(anchored(0.9, 0.6, 0.6), seed_spread=spread)
    decision = decide(evidence, policy)
    alone = decide(evidence, policy.model_copy(update={"policy": "threshold_only"}))
    assert (decision.verdict, alone.verdict) == ("hold", "promote")
    for name in ("beats_champion", "anchor"):
        assert (check(decision, name).outcome, check(alone, name).outcome) == ("failed", "warning")
        for one in (decision, alone):
            assert "run `nightgate seeds PIPELINE` first" in check(one, name).reason


# --- anchor ---


def anchored(ours: float, theirs: float, anchor: float) -> Evidence:
    """With an anchor, version 1, that is not the champion."""
    known = night(ours, theirs)
    return replace(known, anchor=side(known.test, anchor, version=1))


@pytest.mark.parametrize(
    ("anchor", "outcome", "moves"),
    [(0.60, "passed", True), (0.62, "passed", False), (0.625, "passed", False), (0.63, "failed", False)],
)
def test_small_losses_do_not_add_up_below_the_anchor(
    anchor: float, outcome: str, moves: bool, snapshot: SnapshotAssertion
) -> None:
    decision = decide(anchored(0.62, 0.60, anchor), POLICY)
    found = check(decision, "anchor")
    assert found.outcome == outcome
    assert (found.candidate_value, found.champion_value, found.threshold) == (0.62, anchor, -0.01)
    assert decision.verdict == ("promote" if outcome == "passed" else "hold")
    assert decision.measured.moves_anchor == moves
    assert decision.measured.anchor.f1 == anchor
    assert found.reason == snapshot


def test_a_champion_that_is_the_anchor_is_compared_once() -> None:
    decision = decide(crossed(0.58, 0.60), POLICY)
    found = check(decision, "anchor")
    assert (found.outcome, found.ci_low) == ("not_run", None)
    assert "beats_champion" in found.reason
    assert decision.measured.anchor is decision.measured.champion
    apart = replace(crossed(0.58, 0.60), anchor=replace(crossed(0.58, 0.60).champion, version=1))  # type: ignore[type-var]
    both = [check(decide(apart, POLICY), name) for name in ("beats_champion", "anchor")]
    assert both[0].ci_low == both[1].ci_low


@pytest.mark.parametrize(("ours", "outcome"), [(0.59, "underpowered"), (0.63, "passed")])
def test_anchor_and_slices_say_the_same_of_the_same_interval(ours: float, outcome: str) -> None:
    test = rows(slices=[Slice("shop", ("only",), np.zeros(2000, dtype=np.int64))])
    known = of_candidate(night(ours, 0.60, test), predictions=labels(test, ours, first_error=0.5))
    evidence = replace(known, anchor=side(test, 0.60, version=1))
    decision = decide(evidence, Gate(min_f1=0.5, margin=0.02, slice_margin=0.02, policy="non_inferior"))
    found = check(decision, "anchor"), check(decision, "slice_margin", "only")
    said = (
        f"a loss of 0.0200 ({{}}) or more is {'excluded' if outcome == 'passed' else 'not excluded'} at 95 % confidence"
    )
    for one, name in zip(found, ("margin", "slice_margin"), strict=True):
        assert one.outcome == outcome
        assert said.format(name) in one.reason


# --- not_older ---


@pytest.mark.parametrize(
    ("candidate_until", "champion_until", "outcome"),
    [
        (TONIGHT, YESTERDAY, "passed"),
        (TONIGHT, TONIGHT, "passed"),
        (YESTERDAY, TONIGHT, "failed"),
        (TONIGHT - timedelta(microseconds=1), TONIGHT, "failed"),
        (None, TONIGHT, "failed"),
        (TONIGHT, None, "failed"),
        (TONIGHT.astimezone(timezone(timedelta(hours=1))), TONIGHT, "passed"),
    ],
)
def test_a_candidate_of_older_data_than_the_champion_s_is_held(
    candidate_until: datetime | None, champion_until: datetime | None, outcome: str, snapshot: SnapshotAssertion
) -> None:
    evidence = of_champion(of_candidate(night(), data_until=candidate_until), data_until=champion_until)
    decision = decide(evidence, POLICY)
    found = check(decision, "not_older")
    assert (found.outcome, found.reason) == (outcome, snapshot)
    assert decision.verdict == ("promote" if outcome == "passed" else "hold")


def test_a_naive_instant_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="aware"):
        Side(predictions=None, data_until=datetime(2026, 3, 2))


# --- verdict ---


@pytest.mark.parametrize(
    ("evidence", "policy"),
    [
        (night(), POLICY),
        (night(0.6, champion_nights=31), POLICY),
        (night(0.6), Gate(min_f1=0.54, policy="non_inferior")),
        (night(0.595), Gate(min_f1=0.54, policy="threshold_only")),
    ],
)
def test_a_promotion_says_by_how_much_and_by_which_rule(
    evidence: Evidence, policy: Gate, snapshot: SnapshotAssertion
) -> None:
    decision = decide(evidence, policy)
    assert (decision.verdict, decision.reason) == ("promote", snapshot)


def test_every_check_runs_and_all_failures_are_in_the_reason() -> None:
    evidence = of_candidate(night(0.30), data_until=YESTERDAY - timedelta(days=1), serving=None, nonfinite_rows=2)
    decision = decide(evidence, POLICY)
    assert decision.verdict == "hold"
    assert outcomes(decision) == {
        "clean_test": "passed",
        "min_f1": "failed",
        "beats_champion": "failed",
        "anchor": "not_run",
        "golden": "warning",
        "slices": "failed",
        "degenerate": "failed",
        "serving": "failed",
        "not_older": "failed",
    }
    for name, outcome in outcomes(decision).items():
        in_reason = (check(decision, name).brief or check(decision, name).reason) in decision.reason
        assert in_reason == (outcome == "failed"), name


def test_all_numbers_of_all_checks_are_finite_or_none() -> None:
    broken = {"calibration_error": math.nan, "serving": replace(night().candidate.serving, logit_difference=math.nan)}  # type: ignore[type-var]
    single = replace(night(), test=rows(2), golden=rows(2))
    for evidence in (
        of_candidate(night(seed_spread=math.nan), **broken),
        replace(single, candidate=side(single.test, 1.0, single.golden), champion=None, anchor=None),
        of_candidate(night(), predictions=None),
        replace(night(), test=rows(0), candidate=side(rows(0), 0.5), champion=None, anchor=None),
    ):
        for found in decide(evidence, Gate(min_f1=0.5, slice_floor=0.5, min_slice_rows=2)).checks:
            for name, value in asdict(found).items():
                assert not isinstance(value, float) or math.isfinite(value), (found.name, name)


def test_a_gap_that_four_decimals_hide_is_not_shown_as_zero() -> None:
    test = rows(40_000)
    reason = check(decide(night(0.60005, 0.60, test), POLICY), "beats_champion").reason
    assert "(+5.0e-05)" in reason
    assert "0.60005" in reason
    first, second = distinct(0.54, math.nextafter(0.54, 1))
    assert first != second


# --- measured ---


def test_what_was_measured_is_the_window_and_beside_it_all_rows() -> None:
    test = rows(1000)
    old = np.arange(1000) >= 400
    test = replace(test, seen_at=np.where(old, test.seen_at - 200 * 86_400_000_000, test.seen_at))
    evidence = night(0.62, 0.60, test)
    trained_on = np.arange(1000) < 10
    measured = decide(of_candidate(evidence, trained_on=trained_on), Gate(min_test_rows=100)).measured
    assert np.array_equal(measured.window, ~old & ~trained_on)
    assert measured.left_out == 10
    assert measured.window_start == TONIGHT - timedelta(microseconds=400)
    assert (measured.candidate.rows, measured.candidate_all.rows) == (390, 990)
    assert measured.candidate.f1 != measured.candidate_all.f1
