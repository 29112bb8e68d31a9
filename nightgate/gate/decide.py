"""The decision: every check, even after one has failed, each with a sentence; the verdict; what was measured.

A check passes only on evidence: predictions that are missing, rows that a model was trained on or may have been, a
number that is not finite fail the check that needed them.
"""

from __future__ import annotations

import numpy as np

from nightgate import config
from nightgate.gate.decision import Check, Decision, Measured, Score
from nightgate.gate.evidence import Evidence
from nightgate.gate.golden_check import golden
from nightgate.gate.measurements import Case
from nightgate.gate.performance_checks import anchor, beats_champion, min_f1, moves_anchor, not_older
from nightgate.gate.sanity_checks import clean_test, degenerate, serving
from nightgate.gate.slice_checks import slices
from nightgate.gate.statistics import Rule
from nightgate.gate.test_window import microseconds
from nightgate.gate.wording import signed, stored


def decide(evidence: Evidence, policy: config.Gate) -> Decision:
    """Promote the candidate when no check fails and there were rows enough to see that it beats the champion.

    The same evidence under the same policy gives the same decision, to the last digit, whatever the order of rows and
    classes.
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
    # A slice that fails is told by their summary.
    whole = [check for check in checks if not check.slice_name]
    failed = [check for check in whole if check.outcome == "failed"]
    if failed:
        return Decision("hold", _joined(case, failed), checks, measured)
    # The others that may say so hold nothing: a slice of few rows, or golden rows that only warn.
    unseen = [
        check for check in whole if check.outcome == "underpowered" and check.name in ("beats_champion", "anchor")
    ]
    if unseen:
        return Decision("underpowered", _joined(case, unseen), checks, measured)
    return Decision("promote", _promoted(case, rule), checks, measured)


def _joined(case: Case, checks: list[Check]) -> str:
    names = [check.name for check in checks]
    if case.evidence.anchored_by_champion and "beats_champion" in names:
        # The same two models on the same rows: once is enough for whoever reads it at night.
        checks = [check for check in checks if check.name != "anchor"]
    return "; ".join(dict.fromkeys(check.brief or check.reason for check in checks))


def _promoted(case: Case, rule: Rule | None) -> str:
    ours = case.scores["candidate"]
    told = f"F1 {ours.f1:.4f} on {ours.rows:,} test rows"
    if case.evidence.champion is None:
        return f"{told}; the first champion"
    how = {
        "superior": "superior",
        "refresh": f"refresh after {case.evidence.champion_nights} nights",
        "non_inferior": "non-inferior",
        "threshold_only": "policy threshold_only",
        None: "",
    }[rule]
    compared = case.against("champion")
    if compared is None:
        return f"{told}, not compared with {case.name('champion')}: {how}"
    gap = compared.gap.value
    against = f"{signed(gap)} against" if gap else "a tie with"
    return f"{told}, {against} {case.name('champion')}: {how}"


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
        champion_fresh=_fresh(case),
    )


def _fresh(case: Case) -> Score | None:
    """The champion on rows that came after what it was trained on and chosen by: the only number that nobody picked."""
    champion = case.evidence.champion
    if champion is None or champion.data_until is None:
        return None
    # A row without a time is dated by the night that saw it first, and that one may have chosen by it.
    chosen = max(champion.data_until, champion.chosen_at or champion.data_until)
    after = case.evidence.test.seen_at > microseconds(chosen)
    return case.score("champion", case.clean & after)
