from __future__ import annotations

from dataclasses import replace

import pytest

from nightgate.config.gate import Gate
from nightgate.gate.decide import decide
from nightgate.gate.evidence import Evidence
from nightgate.night.next_steps import remedy
from tests.support.gate_night import SERVED, first_night, labels, night, of_candidate, of_champion

POLICY = Gate(min_f1=0.5)


def step_after(
    evidence: Evidence, finding: str = "--set training.epochs=8", policy: Gate = POLICY, version: int | None = 7
) -> str:
    decision = decide(evidence, policy)
    assert decision.verdict != "promote", decision.reason
    return remedy(evidence, policy, decision, "reviews", version, lambda: finding)


@pytest.mark.parametrize(
    ("evidence", "step"),
    [
        (of_candidate(night(), serving=None), "see the end of the night's log"),
        (of_candidate(night(), trained_on=None), "bring back the files that it names"),
        (of_champion(night(), data_until=night().data_until.replace(year=2099)), "run the newest night"),
        (of_champion(night(), flaw="knows other labels"), "to promote it all the same"),
        (of_champion(night(), flaw="was trained on others", relabelled=True), "restore label and labels in [data]"),
    ],
)
def test_the_next_step_is_about_what_failed_and_says_how_to_promote_it_all_the_same(
    evidence: Evidence, step: str
) -> None:
    assert step_after(evidence).startswith(step)
    assert step_after(evidence).endswith(": nightgate promote reviews 7 --reason TEXT")
    of_dry_run = step_after(evidence, version=None)
    assert of_dry_run.startswith(step)
    assert of_dry_run.endswith(
        ": run the same without --dry-run, then `nightgate promote reviews VERSION --reason TEXT`"
    )


def test_an_anchor_of_no_use_is_replaced_by_the_champion() -> None:
    known = night()
    assert known.anchor is not None
    lost = replace(known, anchor=replace(known.anchor, flaw="cannot be used: model.safetensors is missing"))
    assert step_after(lost).startswith("`nightgate promote reviews 3 --anchor --reason TEXT` ")


def test_a_candidate_that_learned_too_little_gets_what_the_diagnosis_found() -> None:
    assert step_after(night(0.4)) == "--set training.epochs=8"


def test_where_the_diagnosis_finds_nothing_there_is_a_next_step_too() -> None:
    assert step_after(night(0.4), finding="").startswith("the champion stays, and the next night tries again; ")


def test_a_window_that_is_too_small_to_tell_is_answered_with_the_number_of_rows_that_would() -> None:
    few = of_candidate(night(0.61, 0.60), predictions=labels(night().test, 0.61, first_error=0.5))
    assert decide(few, POLICY).verdict == "underpowered"
    assert step_after(few).startswith("`nightgate gate power reviews` ")
    assert "gate.policy" not in step_after(few)
    unclear = of_candidate(night(0.605, 0.60), predictions=labels(night().test, 0.605, first_error=0.1))
    assert step_after(unclear).startswith("`nightgate gate power reviews` ")


def test_a_limit_that_was_missed_is_named_with_the_value_that_passes_and_once() -> None:
    for policy, text in (
        (Gate(min_f1=0.7), "--set gate.min_f1=0.62 would have let it pass (min_f1 was 0.7)"),
        (Gate(min_f1=0.5, max_calibration_error=0.01), "--set gate.max_calibration_error=0.0501 "),
    ):
        step = step_after(night(0.62), finding="", policy=policy)
        assert step.count("would have let it pass") == step.count(text) == 1
    slow = of_candidate(night(), serving=replace(SERVED, latency_ms=8.1))
    step = step_after(slow, finding="", policy=Gate(min_f1=0.5, blocking=("latency",)))
    assert "--set gate.max_latency_ratio=2.0251 would have let it pass (max_latency_ratio was 2)" in step
    assert "log" not in step


def test_the_next_step_of_a_first_candidate_names_no_champion() -> None:
    step = step_after(first_night(0.4), finding="")
    assert step.startswith("the next night tries again; --set gate.min_f1=0.4 ")
    assert "champion" not in step
