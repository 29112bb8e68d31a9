"""Checks of how good the candidate is: by itself, against the champion, against the anchor."""

from __future__ import annotations

import math
from dataclasses import replace

from nightgate.gate import statistics
from nightgate.gate.decision import Check, Outcome
from nightgate.gate.measurements import MARGIN_UNKNOWN, Case, Comparison, Other
from nightgate.gate.wording import between, instant, named, percent, points, signed, stored, told_apart, within
from nightgate.metrics.bootstrap import FEWEST


def min_f1(case: Case) -> Check:
    """Whether F1, or its interval's lower end, reaches the policy's threshold."""
    score, minimum, on_lower = case.scores["candidate"], case.policy.min_f1, case.policy.min_f1_on == "lower"
    low, high = score.interval or (None, None)
    decisive = low if on_lower else score.f1
    if decisive is None:
        few = f"fewer than {FEWEST} test rows (or groups) give the candidate's F1 no interval"
        why = case.obstacle("candidate") or few
        passed, reason = False, f"{why}, so nothing shows that min_f1 {minimum:.4f} is reached"
    else:
        assert score.f1 is not None
        passed = decisive >= minimum
        told, bound = told_apart(decisive, minimum)
        relation = "is below" if not passed else "equals" if decisive == minimum else "reaches"
        if on_lower:
            told = f"{told}, the lower end of the {percent(case.policy.confidence)} interval of F1 {score.f1:.4f}"
        else:
            told = f"F1 {told}{within(score.interval, case.policy.confidence)}"
        reason = f"{told} on {score.rows:,} test rows {relation} min_f1 {bound}"
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
        return _not_run(case, "beats_champion", "no champion yet"), None
    compared, policy, who = case.against("champion"), case.policy, case.name("champion")
    if compared is None:
        why = case.obstacle("candidate", "champion")
        if policy.policy == "threshold_only" and not case.obstacle("candidate"):
            reason = f"{why}, and policy threshold_only asks for no comparison"
            return _check(case, "champion", "beats_champion", "passed", reason, None), "threshold_only"
        reason = f"{why}, so nothing shows that the candidate beats {who}"
        return _check(case, "champion", "beats_champion", "failed", reason, None), None
    rule, reason = _rule(case, compared)
    outcome: Outcome = "passed" if rule else _shortfall(case, compared)
    gap, interval = _gap(case, compared, "champion")
    told = [gap, interval, reason, _mcnemar(case), _power(compared)]
    check = _check(case, "champion", "beats_champion", outcome, "; ".join(told), _bound(case, rule))
    return replace(check, brief="; ".join([gap, reason, _power(compared)])), rule


def anchor(case: Case) -> Check:
    """Whether the candidate is non-inferior to the best that ever reigned, so that small losses never add up."""
    if case.evidence.anchor is None:
        return _not_run(case, "anchor", "no anchor yet")
    compared, who, margin = case.against("anchor"), case.name("anchor"), case.margin
    # Who asks for a threshold alone is told, and not held.
    weak: Outcome = "warning" if case.policy.policy == "threshold_only" else "failed"
    if compared is None:
        reason = f"{case.obstacle('candidate', 'anchor')}, so nothing shows that the candidate is not below {who}"
        return _check(case, "anchor", "anchor", "failed" if case.obstacle("candidate") else weak, reason, None)
    told = "; ".join(_gap(case, compared, "anchor"))
    if margin is None:
        return _check(case, "anchor", "anchor", weak, f"{told}; {MARGIN_UNKNOWN}", None)
    interval = compared.gap.interval
    passed = interval is not None and statistics.is_non_inferior(interval, margin)
    outcome: Outcome = "passed"
    if not passed:
        outcome = weak if weak == "warning" else _shortfall(case, compared)
    shown = "not worse by" if passed else "not shown to be no worse by"
    reason = f"{told}; {shown} {margin:.4f} (margin) or more; {_power(compared)}"
    return _check(case, "anchor", "anchor", outcome, reason, -margin)


def moves_anchor(case: Case) -> bool:
    """Whether the candidate, promoted, becomes the anchor: it is significantly better, or there is none."""
    if case.evidence.anchor is None:
        return True
    compared = case.against("anchor")
    return bool(compared and compared.gap.interval and statistics.is_superior(compared.gap.interval))


def not_older(case: Case) -> Check:
    """Whether the candidate saw data at least up to when the champion did."""
    champion = case.evidence.champion
    if champion is None:
        return Check(name="not_older", outcome="not_run", reason="no champion yet", metric="data_until")
    who = named("champion", champion)
    ours, theirs = case.evidence.candidate.data_until, champion.data_until
    passed = False
    if ours is None or theirs is None:
        unknown = "the candidate" if ours is None else who
        reason = f"it is not known up to when {unknown} saw data, so nothing shows that the candidate's is not older"
    elif ours < theirs:
        reason = f"the candidate saw data up to {instant(ours)}, older than {instant(theirs)} of {who}"
    else:
        passed = True
        than = f"as did {who}" if ours == theirs else f"newer than {instant(theirs)} of {who}"
        reason = f"the candidate saw data up to {instant(ours)}, {than}"
    return Check("not_older", "passed" if passed else "failed", reason, metric="data_until")


