from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest

from nightgate.config import Gate
from nightgate.gate import Check, Decision, Measured, Reuse, decide, told_apart
from nightgate.intervals import Interval

POLICY = Gate(min_f1=0.54)
MONDAY = datetime(2026, 3, 2, 3, 15, tzinfo=UTC)


def measured(f1: float | None = 0.60, **changes: object) -> Measured:
    facts: dict[str, object] = {"support": 500, "test_version": "t-0123456789", "data_until": MONDAY}
    return Measured(f1=f1, **(facts | changes))  # type: ignore[arg-type]


def check(decision: Decision, name: str) -> Check:
    [found] = [check for check in decision.checks if check.name == name]
    return found


@pytest.mark.parametrize(
    ("f1", "outcome", "words"),
    [
        (0.60, "passed", "F1 0.6000 on 500 test rows reaches min_f1 0.5400"),
        (0.54, "passed", "F1 0.5400 on 500 test rows equals min_f1 0.5400"),
        (math.nextafter(0.54, 0), "failed", "is below min_f1 0.5400000000000000"),
        (0.5399, "failed", "F1 0.5399 on 500 test rows is below min_f1 0.5400"),
        (0.53999, "failed", "F1 0.53999 on 500 test rows is below min_f1 0.54000"),
        (0.0, "failed", "F1 0.0000"),
        (1.0, "passed", "F1 1.0000"),
        (None, "failed", "the candidate has no F1"),
        (math.nan, "failed", "non-finite F1 (nan)"),
        (math.inf, "failed", "non-finite F1 (inf)"),
        (-math.inf, "failed", "non-finite F1 (-inf)"),
        (54.35, "failed", "54.35, which is not between 0 and 1"),
        (-0.1, "failed", "which is not between 0 and 1"),
    ],
)
def test_min_f1_passes_from_the_threshold_up_and_on_evidence_only(f1: float | None, outcome: str, words: str) -> None:
    decision = decide(measured(f1), None, POLICY)
    found = check(decision, "min_f1")
    assert found.outcome == outcome
    assert words in found.reason
    assert found.threshold == 0.54
    assert decision.verdict == ("promote" if outcome == "passed" else "hold")


def test_just_below_the_threshold_the_reason_shows_enough_digits_to_see_it() -> None:
    below = math.nextafter(0.54, 0)
    first, second = told_apart(below, 0.54)
    assert first != second
    assert first in check(decide(measured(below), None, POLICY), "min_f1").reason


@pytest.mark.parametrize(
    ("candidate", "champion", "outcome", "words"),
    [
        (
            0.61,
            0.60,
            "passed",
            "F1 0.6100 is above 0.6000 of the champion (version 3) on the same 500 test rows (+0.0100)",
        ),
        (0.60, 0.60, "passed", "F1 0.6000 ties with the champion (version 3) on the same 500 test rows"),
        (
            0.59,
            0.60,
            "failed",
            "F1 0.5900 is below 0.6000 of the champion (version 3) on the same 500 test rows (-0.0100)",
        ),
        (math.nextafter(0.6, 0), 0.6, "failed", "is below"),
        (None, 0.60, "failed", "the candidate has no F1, so it cannot be compared"),
        (math.nan, 0.60, "failed", "non-finite F1 (nan)"),
        (0.60, None, "failed", "the champion (version 3) has no F1"),
        (0.60, math.nan, "failed", "the champion (version 3) has a non-finite F1 (nan)"),
        (0.60, -math.inf, "failed", "the champion (version 3) has a non-finite F1 (-inf)"),
        (math.inf, math.inf, "failed", "the candidate has a non-finite F1 (inf)"),
        (None, None, "failed", "the candidate has no F1"),
        (math.nan, math.nan, "failed", "the candidate has a non-finite F1"),
    ],
)
def test_the_candidate_must_not_be_below_the_champion(
    candidate: float | None, champion: float | None, outcome: str, words: str
) -> None:
    decision = decide(measured(candidate), measured(champion, version=3), POLICY)
    found = check(decision, "beats_champion")
    assert found.outcome == outcome
    assert words in found.reason
    assert decision.verdict == ("promote" if outcome == "passed" else "hold")


def test_a_tie_promotes_and_the_reason_says_that_it_is_one() -> None:
    decision = decide(measured(0.6), measured(0.6), POLICY)
    assert decision.verdict == "promote"
    assert "a tie with the champion" in decision.reason
    assert "a tie goes to the candidate" in check(decision, "beats_champion").reason


def test_without_a_champion_nothing_is_compared_and_the_candidate_becomes_the_first() -> None:
    decision = decide(measured(0.6), None, POLICY)
    assert decision.verdict == "promote"
    assert [(c.name, c.outcome) for c in decision.checks] == [
        ("min_f1", "passed"),
        ("beats_champion", "not_run"),
        ("not_older", "not_run"),
        ("reused_predictions", "not_run"),
    ]
    assert check(decision, "beats_champion").reason == "no champion yet"
    assert check(decision, "not_older").reason == "no champion yet"
    assert check(decision, "reused_predictions").reason == "no champion yet"
    assert "the first champion" in decision.reason


def test_without_a_champion_a_candidate_below_the_threshold_is_still_held() -> None:
    decision = decide(measured(0.5), None, POLICY)
    assert decision.verdict == "hold"
    assert "first" not in decision.reason


@pytest.mark.parametrize("side", ["candidate", "champion"])
def test_a_side_that_was_scored_on_no_rows_is_held(side: str) -> None:
    candidate = measured(0.9, support=0 if side == "candidate" else 500)
    champion = measured(0.6, support=0 if side == "champion" else 500)
    decision = decide(candidate, champion, POLICY)
    assert decision.verdict == "hold"
    assert "was scored on 0 test rows" in check(decision, "beats_champion").reason


