"""Whether scores mean anything: clean test rows, golden rows, degenerate models, serving."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nightgate.config import Gate
from nightgate.gate.decide import decide
from nightgate.gate.decision import Check
from nightgate.gate.evidence import Rows
from nightgate.gate.sanity_checks import SERVING_TOLERANCE
from tests.support.gate_night import SERVED, check, first_night, night, of_candidate, of_champion, rows, side

POLICY = Gate(min_f1=0.54)


# --- clean_test ---


def test_rows_that_a_side_was_trained_on_are_left_out_everywhere_and_counted() -> None:
    evidence = night()
    # Half of the rows, which alone the candidate has right: without them nothing speaks for it.
    known = np.arange(2000) < 1000
    right = np.where(known, evidence.test.true, 1 - evidence.test.true)
    cheated = of_candidate(evidence, predictions=right, trained_on=known)
    decision = decide(cheated, POLICY)
    found = check(decision, "clean_test")
    assert found.outcome == "passed"
    assert found.reason == (
        "1,000 of 2,000 test rows are left out, because a side was trained on them (the candidate on 1,000)"
    )
    assert (found.candidate_value, found.champion_value, found.rows_used) == (1000, 0, 1000)
    assert check(decision, "min_f1").candidate_value == 0
    assert check(decision, "beats_champion").rows_used == 1000
    assert (
        sum(c.rows_used or 0 for c in decision.checks if c.slice_name == "label" and c.name == "slice_margin") == 1000
    )
    assert decision.measured is not None
    assert (decision.measured.left_out, decision.measured.candidate_all.rows) == (1000, 1000)


def test_the_rows_of_all_sides_are_left_out_together() -> None:
    known = night()
    at = np.arange(2000)
    anchor = side(known.test, 0.60, version=1, trained_on=at < 5)
    evidence = of_champion(of_candidate(replace(known, anchor=anchor), trained_on=at < 3), trained_on=at >= 1990)
    found = check(decide(evidence, POLICY), "clean_test")
    assert found.reason.startswith("15 of 2,000 test rows are left out")
    assert "(the candidate on 3, the champion (version 3) on 10, the anchor (version 1) on 5)" in found.reason


def test_clean_rows_are_said_to_be_clean() -> None:
    found = check(decide(night(), POLICY), "clean_test")
    assert (found.outcome, found.reason) == ("passed", "no side was trained on any of 2,000 test rows, or chosen by it")


@pytest.mark.parametrize("whose", ["candidate", "champion", "anchor"])
def test_a_side_whose_training_rows_are_unknown_fails_and_says_why(whose: str) -> None:
    known = night()
    known = replace(known, anchor=side(known.test, 0.60, version=1))
    unknown = replace(getattr(known, whose), trained_on=None, unknown_line="snapshot s-1 is gone")
    decision = decide(replace(known, **{whose: unknown}), POLICY)
    found = check(decision, "clean_test")
    assert (found.outcome, decision.verdict) == ("failed", "hold")
    assert found.reason.startswith(f"it is not known which test rows the {whose}")
    assert found.reason.endswith(" was trained on: snapshot s-1 is gone")


def test_where_no_row_is_clean_nothing_is_promoted() -> None:
    decision = decide(of_candidate(night(), trained_on=np.ones(2000, dtype=np.bool_)), POLICY)
    assert decision.verdict == "hold"
    assert check(decision, "clean_test").reason.startswith("none of 2,000 test rows is left")
    assert "there are no test rows that no side was trained on, so nothing shows" in check(decision, "min_f1").reason


# --- golden ---


def golden_night(ours: float, theirs: float, **changes: Any) -> Any:
    """Where candidate and champion did as well on 100 golden rows."""
    known = night(**changes)
    golden = known.golden
    assert golden is not None
    fresh = [side(golden, share).predictions for share in (ours, theirs)]
    return of_champion(of_candidate(known, golden=fresh[0]), golden=fresh[1])


@pytest.mark.parametrize(
    ("ours", "theirs", "blocks", "outcome", "words"),
    [
        (
            0.70,
            0.70,
            False,
            "passed",
            "F1 0.7000 against 0.7000 of the champion (version 3) on the same 100 golden rows",
        ),
        (0.70, 0.70, False, "passed", "no loss of more than golden_margin 0.0500; no row went from right to wrong"),
        (0.50, 0.54, False, "passed", "4 rows went from right to wrong: 0000002e, 0000002f, 00000030, 00000031"),
        (0.44, 0.54, False, "warning", "a loss of more than golden_margin 0.0500; 10 rows went from right to wrong: "),
        (0.44, 0.54, False, "warning", ", ".join(f"{row:08x}" for row in range(0x2E, 0x38))),
        (0.44, 0.54, True, "failed", "a loss of more than golden_margin 0.0500"),
    ],
)
def test_golden_rows_warn_and_name_what_was_unlearned(
    ours: float, theirs: float, blocks: bool, outcome: str, words: str
) -> None:
    decision = decide(golden_night(ours, theirs), Gate(min_f1=0.54, golden_blocks=blocks))
    found = check(decision, "golden")
    assert (found.outcome, found.candidate_value, found.champion_value) == (outcome, ours, theirs)
    assert (found.threshold, found.rows_used) == (-0.05, 100)
    assert words in found.reason
    assert decision.verdict == ("hold" if outcome == "failed" else "promote")


def test_of_golden_rows_that_need_no_look_the_first_are_named() -> None:
    found = check(decide(golden_night(0.44, 0.54), Gate(min_f1=0.54, golden_margin=0.2)), "golden")
    assert (found.outcome, found.reason) == ("passed", found.brief)
    assert found.reason.endswith("0000002e, 0000002f, 00000030, 00000031, 00000032 and 5 more")


def test_a_loss_of_just_the_margin_is_none_too_many() -> None:
    assert check(decide(golden_night(0.5, 1.0), Gate(min_f1=0.5, golden_margin=0.5)), "golden").outcome == "passed"


def test_golden_rows_of_a_group_are_not_taken_for_independent() -> None:
    alone = golden_night(0.6, 0.8)
    # Ten rows each: what goes from right to wrong is two whole groups.
    grouped = replace(alone, golden=replace(alone.golden, groups=np.arange(100) // 10))
    narrow, wide = (check(decide(evidence, POLICY), "golden") for evidence in (alone, grouped))
    assert wide.candidate_value == narrow.candidate_value
    assert width(wide) > 2 * width(narrow)


def width(found: Check) -> float:
    assert found.ci_low is not None
    assert found.ci_high is not None
    return found.ci_high - found.ci_low


def test_without_golden_rows_the_check_says_why() -> None:
    without = replace(night(), golden=None, golden_note="the first night had 12 test rows")
    found = check(decide(without, POLICY), "golden")
    assert (found.outcome, found.reason) == ("warning", "the first night had 12 test rows")
    none = check(decide(replace(without, golden_note=""), POLICY), "golden")
    assert (none.outcome, none.reason) == ("not_run", "there are no golden rows")


def test_a_check_that_blocks_does_not_pass_for_want_of_golden_rows() -> None:
    without = replace(night(), golden=None)
    decision = decide(without, Gate(min_f1=0.54, golden_blocks=True))
    assert (check(decision, "golden").outcome, decision.verdict) == ("failed", "hold")


def test_missing_golden_predictions_are_no_regression_and_no_pass() -> None:
    of_ours = decide(of_candidate(night(), golden=None), POLICY)
    assert of_ours.verdict == "hold"
    assert "the candidate has no predictions on the golden rows" in check(of_ours, "golden").reason
    of_theirs = of_champion(night(), golden=None)
    assert check(decide(of_theirs, POLICY), "golden").outcome == "warning"
    assert check(decide(of_theirs, Gate(min_f1=0.54, golden_blocks=True)), "golden").outcome == "failed"


# --- degenerate ---


def skewed(share: float) -> Rows:
    """2,000 rows, of which a share is of class 1."""
    test = rows(2000)
    return replace(test, true=(np.arange(2000) < round(2000 * share)).astype(np.int64))


def test_one_class_for_all_rows_fails_whatever_its_f1() -> None:
    test = skewed(0.95)
    constant = first_night(test=test, candidate=side(test, 0.5, predictions=np.ones(2000, dtype=np.int64)))
    decision = decide(constant, POLICY)
    assert check(decision, "min_f1").outcome == "passed"
    found = check(decision, "degenerate")
    assert (found.outcome, decision.verdict) == ("failed", "hold")
    assert found.reason == "the candidate predicts 'good' for all 2,000 test rows"
    assert check(decide(constant, Gate(max_share_gap=1)), "degenerate").outcome == "passed"


@pytest.mark.parametrize(("share", "outcome"), [(0.75, "passed"), (0.7505, "failed")])
def test_predicted_shares_may_be_off_by_the_policy_s_gap_and_no_more(share: float, outcome: str) -> None:
    test = skewed(0.5)
    given = (np.arange(2000) < round(2000 * share)).astype(np.int64)
    decision = decide(first_night(test=test, candidate=side(test, 0.5, predictions=given)), Gate(max_share_gap=0.25))
    found = check(decision, "degenerate")
    assert found.outcome == outcome
    assert found.candidate_value == pytest.approx(share - 0.5)
    if outcome == "failed":
        # Both classes are off by as much.
        assert "a gap of 0.2505, more than max_share_gap 0.2500" in found.reason


@pytest.mark.parametrize(
    ("changes", "outcome", "words"),
    [
        ({"nonfinite_rows": 3}, "failed", "the candidate gives 3 rows a logit that is NaN or infinite"),
        ({"calibration_error": 0.3}, "passed", "its calibration error is 0.3000"),
        ({"calibration_error": 0.3001}, "failed", "0.3001 is not within max_calibration_error 0.3000"),
        ({"calibration_error": math.nan}, "failed", "calibration error nan is not within"),
        ({"calibration_error": None}, "failed", "calibration error is unknown, so nothing shows that it is within"),
    ],
)
def test_logits_must_be_finite_and_calibrated_within_bounds(changes: dict[str, Any], outcome: str, words: str) -> None:
    found = check(decide(of_candidate(night(), **changes), POLICY), "degenerate")
    assert found.outcome == outcome
    assert words in found.reason


# --- serving ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (None, "the saved candidate was not tried in a fresh process"),
        ({"flaw": "model.safetensors is cut short"}, "cannot be served: model.safetensors is cut short"),
        ({"rows": 0}, "gave no logits in a fresh process"),
        ({"logit_difference": None}, "gave no logits in a fresh process"),
        ({"logit_difference": math.nan}, "gave no logits in a fresh process"),
        (
            {"logit_difference": math.nextafter(SERVING_TOLERANCE, 1)},
            "off by up to 1.0e-03 on 64 rows, more than 0.001",
        ),
        ({"flipped": 1}, "gives 1 of 64 rows another label"),
        ({"latency_ms": 8.1}, "the candidate takes 8.1 ms a text, 2.02 times 4.0 of the champion (version 3)"),
        ({"latency_ms": 8.1}, ", more than max_latency_ratio 2"),
        ({"latency_ms": None}, "the candidate's ms a text are unknown"),
        ({"latency_ms": math.nan}, "the candidate's ms a text are unknown"),
        (
            {"size_bytes": 136_000_000},
            "136.0 MB, 1.51 times 90.0 of the champion (version 3), more than max_size_ratio",
        ),
        ({"size_bytes": None}, "the candidate's MB are unknown"),
    ],
)
def test_a_model_that_cannot_be_served_as_it_was_scored_is_held(changes: dict[str, Any] | None, words: str) -> None:
    served = None if changes is None else replace(SERVED, **changes)
    decision = decide(of_candidate(night(), serving=served), POLICY)
    found = check(decision, "serving")
    assert (found.outcome, decision.verdict) == ("failed", "hold")
    assert words in found.reason
    assert found.threshold == SERVING_TOLERANCE


@pytest.mark.parametrize(
    "changes", [{"logit_difference": SERVING_TOLERANCE}, {"latency_ms": 8.0}, {"size_bytes": 135_000_000}]
)
def test_what_is_just_within_tolerance_and_budget_passes(changes: dict[str, Any]) -> None:
    found = check(decide(of_candidate(night(), serving=replace(SERVED, **changes)), POLICY), "serving")
    assert found.outcome == "passed"
    assert "gets the same logits on 64 rows" in found.reason


@pytest.mark.parametrize(
    ("serving", "words"),
    [
        (None, "time and size are not compared, because the champion (version 3) was not served: it was not tried"),
        (replace(SERVED, flaw="it is gone"), "because the champion (version 3) was not served: it is gone"),
        (replace(SERVED, latency_ms=None), "ms a text of the champion (version 3) are unknown and not compared"),
        (replace(SERVED, size_bytes=0), "MB of the champion (version 3) are unknown and not compared"),
    ],
)
def test_a_champion_that_was_not_served_sets_no_budget(serving: Any, words: str) -> None:
    slow = of_candidate(night(), serving=replace(SERVED, latency_ms=4.4))
    found = check(decide(of_champion(slow, serving=serving), POLICY), "serving")
    assert found.outcome == "warning"
    assert words in found.reason


def test_the_first_candidate_must_be_served_without_a_budget() -> None:
    found = check(decide(first_night(), POLICY), "serving")
    assert found.outcome == "passed"
    assert found.reason.endswith("; no champion yet, so time and size have no budget")
    assert decide(of_candidate(first_night(), serving=None), POLICY).verdict == "hold"
