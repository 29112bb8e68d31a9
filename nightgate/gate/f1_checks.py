"""Checks of the candidate's F1: on its own, against the champion, and against the anchor."""

from __future__ import annotations

import math
from dataclasses import replace

from nightgate.gate import statistics
from nightgate.gate.decision import Check, Outcome
from nightgate.gate.measurements import MARGIN_UNKNOWN, Case, Comparison, Other
from nightgate.gate.wording import between, distinct, instant, percent, points, signed, stored, within
from nightgate.metrics.bootstrap import FEWEST


def min_f1(case: Case) -> Check:
    """Whether the candidate's F1, or the lower end of its interval, reaches the policy's threshold."""
    score, minimum, on_lower = case.scores["candidate"], case.policy.min_f1, case.policy.min_f1_on == "lower"
    low, high = score.interval or (None, None)
    decisive = low if on_lower else score.f1
    if decisive is None:
        few = f"the candidate's F1 has no interval on fewer than {FEWEST} test rows (or groups)"
        passed = False
        reason = f"{case.obstacle('candidate') or few}, so min_f1 {minimum:.4f} is not shown to be reached"
    else:
        assert score.f1 is not None
        passed = decisive >= minimum
        value, bound = distinct(decisive, minimum)
        relation = "is below" if not passed else "equals" if decisive == minimum else "reaches"
        if on_lower:
            value = f"the lower end {value} of the {percent(case.policy.confidence)} interval of F1 {score.f1:.4f}"
        else:
            value = f"F1 {value}{within(score.interval, case.policy.confidence)}"
        reason = f"{value} on {score.rows:,} test rows {relation} min_f1 {bound}"
    return Check(
        name="min_f1",
        outcome="passed" if passed else "failed",
        reason=reason,
        candidate_value=stored(score.f1),
        threshold=minimum,
        ci_low=low,
        ci_high=high,
        rows_used=score.rows,
    )


def beats_champion(case: Case) -> tuple[Check, statistics.Rule | None]:
    """Whether the candidate may replace the champion under the policy, and by which rule."""
    if case.evidence.champion is None:
        return _check(case, "champion", "not_run", "no champion yet"), None
    compared, policy, who = case.against("champion"), case.policy, case.name("champion")
    if compared is None:
        why = case.obstacle("candidate", "champion")
        judged_alone = policy.policy == "threshold_only" and not case.evidence.champion.relabelled
        if judged_alone and not case.obstacle("candidate"):
            reason = f"{why}, and policy threshold_only needs no comparison"
            return _check(case, "champion", "passed", reason), "threshold_only"
        reason = f"{why}, so the candidate is not shown to beat {who}"
        return _check(case, "champion", "failed", reason), None
    rule, reason = _rule(case, compared)
    outcome: Outcome = "passed" if rule else _shortfall(case, compared)
    gap, interval = _gap(case, compared, "champion")
    true, *models = case.true(case.window), *(case.labels(role, case.window) for role in ("champion", "candidate"))
    losses, gains, p = statistics.mcnemar(true, *models)
    rows = f"{gains:,} rows are right with the candidate only and {losses:,} with the champion only"
    whole = "; ".join([gap, interval, reason, f"{rows} (McNemar p {p:.2g})", _power(compared)])
    check = _check(case, "champion", outcome, whole, _bound(case, rule))
    return replace(check, brief="; ".join([gap, reason, _power(compared)])), rule


def anchor(case: Case) -> Check:
    """Whether the candidate is non-inferior to the best champion so far, so that small losses do not add up."""
    if case.evidence.anchor is None:
        return _check(case, "anchor", "not_run", "no anchor yet")
    compared, who, margin = case.against("anchor"), case.name("anchor"), case.margin
    # Under threshold_only a comparison warns and never holds.
    weak: Outcome = "warning" if case.policy.policy == "threshold_only" else "failed"
    if compared is None:
        reason = f"{case.obstacle('candidate', 'anchor')}, so the candidate is not shown to be non-inferior to {who}"
        return _check(case, "anchor", "failed" if case.obstacle("candidate") else weak, reason)
    gap = "; ".join(_gap(case, compared, "anchor"))
    if margin is None:
        return _check(case, "anchor", weak, f"{gap}; {MARGIN_UNKNOWN}")
    interval = compared.gap.interval
    passed = interval is not None and statistics.is_non_inferior(interval, margin)
    outcome: Outcome = "passed" if passed else weak if weak == "warning" else _shortfall(case, compared)
    reason = f"{gap}; {_loss(margin, case.policy.confidence, excluded=passed)}; {_power(compared)}"
    return _check(case, "anchor", outcome, reason, -margin)


def moves_anchor(case: Case) -> bool:
    """Whether the candidate, if promoted, becomes the anchor: it is superior to the anchor, or there is none."""
    if case.evidence.anchor is None:
        return True
    compared = case.against("anchor")
    return bool(compared and compared.gap.interval and statistics.is_superior(compared.gap.interval))


