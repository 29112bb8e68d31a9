"""The decision of the gate: runs every check on the evidence, and derives the verdict and its reason from them.

All checks run, even after one has failed. Missing evidence never passes: missing predictions, unknown training rows or
a number that is not finite fail the check that needs them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from nightgate.config.gate import Gate
from nightgate.gate.decision import Check, Decision, Measured
from nightgate.gate.evidence import Evidence
from nightgate.gate.f1_checks import anchor, beats_champion, min_f1, moves_anchor, not_older
from nightgate.gate.golden_check import golden
from nightgate.gate.measurements import Case
from nightgate.gate.sanity_checks import clean_test, degenerate, serving
from nightgate.gate.slice_checks import slices
from nightgate.gate.statistics import Rule
from nightgate.gate.wording import signed, stored


def decide(evidence: Evidence, policy: Gate) -> Decision:
    """Promote the candidate when no check fails and there are enough rows to show that it beats the champion.

    Deterministic to the last digit, and independent of the order of rows and classes.
    """
    case = Case(evidence, policy)
    beats, rule = beats_champion(case)
    checks = (
        clean_test(case),
        min_f1(case),
        beats,
        anchor(case),
        golden(case),
        *slices(case),
        degenerate(case),
        serving(case),
        not_older(case),
    )
    measured = _measured(case)
    if not (held := holding(checks)):
        return Decision("promote", _promoted(case, rule), checks, measured)
    if failed := [check for check in held if check.outcome == "failed"]:
        return Decision("hold", _joined(failed), checks, measured)
    return Decision("underpowered", _joined(held), checks, measured)


def holding(checks: Iterable[Check]) -> list[Check]:
    """The checks that hold a candidate. `slices` sums up those of single slices, and holds none for lack of rows."""
    whole = [check for check in checks if not check.slice_name]
    return [one for one in whole if one.outcome == "failed" or (one.outcome == "underpowered" and one.name != "slices")]


def _joined(checks: list[Check]) -> str:
    return "; ".join(dict.fromkeys(check.brief or check.reason for check in checks))


def _promoted(case: Case, rule: Rule | None) -> str:
    ours = case.scores["candidate"]
    score = f"F1 {ours.f1:.4f} on {ours.rows:,} test rows"
    if case.evidence.champion is None:
        return f"{score}; the first champion"
    how = {
        "superior": "superior",
        "refresh": f"refresh after {case.evidence.champion_nights} nights",
        "non_inferior": "non-inferior",
        "threshold_only": "policy threshold_only",
    }[rule or "threshold_only"]
    compared = case.against("champion")
    if compared is None:
        return f"{score}, not compared with {case.name('champion')}: {how}"
    gap = compared.gap.value
    against = f"{signed(gap)} against" if gap else "a tie with"
    return f"{score}, {against} {case.name('champion')}: {how}"


def _measured(case: Case) -> Measured:
    window, start = case.window_and_start
    compared = case.against("champion")
    return Measured(
        window=window,
        window_start=start,
        left_out=int(np.count_nonzero(~case.clean)),
        candidate=case.scores["candidate"],
        candidate_all=case.scores["candidate"] if start is None else case.score("candidate", case.clean),
        champion=case.scores.get("champion"),
        difference=compared.gap.interval if compared else None,
        detectable_gain=stored(compared.detectable) if compared else None,
        anchor=case.scores.get("anchor"),
        moves_anchor=moves_anchor(case),
        min_f1=case.min_f1,
    )
