from __future__ import annotations

from dataclasses import replace

import pytest

from nightgate.config import Gate
from nightgate.gate.decide import decide
from nightgate.gate.evidence import Evidence
from nightgate.night.next_steps import remedy
from tests.support.gate_night import labels, night, of_candidate, of_champion

POLICY = Gate(min_f1=0.5)


def step_after(evidence: Evidence, finding: str = "--set training.epochs=8") -> str:
    decision = decide(evidence, POLICY)
    assert decision.verdict != "promote", decision.reason
    return remedy(evidence, decision, "reviews", 7, lambda: finding)


@pytest.mark.parametrize(
    ("evidence", "step"),
    [
        (of_candidate(night(), serving=None), "see the end of the night's log"),
        (of_candidate(night(), trained_on=None), "bring back the snapshots that it names"),
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


def test_an_anchor_of_no_use_is_replaced_by_the_champion() -> None:
    known = night()
    assert known.anchor is not None
    lost = replace(known, anchor=replace(known.anchor, flaw="cannot be used: model.safetensors is missing"))
    assert step_after(lost).startswith("nightgate promote reviews 3 --anchor --reason TEXT ")


def test_a_candidate_that_learned_too_little_gets_what_the_diagnosis_found() -> None:
    assert step_after(night(0.4)) == "--set training.epochs=8"


def test_where_the_diagnosis_finds_nothing_there_is_a_next_step_too() -> None:
    assert step_after(night(0.4), finding="").startswith("the champion stays, and the next night tries again; ")


def test_a_window_that_is_too_small_to_tell_is_answered_with_the_number_of_rows_that_would() -> None:
    few = of_candidate(night(0.61, 0.60), predictions=labels(night().test, 0.61, first_error=0.5))
    assert decide(few, POLICY).verdict == "underpowered"
    assert step_after(few).startswith("nightgate gate power reviews ")
