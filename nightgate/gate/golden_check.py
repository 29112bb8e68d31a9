"""The golden check: compares candidate and champion on frozen rows, to see what the candidate has forgotten."""

from __future__ import annotations

from dataclasses import replace
from itertools import compress

from nightgate.gate.decision import Check, Outcome
from nightgate.gate.evidence import Mask, Rows
from nightgate.gate.measurements import DECIDING, Case, unusable
from nightgate.gate.wording import between, distinct, listed, signed
from nightgate.metrics.bootstrap import f1_difference
from nightgate.metrics.confusion import confusion_counts, overall_scores

FLIPS_NAMED = 5
"""Rows named when the check passes; a loss beyond the margin names all of them."""


def golden(case: Case) -> Check:
    """Whether the candidate lost more than `golden_margin` against the champion: warns, or fails if `golden` blocks."""
    evidence, policy = case.evidence, case.policy
    candidate, champion, rows = evidence.candidate, evidence.champion, evidence.golden
    weak: Outcome = "failed" if policy.blocks("golden") else "warning"
    if champion is None:
        return Check("golden", "not_run", "no champion yet")
    if rows is None or not len(rows):
        note = evidence.golden_note or "there are no golden rows"
        return Check("golden", weak if policy.blocks("golden") or evidence.golden_note else "not_run", note)
    whole = Check("golden", "failed", "", threshold=-policy.golden_margin, rows_used=len(rows))
    for who, side in (("the candidate", candidate), (case.name("champion"), champion)):
        if flaw := side.flaw or unusable(side.golden, rows, case.num_labels, "golden"):
            reason = f"{who} {flaw}, so the golden rows are not compared"
            return replace(whole, outcome="failed" if side is candidate else weak, reason=reason)
    true, theirs, ours = (case.places[labels] for labels in (rows.true, champion.golden, candidate.golden))
    gap = f1_difference(
        true,
        theirs,
        ours,
        case.num_labels,
        policy.average,
        groups=rows.groups,
        confidence=policy.confidence,
        resamples=DECIDING,
    )
    f1 = [
        overall_scores(confusion_counts(true, labels, case.num_labels)).f1(policy.average) for labels in (ours, theirs)
    ]
    assert f1[0] is not None
    assert f1[1] is not None
    passed = gap.value >= -policy.golden_margin
    scores = distinct(f1[0], f1[1])
    lost = (theirs == true) & (ours != true)
    loss = (
        f"F1 {scores[0]} against {scores[1]} of {case.name('champion')} on the same {len(rows):,} golden rows "
        f"({signed(gap.value)}; {between(gap.interval, policy.confidence)}): {'no' if passed else 'a'} loss of more "
        f"than golden_margin {policy.golden_margin:.4f}"
    )
    brief = f"{loss}; {_flips(rows, lost, FLIPS_NAMED)}"
    low, high = gap.interval or (None, None)
    return replace(
        whole,
        outcome="passed" if passed else weak,
        reason=brief if passed else f"{loss}; {_flips(rows, lost, len(rows))}",
        brief=brief,
        candidate_value=f1[0],
        champion_value=f1[1],
        ci_low=low,
        ci_high=high,
    )


def _flips(rows: Rows, lost: Mask, most: int) -> str:
    names = sorted(name[:8] for name in compress(rows.fingerprints, lost.tolist()))
    if not names:
        return "no row went from right to wrong"
    went = "1 row went" if len(names) == 1 else f"{len(names):,} rows went"
    return f"{went} from right to wrong: {listed(names, most)}"
