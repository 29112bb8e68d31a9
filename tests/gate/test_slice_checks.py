"""Checks of classes and slices: floor, margin, few rows, groups, and the error over all tests."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from syrupy.assertion import SnapshotAssertion

from nightgate.config.gate import Gate
from nightgate.gate.decide import decide
from nightgate.gate.decision import Decision
from nightgate.gate.evidence import Evidence, Slice
from tests.support.evidence import guesses
from tests.support.gate_night import DAY, check, first_night, labels, night, of_candidate, of_champion, rows, side

POLICY = Gate(min_f1=0.5)
SHOPS = ("boots", "gloves", "hats", "")


def shops() -> Slice:
    """Of 2,000 rows, spread over both classes and over right and wrong ones; the last shop has no name and few rows."""
    place = np.arange(2000) // 2 % 100
    return Slice("shop", SHOPS, np.searchsorted([25, 50, 98], place, side="right"))


def shopping(lost: float) -> Evidence:
    """A candidate that is better by 10 points, but lost a share of the gloves that both have right."""
    test = rows(slices=[shops()])
    gloves = np.flatnonzero((test.slices[0].codes == 1) & (labels(test, 0.6) == test.true))
    worse = labels(test, 0.7)
    chosen = gloves[: round(lost * 500)]
    worse[chosen] = 1 - worse[chosen]
    return of_candidate(night(0.7, 0.6, test), predictions=worse)


def losing_all(evidence: Evidence, shop: str) -> Evidence:
    """A candidate that is wrong on all rows of the shop."""
    lost = evidence.test.slices[0].codes == SHOPS.index(shop)
    return of_candidate(evidence, predictions=np.where(lost, 1 - evidence.test.true, evidence.candidate.predictions))


def of_slices(decision: Decision, kind: str) -> dict[str, str]:
    return {f"{c.slice_name} {c.slice_value}": c.outcome for c in decision.checks if c.name == kind}


def test_every_class_and_slice_is_compared_with_the_champion(snapshot: SnapshotAssertion) -> None:
    decision = decide(shopping(0.0), POLICY)
    assert of_slices(decision, "slice_margin") == {
        "label bad": "passed",
        "label good": "passed",
        "shop boots": "passed",
        "shop gloves": "passed",
        "shop hats": "passed",
        "shop ": "underpowered",
    }
    assert of_slices(decision, "slice_floor") == {}
    assert check(decision, "slices").reason == snapshot
    assert decision.verdict == "promote"


def test_a_slice_that_is_clearly_worse_holds_a_candidate_that_is_better_as_a_whole(
    snapshot: SnapshotAssertion,
) -> None:
    decision = decide(shopping(0.3), POLICY)
    assert check(decision, "beats_champion").outcome == "passed"
    assert of_slices(decision, "slice_margin")["shop gloves"] == "failed"
    found = check(decision, "slice_margin", "gloves")
    assert (found.slice_name, found.rows_used, found.threshold) == ("shop", 500, -0.05)
    assert found.ci_high < -0.05
    summary = check(decision, "slices")
    assert (summary.outcome, summary.reason) == ("failed", snapshot)
    assert found.reason in summary.reason
    assert (decision.verdict, decision.reason) == ("hold", summary.reason)


def test_a_slice_whose_loss_is_neither_shown_nor_excluded_is_underpowered_and_holds_nothing(
    snapshot: SnapshotAssertion,
) -> None:
    decision = decide(shopping(0.17), POLICY)
    found = check(decision, "slice_margin", "gloves")
    assert (found.outcome, found.reason) == ("underpowered", snapshot)
    assert found.candidate_value - found.champion_value < -0.05
    assert (check(decision, "slices").outcome, decision.verdict) == ("passed", "promote")


def test_slices_that_do_not_block_warn(snapshot: SnapshotAssertion) -> None:
    decision = decide(shopping(0.3), Gate(min_f1=0.5, blocking=()))
    for found in (check(decision, "slices"), check(decision, "slice_margin", "gloves")):
        assert found.outcome == "warning"
    assert decision.verdict == "promote"
    assert check(decision, "slices").reason == snapshot
    # A limit that is set holds.
    assert decide(shopping(0.3), Gate(min_f1=0.5, blocking=(), slice_margin=0.05)).verdict == "hold"
    assert decide(shopping(0.3), Gate(min_f1=0.5, blocking=(), slice_floor=0.6)).verdict == "hold"


def test_a_class_or_slice_of_few_rows_is_underpowered_however_bad(snapshot: SnapshotAssertion) -> None:
    awful = losing_all(shopping(0.0), "")
    decision = decide(awful, POLICY)
    found = check(decision, "slice_margin", "")
    assert (found.outcome, found.candidate_value, found.reason) == ("underpowered", 0.0, snapshot)
    assert decision.verdict == "promote"
    assert of_slices(decide(awful, Gate(min_f1=0.5, min_slice_rows=40)), "slice_margin")["shop "] == "failed"


def test_with_too_few_rows_everywhere_the_summary_is_underpowered_and_holds_nothing(
    snapshot: SnapshotAssertion,
) -> None:
    decision = decide(shopping(0.15), Gate(min_f1=0.5, min_slice_rows=2000))
    assert (check(decision, "slices").outcome, check(decision, "slices").reason) == ("underpowered", snapshot)
    assert decision.verdict == "promote"


@pytest.mark.parametrize(("floor", "outcome"), [(0.55, "passed"), (0.60, "underpowered"), (0.68, "failed")])
def test_a_floor_applies_to_every_class_even_of_the_first_candidate(
    floor: float, outcome: str, snapshot: SnapshotAssertion
) -> None:
    decision = decide(first_night(0.60), Gate(min_f1=0.5, slice_floor=floor))
    for label in ("bad", "good"):
        found = check(decision, "slice_floor", label)
        assert (found.outcome, found.candidate_value, found.champion_value) == (outcome, 0.60, None)
        assert (found.threshold, found.rows_used) == (floor, 1000)
        assert found.reason == snapshot
    assert of_slices(decision, "slice_margin") == {}
    assert decision.verdict == ("hold" if outcome == "failed" else "promote")


def test_floor_and_margin_share_one_correction() -> None:
    decision = decide(shopping(0.0), Gate(min_f1=0.5, slice_floor=0.3))
    assert "none of 10 tests" in check(decision, "slices").reason
    assert list(of_slices(decision, "slice_floor")) == list(of_slices(decision, "slice_margin"))


def test_more_failures_than_fit_are_counted() -> None:
    test = rows(slices=[Slice("shop", ("a", "b", "c", "d"), np.arange(2000) % 4)])
    decision = decide(night(0.55, 0.95, test), POLICY)
    assert check(decision, "slices").reason.endswith(" and 3 more")


def test_a_value_that_no_row_of_the_window_has_is_no_slice() -> None:
    test = rows(slices=[shops()])
    test = replace(test, seen_at=np.where(shops().codes == 0, test.seen_at - 400 * DAY, test.seen_at))
    decision = decide(night(0.62, 0.60, test), Gate(min_f1=0.5, min_test_rows=100))
    found = [key for key in of_slices(decision, "slice_margin") if key.startswith("shop")]
    assert found == ["shop gloves", "shop hats", "shop "]


def test_a_champion_without_predictions_leaves_slices_without_evidence() -> None:
    decision = decide(of_champion(night(), predictions=None), POLICY)
    assert check(decision, "slices").outcome == "failed"
    assert of_slices(decision, "slice_margin") == {}


def test_rows_of_a_group_are_not_independent_in_slices_either() -> None:
    # 40 groups of 50 rows, 10 of them of one shop, of which the candidate lost two: 100 rows, but only 10 draws.
    groups = np.arange(2000) // 50
    test = rows(slices=[Slice("shop", SHOPS, groups // 10)])
    right = np.where(groups % 5 == 4, 1 - test.true, test.true)
    lost = (groups == 10) | (groups == 11)
    champion = side(test, 0.9, version=3, predictions=right)
    candidate = replace(champion, predictions=np.where(lost, 1 - test.true, right))
    found = []
    for known in (test, replace(test, groups=groups)):
        decision = decide(night(test=known, champion=champion, anchor=champion, candidate=candidate), POLICY)
        found.append(check(decision, "slice_margin", "gloves"))
    assert [one.outcome for one in found] == ["failed", "underpowered"]
    assert found[0].candidate_value == found[1].candidate_value


def test_a_slice_of_a_few_groups_is_not_tested_however_many_rows_they_have(snapshot: SnapshotAssertion) -> None:
    groups = np.arange(2000) // 50
    test = rows(slices=[Slice("shop", SHOPS, np.searchsorted([35, 36], groups, side="right"))], groups=groups)
    champion = side(test, 0.9, version=3)
    candidate = replace(champion, predictions=np.where(groups == 35, 1 - test.true, labels(test, 0.9)))
    decision = decide(night(test=test, champion=champion, anchor=champion, candidate=candidate), POLICY)
    found = check(decision, "slice_margin", "gloves")
    assert found.outcome == "underpowered"
    assert [found.reason, check(decision, "slices").reason] == snapshot


@pytest.mark.parametrize("confidence", [0.95, 0.99, 0.999])
def test_a_slice_that_lost_everything_fails_at_any_confidence(confidence: float) -> None:
    policy = Gate(min_f1=0.5, confidence=confidence, slice_floor=0.1)
    decision = decide(losing_all(shopping(1.0), "gloves"), policy)
    assert check(decision, "slice_margin", "gloves").outcome == "failed"


def test_no_confidence_is_accepted_whose_tails_are_rarer_than_the_resamples() -> None:
    with pytest.raises(ValidationError, match="confidence"):
        Gate(confidence=1 - 1e-16)


def equal_night(seed: int, num_labels: int, num_rows: int, num_slices: tuple[int, ...]) -> Evidence:
    """Two models of one quality that agree on most rows."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, num_labels, num_rows)
    slices = [Slice(f"by {num}", tuple(map(str, range(num))), rng.integers(0, num, num_rows)) for num in num_slices]
    test = replace(rows(num_rows, slices), true=true)
    champion = side(test, 0.5, predictions=guesses(test.true, 0.6, seed, num_labels), version=3)
    other = guesses(test.true, 0.6, seed + 10_000, num_labels)
    candidate = replace(champion, predictions=np.where(rng.random(num_rows) < 0.5, champion.predictions, other))
    names = tuple(map(str, range(1, num_labels + 1)))
    return night(test=test, label_names=names, champion=champion, anchor=champion, candidate=candidate, golden=None)


def test_of_nights_with_equal_models_chance_fails_no_more_than_the_error_that_is_allowed() -> None:
    # At a margin of 0 and an error of 20 % instead of 5 %, so that few nights suffice: 12 of 30 have a chance of 1 %.
    policy = Gate(min_f1=0, slice_margin=0, confidence=0.8)
    nights = [decide(equal_night(seed, 2, 1000, (6,)), policy) for seed in range(30)]
    assert sum(check(decision, "slices").outcome == "failed" for decision in nights) < 12


def test_forty_slices_take_well_under_two_seconds() -> None:
    evidence = equal_night(0, 5, 5000, (5, 10, 20))
    started = time.process_time()
    decision = decide(evidence, Gate(slice_floor=0.5))
    assert len([c for c in decision.checks if c.slice_name]) == 80
    assert time.process_time() - started < 2