def not_older(case: Case) -> Check:
    """Whether the candidate's data reaches at least as far as the champion's."""
    champion = case.evidence.champion
    if champion is None:
        return Check("not_older", "not_run", "no champion yet", metric="data_until")
    who = case.name("champion")
    ours, theirs = case.evidence.candidate.data_until, champion.data_until
    if ours is None or theirs is None:
        passed, unknown = False, "the candidate" if ours is None else who
        reason = f"the end of the data of {unknown} is unknown, so the candidate's data is not shown to be no older"
    else:
        passed = ours >= theirs
        relation = "before" if not passed else "the same as" if ours == theirs else "after"
        reason = f"the candidate's data ends at {instant(ours)}, {relation} {instant(theirs)} of {who}"
    return Check("not_older", "passed" if passed else "failed", reason, metric="data_until")


# --- reasons of a comparison ---


def _rule(case: Case, compared: Comparison) -> tuple[statistics.Rule | None, str]:
    """The rule by which the candidate beats the champion, or None, and the reason."""
    policy, nights = case.policy, case.evidence.champion_nights
    if policy.policy != "threshold_only" and case.margin is None:
        return None, MARGIN_UNKNOWN
    rule = statistics.beats(
        compared.gap.value, compared.gap.interval, policy, margin=case.margin or 0.0, champion_nights=nights
    )
    if policy.policy == "threshold_only":
        return rule, "policy threshold_only needs no more"
    assert case.margin is not None
    at = f"at {percent(policy.confidence)} confidence"
    if policy.policy == "non_inferior":
        return rule, _loss(case.margin, policy.confidence, excluded=rule is not None)
    if rule == "superior":
        return rule, f"superior {at}"
    sure = statistics.refresh_confidence(policy.confidence)
    if rule == "refresh":
        enough = f"enough to replace a champion after {nights:,} nights (refresh_after {policy.refresh_after:,})"
        return rule, f"{_loss(case.margin, sure, excluded=True)}, {enough}"
    short = f"not superior {at}"
    if nights is None or not 0 < policy.refresh_after <= nights:
        return None, short
    short += f", nor good enough to replace a champion after {nights:,} nights (refresh_after {policy.refresh_after:,})"
    if compared.gap.interval is None:
        return None, short
    if compared.gap.value < 0:
        return None, f"{short}: its F1 is below"
    low = statistics.refresh_low(compared.gap.value, compared.gap.interval, policy.confidence)
    return None, f"{short}: {_loss(case.margin, sure, excluded=False)} (lower end {signed(low)})"


def _loss(margin: float, confidence: float, *, excluded: bool) -> str:
    """Whether the interval excludes a loss of the margin: non-inferiority, in words."""
    shown = "is excluded" if excluded else "is not excluded"
    return f"a loss of {margin:.4f} (margin) or more {shown} at {percent(confidence)} confidence"


def _bound(case: Case, rule: statistics.Rule | None) -> float | None:
    """Threshold that the lower end of the difference's interval has to exceed."""
    if case.policy.policy == "threshold_only":
        return None
    if case.policy.policy == "non_inferior" or rule == "refresh":
        return None if case.margin is None else -case.margin
    return 0.0


def _shortfall(case: Case, compared: Comparison) -> Outcome:
    """Outcome for a candidate that is not shown to be good enough: too few rows to detect the margin, or a failure."""
    too_few = case.margin is not None and compared.detectable > case.margin
    return "underpowered" if too_few and compared.gap.value >= 0 else "failed"


def _gap(case: Case, compared: Comparison, role: Other) -> tuple[str, str]:
    """The scores of both with their difference, and its interval."""
    who, rows = case.name(role), f"on the same {case.num_rows:,} test rows"
    interval = between(compared.gap.interval, case.policy.confidence)
    ours, theirs = distinct(compared.ours, compared.theirs)
    if compared.gap.value == 0:
        return f"F1 {ours} ties with {who} {rows}", interval
    relation = "above" if compared.gap.value > 0 else "below"
    return f"F1 {ours} is {relation} {theirs} of {who} {rows} ({signed(compared.gap.value)})", interval


def _power(compared: Comparison) -> str:
    if not math.isfinite(compared.detectable):
        return "there are too few rows to detect any gain"
    return (
        f"gains of {points(compared.detectable)} points or more would be seen with 80 % power; "
        f"tonight's was {points(compared.gap.value)}"
    )


def _check(case: Case, role: Other, outcome: Outcome, reason: str, bound: float | None = None) -> Check:
    """A check with the F1 of both models, the interval of their difference, and its threshold `bound`."""
    compared, theirs = case.against(role), case.scores.get(role)
    low, high = (compared.gap.interval if compared else None) or (None, None)
    return Check(
        name="beats_champion" if role == "champion" else "anchor",
        outcome=outcome,
        reason=reason,
        candidate_value=stored(case.scores["candidate"].f1),
        champion_value=stored(theirs.f1) if theirs else None,
        threshold=bound,
        ci_low=low,
        ci_high=high,
        rows_used=case.num_rows,
    )