# --- what a comparison showed ---


def _rule(case: Case, compared: Comparison) -> tuple[statistics.Rule | None, str]:
    """The rule that the candidate beats the champion by, or None, and what was asked."""
    policy, nights = case.policy, case.evidence.champion_nights
    if policy.policy != "threshold_only" and case.margin is None:
        return None, MARGIN_UNKNOWN
    rule = statistics.beats(
        compared.gap.value, compared.gap.interval, policy, margin=case.margin or 0.0, champion_nights=nights
    )
    if policy.policy == "threshold_only":
        return rule, "policy threshold_only asks for no more"
    assert case.margin is not None
    sure = percent(policy.confidence)
    if policy.policy == "non_inferior":
        shown = "not worse by" if rule else "not shown to be no worse by"
        return rule, f"{shown} {case.margin:.4f} (margin) or more at {sure} confidence"
    if rule == "superior":
        return rule, f"superior at {sure} confidence"
    if rule == "refresh":
        at = f"at {percent(statistics.refresh_confidence(policy.confidence))} confidence"
        after = f"enough after {nights:,} nights (refresh_after)"
        return rule, f"not worse by {case.margin:.4f} (margin) or more {at}, {after}"
    short = f"not superior at {sure} confidence"
    if nights is not None and 0 < policy.refresh_after <= nights:
        short += f", nor after {nights:,} nights (refresh_after) {_not_refreshed(case, compared)}"
    return None, short


def _not_refreshed(case: Case, compared: Comparison) -> str:
    """What the refresh of an old champion asks for, and what was found."""
    sure = percent(statistics.refresh_confidence(case.policy.confidence))
    asked = f"one that is not below and not worse by {case.margin:.4f} at {sure} confidence"
    if compared.gap.value < 0 or compared.gap.interval is None:
        return asked
    low = statistics.refresh_low(compared.gap.value, compared.gap.interval, case.policy.confidence)
    return f"{asked} (the lower end of that interval is {signed(low)})"


def _bound(case: Case, rule: statistics.Rule | None) -> float | None:
    """What the lower end of the difference's interval has to be above."""
    if case.policy.policy == "threshold_only":
        return None
    if case.policy.policy == "non_inferior" or rule == "refresh":
        return None if case.margin is None else -case.margin
    return 0.0


def _shortfall(case: Case, compared: Comparison) -> Outcome:
    """Of a candidate that did not show enough: too few rows to see it, or not good enough."""
    could_not_see = case.margin is not None and compared.detectable > case.margin
    return "underpowered" if could_not_see and compared.gap.value >= 0 else "failed"


def _gap(case: Case, compared: Comparison, role: Other) -> tuple[str, str]:
    """How the candidate compares, and the interval of the difference."""
    who, rows = case.name(role), f"on the same {case.num_rows:,} test rows"
    interval = between(compared.gap.interval, case.policy.confidence)
    ours, theirs = told_apart(compared.ours, compared.theirs)
    if compared.gap.value == 0:
        return f"F1 {ours} ties with {who} {rows}", interval
    relation = "above" if compared.gap.value > 0 else "below"
    return f"F1 {ours} is {relation} {theirs} of {who} {rows} ({signed(compared.gap.value)})", interval


def _mcnemar(case: Case) -> str:
    true, window = case.true(case.window), case.window
    theirs, ours, p = statistics.mcnemar(true, case.labels("champion", window), case.labels("candidate", window))
    return f"{ours:,} rows are right with the candidate only and {theirs:,} with the champion only (McNemar p {p:.2g})"


def _power(compared: Comparison) -> str:
    if not math.isfinite(compared.detectable):
        return "no gain could be seen on so few rows"
    return (
        f"gains of {points(compared.detectable)} points or more would be seen with 80 % power; "
        f"tonight's was {points(compared.gap.value)}"
    )


def _not_run(case: Case, name: str, reason: str) -> Check:
    score = case.scores["candidate"]
    return Check(name, "not_run", reason, candidate_value=stored(score.f1), rows_used=score.rows)


def _check(case: Case, role: Other, name: str, outcome: Outcome, reason: str, bound: float | None) -> Check:
    """With the F1 of both and the interval of their difference, which `bound` is a bound of."""
    compared = case.against(role)
    low, high = (compared.gap.interval if compared else None) or (None, None)
    return Check(
        name=name,
        outcome=outcome,
        reason=reason,
        candidate_value=stored(case.scores["candidate"].f1),
        champion_value=stored(case.scores[role].f1),
        threshold=bound,
        ci_low=low,
        ci_high=high,
        rows_used=case.num_rows,
    )
