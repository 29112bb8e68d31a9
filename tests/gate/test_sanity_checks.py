"""Checks that scores are valid: clean test rows, golden rows, degenerate models, serving."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from syrupy.assertion import SnapshotAssertion

from nightgate.config.gate import Gate
from nightgate.gate.decide import decide
from nightgate.gate.evidence import Evidence, Rows
from nightgate.gate.sanity_checks import SERVING_TOLERANCE
from tests.support.gate_night import SERVED, check, first_night, labels, night, of_candidate, of_champion, rows, side

POLICY = Gate(min_f1=0.54)


# --- clean_test ---


def test_rows_that_a_side_was_trained_on_are_left_out_everywhere_and_counted(snapshot: SnapshotAssertion) -> None:
    evidence = night()
    # The candidate is right on half of the rows only, those that it was trained on.
    known = np.arange(2000) < 1000
    right = np.where(known, evidence.test.true, 1 - evidence.test.true)
    cheated = of_candidate(evidence, predictions=right, trained_on=known)
    decision = decide(cheated, POLICY)
    found = check(decision, "clean_test")
    assert (found.outcome, found.reason) == ("passed", snapshot)
    assert (found.candidate_value, found.champion_value, found.rows_used) == (1000, 0, 1000)
    assert check(decision, "min_f1").candidate_value == 0
    assert check(decision, "beats_champion").rows_used == 1000
    of_classes = [c for c in decision.checks if (c.name, c.slice_name) == ("slice_margin", "label")]
    assert sum(c.rows_used or 0 for c in of_classes) == 1000
    assert (decision.measured.left_out, decision.measured.candidate_all.rows) == (1000, 1000)


def test_the_training_rows_of_all_models_are_left_out_together(snapshot: SnapshotAssertion) -> None:
    at = np.arange(2000)
    known = night(anchor=side(rows(), 0.60, version=1, trained_on=at < 5))
    evidence = of_champion(of_candidate(known, trained_on=at < 3), trained_on=at >= 1990)
    found = check(decide(evidence, POLICY), "clean_test")
    assert (found.rows_used, found.reason) == (1985, snapshot)


@pytest.mark.parametrize("whose", ["candidate", "champion", "anchor"])
def test_a_model_whose_training_rows_are_unknown_fails_and_says_why(whose: str, snapshot: SnapshotAssertion) -> None:
    known = night(anchor=side(rows(), 0.60, version=1))
    unknown = replace(getattr(known, whose), trained_on=None, unknown_line="snapshot s-1 is gone")
    decision = decide(replace(known, **{whose: unknown}), POLICY)
    found = check(decision, "clean_test")
    assert (found.outcome, decision.verdict, found.reason) == ("failed", "hold", snapshot)


def test_where_no_row_is_clean_nothing_is_promoted(snapshot: SnapshotAssertion) -> None:
    decision = decide(of_candidate(night(), trained_on=np.ones(2000, dtype=np.bool_)), POLICY)
    assert decision.verdict == "hold"
    assert [check(decision, name).reason for name in ("clean_test", "min_f1")] == snapshot


# --- golden ---


def golden_night(ours: float, theirs: float) -> Evidence:
    """A night whose candidate and champion have these F1 on 100 golden rows."""
    golden = rows(100)
    return of_champion(of_candidate(night(), golden=labels(golden, ours)), golden=labels(golden, theirs))


@pytest.mark.parametrize(
    ("ours", "theirs", "changes", "outcome"),
    [
        (0.70, 0.70, {}, "passed"),
        (0.50, 0.54, {}, "passed"),
        (0.44, 0.54, {}, "warning"),
        (0.44, 0.54, {"golden_margin": 0.05}, "warning"),
        (0.44, 0.54, {"golden_blocks": True}, "failed"),
        (0.44, 0.54, {"blocking": ["golden"]}, "failed"),
    ],
)
def test_golden_rows_warn_and_name_what_was_unlearned(
    ours: float, theirs: float, changes: dict[str, Any], outcome: str, snapshot: SnapshotAssertion
) -> None:
    decision = decide(golden_night(ours, theirs), Gate.model_validate({"min_f1": 0.54} | changes))
    found = check(decision, "golden")
    assert (found.outcome, found.candidate_value, found.champion_value) == (outcome, ours, theirs)
    assert (found.threshold, found.rows_used) == (-0.05, 100)
    assert decision.verdict == ("hold" if outcome == "failed" else "promote")
    assert found.reason == snapshot


def test_a_golden_check_that_passes_names_the_first_lost_rows_alone() -> None:
    found = check(decide(golden_night(0.44, 0.54), Gate(min_f1=0.54, golden_margin=0.2)), "golden")
    assert (found.outcome, found.reason) == ("passed", found.brief)
    assert found.reason.endswith("0000002e, 0000002f, 00000030, 00000031, 00000032 and 5 more")


def test_a_golden_loss_of_exactly_the_margin_passes() -> None:
    assert check(decide(golden_night(0.5, 1.0), Gate(min_f1=0.5, golden_margin=0.5)), "golden").outcome == "passed"


def test_golden_rows_of_a_group_are_not_taken_for_independent() -> None:
    alone = golden_night(0.6, 0.8)
    # Ten rows each: what goes from right to wrong is two whole groups.
    grouped = replace(alone, golden=rows(100, groups=np.arange(100) // 10))
    narrow, wide = (check(decide(evidence, POLICY), "golden") for evidence in (alone, grouped))
    assert wide.candidate_value == narrow.candidate_value
    assert (wide.ci_high or 0) - (wide.ci_low or 0) > 2 * ((narrow.ci_high or 0) - (narrow.ci_low or 0)) > 0


def test_without_golden_rows_the_check_warns_if_there_should_be_some() -> None:
    without = replace(night(), golden=None, golden_note="the first night had 12 test rows")
    found = check(decide(without, POLICY), "golden")
    assert (found.outcome, found.reason) == ("warning", "the first night had 12 test rows")
    without = replace(without, golden_note="")
    assert check(decide(without, POLICY), "golden").outcome == "not_run"
    decision = decide(without, Gate(min_f1=0.54, golden_blocks=True))
    assert (check(decision, "golden").outcome, decision.verdict) == ("failed", "hold")


def test_missing_golden_predictions_of_the_candidate_fail_and_of_the_champion_warn() -> None:
    of_ours = decide(of_candidate(night(), golden=None), POLICY)
    assert of_ours.verdict == "hold"
    assert check(of_ours, "golden").outcome == "failed"
    of_theirs = of_champion(night(), golden=None)
    assert check(decide(of_theirs, POLICY), "golden").outcome == "warning"
    assert check(decide(of_theirs, Gate(min_f1=0.54, golden_blocks=True)), "golden").outcome == "failed"


# --- degenerate ---


def skewed(share: float) -> Rows:
    """2,000 rows, of which a share is of class 1."""
    test = rows(2000)
    return replace(test, true=(np.arange(2000) < round(2000 * share)).astype(np.int64))


def test_one_class_for_all_rows_fails_whatever_its_f1(snapshot: SnapshotAssertion) -> None:
    test = skewed(0.95)
    constant = first_night(test=test, candidate=side(test, 0.5, predictions=np.ones(2000, dtype=np.int64)))
    decision = decide(constant, POLICY)
    assert check(decision, "min_f1").outcome == "passed"
    found = check(decision, "degenerate")
    assert (found.outcome, decision.verdict, found.reason) == ("failed", "hold", snapshot)
    assert check(decide(constant, Gate(max_share_gap=1)), "degenerate").outcome == "passed"
    assert check(decide(constant, Gate(max_share_gap=0.9)), "degenerate").outcome == "failed"


@pytest.mark.parametrize(("share", "outcome"), [(0.75, "passed"), (0.7505, "failed")])
def test_predicted_shares_may_be_off_by_the_policy_s_gap_and_no_more(
    share: float, outcome: str, snapshot: SnapshotAssertion
) -> None:
    test = skewed(0.5)
    given = (np.arange(2000) < round(2000 * share)).astype(np.int64)
    decision = decide(first_night(test=test, candidate=side(test, 0.5, predictions=given)), Gate(max_share_gap=0.25))
    found = check(decision, "degenerate")
    assert found.candidate_value == pytest.approx(share - 0.5)
    assert (found.outcome, found.reason) == (outcome, snapshot)


def test_logits_must_be_finite(snapshot: SnapshotAssertion) -> None:
    # A warning beside the fault is no reason for the verdict.
    decision = decide(of_candidate(night(), nonfinite_rows=3, calibration_error=0.37), POLICY)
    found = check(decision, "degenerate")
    assert (found.outcome, decision.verdict, [found.reason, decision.reason]) == ("failed", "hold", snapshot)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(0.3, "passed"), (0.3001, "warning"), (math.nan, "warning"), (None, "warning")],
)
def test_calibration_beyond_its_limit_warns_and_holds_once_the_limit_is_set(
    error: float | None, outcome: str, snapshot: SnapshotAssertion
) -> None:
    evidence = of_candidate(night(), calibration_error=error)
    decision = decide(evidence, POLICY)
    found = check(decision, "degenerate")
    assert (found.outcome, found.reason, decision.verdict) == (outcome, snapshot, "promote")
    for policy in ({"max_calibration_error": 0.3}, {"blocking": ["calibration"]}):
        held = decide(evidence, Gate.model_validate({"min_f1": 0.54} | policy))
        assert check(held, "degenerate").outcome == ("passed" if outcome == "passed" else "failed")
        assert held.verdict == ("promote" if outcome == "passed" else "hold")


def test_a_first_model_that_reaches_min_f1_serves_and_predicts_two_classes_is_promoted() -> None:
    skew = replace(rows(), true=(np.arange(2000) % 5 == 0).astype(np.int64))
    given = np.where(np.arange(2000) % 10 < 5, skew.true, 1 - skew.true)
    one = side(skew, 0.5, predictions=given, calibration_error=0.37, data_until=night().data_until)
    decision = decide(first_night(test=skew, candidate=one), Gate(min_f1=0.4))
    assert check(decision, "degenerate").outcome == "warning"
    assert decision.verdict == "promote"


# --- serving ---


@pytest.mark.parametrize(
    "changes",
    [
        None,
        {"flaw": "model.safetensors is cut short"},
        {"rows": 0},
        {"logit_difference": None},
        {"logit_difference": math.nan},
        {"logit_difference": math.nextafter(SERVING_TOLERANCE, 1)},
        {"flipped": 1},
    ],
)
def test_a_model_that_cannot_be_served_as_it_was_scored_is_held(
    changes: dict[str, Any] | None, snapshot: SnapshotAssertion
) -> None:
    served = None if changes is None else replace(SERVED, **changes)
    decision = decide(of_candidate(night(), serving=served), POLICY)
    found = check(decision, "serving")
    assert (found.outcome, decision.verdict) == ("failed", "hold")
    assert (found.threshold, found.reason) == (SERVING_TOLERANCE, snapshot)


@pytest.mark.parametrize(
    ("changes", "policy"),
    [
        ({"latency_ms": 8.1}, {"max_latency_ratio": 2.0}),
        ({"latency_ms": None}, {"blocking": ["latency"]}),
        ({"latency_ms": math.nan}, {"blocking": ["latency"]}),
        ({"size_bytes": 136_000_000}, {"max_size_ratio": 1.5}),
        ({"size_bytes": None}, {"blocking": ["size"]}),
    ],
)
def test_time_and_size_beyond_their_limit_warn_and_hold_once_it_is_set(
    changes: dict[str, Any], policy: dict[str, Any], snapshot: SnapshotAssertion
) -> None:
    evidence = of_candidate(night(), serving=replace(SERVED, **changes))
    warned, held = (decide(evidence, Gate.model_validate({"min_f1": 0.54} | more)) for more in ({}, policy))
    found = check(warned, "serving")
    assert (found.outcome, warned.verdict, found.reason) == ("warning", "promote", snapshot)
    assert (check(held, "serving").outcome, held.verdict) == ("failed", "hold")


@pytest.mark.parametrize(
    "changes", [{"logit_difference": SERVING_TOLERANCE}, {"latency_ms": 8.0}, {"size_bytes": 135_000_000}]
)
def test_what_is_just_within_tolerance_and_budget_passes(changes: dict[str, Any]) -> None:
    found = check(decide(of_candidate(night(), serving=replace(SERVED, **changes)), POLICY), "serving")
    assert (found.outcome, found.rows_used) == ("passed", 64)


@pytest.mark.parametrize(
    "serving",
    [None, replace(SERVED, flaw="it is gone"), replace(SERVED, latency_ms=None), replace(SERVED, size_bytes=0)],
)
def test_a_champion_that_was_not_served_sets_no_budget(serving: Any, snapshot: SnapshotAssertion) -> None:
    slow = of_candidate(night(), serving=replace(SERVED, latency_ms=4.4))
    found = check(decide(of_champion(slow, serving=serving), POLICY), "serving")
    assert (found.outcome, found.reason) == ("warning", snapshot)


def test_the_first_candidate_must_be_served_without_a_budget() -> None:
    assert check(decide(first_night(), POLICY), "serving").outcome == "passed"
    assert decide(of_candidate(first_night(), serving=None), POLICY).verdict == "hold"