def test_no_test_rows_fail_the_threshold_even_at_zero() -> None:
    decision = decide(measured(0.0, support=0), None, Gate(min_f1=0.0))
    assert decision.verdict == "hold"


def test_a_threshold_of_zero_passes_a_measured_zero() -> None:
    assert decide(measured(0.0), None, Gate(min_f1=0.0)).verdict == "promote"


def test_scores_on_different_row_counts_are_not_compared() -> None:
    decision = decide(measured(0.9, support=510), measured(0.6), POLICY)
    assert decision.verdict == "hold"
    assert "510 test rows" in decision.reason
    assert "on 500" in decision.reason


def test_scores_on_different_test_versions_are_not_compared() -> None:
    decision = decide(measured(0.9, test_version="t-new"), measured(0.6, test_version="t-old"), POLICY)
    assert decision.verdict == "hold"
    assert "t-new" in decision.reason
    assert "t-old" in decision.reason


@pytest.mark.parametrize(
    ("candidate_until", "champion_until", "outcome", "words"),
    [
        (MONDAY + timedelta(days=1), MONDAY, "passed", "newer than 2026-03-02 03:15:00 UTC"),
        (MONDAY, MONDAY, "passed", "as did the champion"),
        (MONDAY - timedelta(days=1), MONDAY, "failed", "up to 2026-03-01 03:15:00 UTC, older than 2026-03-02 03:15:00"),
        (MONDAY - timedelta(microseconds=1), MONDAY, "failed", "2026-03-02 03:14:59.999999 UTC"),
        (None, MONDAY, "failed", "not known up to when the candidate saw data"),
        (MONDAY, None, "failed", "not known up to when the champion saw data"),
    ],
)
def test_a_candidate_that_saw_older_data_than_the_champion_is_held(
    candidate_until: datetime | None, champion_until: datetime | None, outcome: str, words: str
) -> None:
    decision = decide(measured(0.9, data_until=candidate_until), measured(0.6, data_until=champion_until), POLICY)
    found = check(decision, "not_older")
    assert found.outcome == outcome
    assert words in found.reason
    assert decision.verdict == ("promote" if outcome == "passed" else "hold")


@pytest.mark.parametrize(
    ("reuse", "outcome", "words"),
    [
        (None, "not_run", "all test rows of the champion (version 3) were scored tonight, none was reused"),
        (Reuse(rows=500), "not_run", "all test rows of the champion (version 3) were scored tonight"),
        (
            Reuse(rows=5000, reused=4512, recomputed=46),
            "passed",
            "4,512 of 5,000 test rows of the champion (version 3) were scored on an earlier night; of these 46, drawn "
            "at random, were scored again tonight, and none differs by more than 0.0001",
        ),
        (
            Reuse(rows=5000, recomputed=46, differing=1),
            "failed",
            "1 of 46 recomputed rows of the champion (version 3) differ from what an earlier night stored, by more "
            "than 0.0001 in a logit or in the label: the stored rows were dropped and all 5,000 scored afresh; see what"
            " changed on this machine",
        ),
    ],
)
def test_reused_predictions_count_only_while_recomputed_ones_agree(
    reuse: Reuse | None, outcome: str, words: str
) -> None:
    decision = decide(measured(0.9), measured(0.6, version=3, reuse=reuse), POLICY)
    found = check(decision, "reused_predictions")
    assert found.outcome == outcome
    assert words in found.reason
    assert found.rows_used == (reuse.recomputed if reuse else None)
    assert decision.verdict == ("hold" if outcome == "failed" else "promote")


def test_instants_are_compared_across_timezones() -> None:
    berlin = timezone(timedelta(hours=1))
    same = measured(data_until=datetime(2026, 3, 2, 4, 15, tzinfo=berlin))
    assert "as did the champion" in check(decide(same, measured(), POLICY), "not_older").reason


def test_a_naive_instant_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="aware"):
        measured(data_until=datetime(2026, 3, 2))


def test_every_check_runs_and_all_failures_are_in_the_reason() -> None:
    candidate = measured(0.3, data_until=MONDAY - timedelta(days=1))
    decision = decide(candidate, measured(0.6), POLICY)
    assert [c.outcome for c in decision.checks] == ["failed", "failed", "failed", "not_run"]
    for found in decision.failed:
        assert found.reason in decision.reason


def test_the_reason_of_a_hold_names_failures_only() -> None:
    decision = decide(measured(0.6), measured(0.7), POLICY)
    assert decision.reason == check(decision, "beats_champion").reason


def test_intervals_are_reported_and_decide_nothing() -> None:
    candidate = measured(0.6, interval=Interval(0.55, 0.65))
    decision = decide(candidate, measured(0.599), POLICY, difference=Interval(-0.02, 0.022))
    threshold, comparison, *_ = decision.checks
    assert (threshold.ci_low, threshold.ci_high) == (0.55, 0.65)
    assert "95 % interval 0.5500 to 0.6500" in threshold.reason
    assert (comparison.ci_low, comparison.ci_high) == (-0.02, 0.022)
    assert "-0.0200 to +0.0220, which includes 0" in comparison.reason
    assert decision.verdict == "promote"


def test_a_gap_that_four_decimals_hide_is_not_told_as_zero() -> None:
    reason = check(decide(measured(0.6 + 1e-7), measured(0.6), POLICY), "beats_champion").reason
    assert "(+1.0e-07)" in reason


def test_non_finite_numbers_never_reach_a_check_s_values() -> None:
    decision = decide(measured(math.nan), measured(math.inf), POLICY)
    for found in decision.checks:
        for value in (found.candidate_value, found.champion_value, found.threshold):
            assert value is None or math.isfinite(value)
