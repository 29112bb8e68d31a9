"""Checks of the candidate's F1: on its own, against the champion, and against the anchor."""

from __future__ import annotations

import math
from dataclasses import replace

from nightgate.gate import statistics
from nightgate.gate.decision import Check, Outcome
from nightgate.gate.measurements import MARGIN_UNKNOWN, Case, Comparison, Other
from nightgate.gate.wording import between, distinct, instant, of_margin, percent, points, signed, stored, within
from nightgate.metrics.bootstrap import FEWEST


def min_f1(case: Case) -> Check:
    """Whether the candidate's F1, or the lower end of its interval, reaches the policy's threshold."""
    score, minimum, policy = case.scores["candidate"], case.min_f1, case.policy
    low, high = score.interval or (None, None)
    decisive = low if policy.min_f1_on == "lower" else score.f1
    if decisive is None or minimum is None:
        few = f"the candidate's F1 has no interval on fewer than {FEWEST} test rows (or groups)"
        asked = "min_f1" if minimum is None else f"min_f1 {minimum:.4f}"
        passed, reason = False, f"{case.obstacle('candidate') or few}, so {asked} is not shown to be reached"
    else:
        assert score.f1 is not None
        value, bound = distinct(decisive, minimum)
        if policy.min_f1 == "majority":
            passed = decisive > minimum
            name = sorted(case.evidence.label_names)[case.commonest]
            relation = f"is {'' if passed else 'not '}above min_f1 {bound} of always predicting {name!r}"
        else:
            passed = decisive >= minimum
            verb = "is below" if not passed else "equals" if decisive == minimum else "reaches"
            relation = f"{verb} min_f1 {bound}"
        if policy.min_f1_on == "lower":
            value = f"the lower end {value} of the {percent(policy.confidence)} interval of F1 {score.f1:.4f}"
        else:
            value = f"F1 {value}{within(score.interval, policy.confidence)}"
        reason = f"{value} on {score.rows:,} test rows {relation}"
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
    compared, who = case.against("champion"), case.name("champion")
    if compared is None:
        why = case.obstacle("candidate", "champion")
        alone = case.policy.policy == "threshold_only" and not case.evidence.champion.relabelled
        if alone and not case.obstacle("candidate"):
            reason = f"{why}, and policy threshold_only needs no comparison"
            return _check(case, "champion", "warning", reason), "threshold_only"
        reason = f"{why}, so the candidate is not shown to beat {who}"
        return _check(case, "champion", "failed", reason), None
    rule, outcome, reason = _judged(case, compared)
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
    if case.evidence.anchored_by_champion:
        # Whatever beats the champion by any rule is non-inferior to it.
        return Check("anchor", "not_run", "the champion is the anchor: see beats_champion")
    compared, who = case.against("anchor"), case.name("anchor")
    if compared is None:
        # Under threshold_only a comparison warns and never holds.
        weak: Outcome = "warning" if case.policy.policy == "threshold_only" else "failed"
        reason = f"{case.obstacle('candidate', 'anchor')}, so the candidate is not shown to be non-inferior to {who}"
        return _check(case, "anchor", "failed" if case.obstacle("candidate") else weak, reason)
    outcome, reason = _non_inferior(case, compared)
    reason = "; ".join([*_gap(case, compared, "anchor"), reason, _power(compared)])
    return _check(case, "anchor", outcome, reason, None if case.margin is None else -case.margin)


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


def _judged(case: Case, compared: Comparison) -> tuple[statistics.Rule | None, Outcome, str]:
    """The rule by which the candidate beats the champion, or None; the outcome of the check; the reason."""
    policy, nights, margin = case.policy, case.evidence.champion_nights, case.margin
    if policy.policy == "threshold_only":
        outcome, reason = _non_inferior(case, compared)
        return "threshold_only", outcome, f"{reason}; policy threshold_only needs no more"
    if margin is None:
        return None, "failed", MARGIN_UNKNOWN
    rule = statistics.beats(compared.gap.value, compared.gap.interval, policy, margin=margin, champion_nights=nights)
    if policy.policy == "non_inferior":
        return rule, *_non_inferior(case, compared)
    at = f"at {percent(policy.confidence)} confidence"
    if rule == "superior":
        return rule, "passed", f"superior {at}"
    sure = statistics.refresh_confidence(policy.confidence)
    old = statistics.is_old(policy, nights)
    after = f"to replace a champion after {nights:,} nights (refresh_after {policy.refresh_after:,})" if old else ""
    if rule == "refresh":
        return rule, "passed", f"{of_margin('loss', margin, 'excluded', sure)}, enough {after}"
    no_gain = compared.most < margin
    gain = of_margin("gain", margin, "excluded" if no_gain else "not excluded", policy.confidence)
    short = f"not superior: {gain}" if compared.most >= 0 else f"worse {at}"
    if old and compared.gap.interval is not None:
        low = statistics.refresh_low(compared.gap.value, compared.gap.interval, policy.confidence)
        loss = f"{of_margin('loss', margin, 'not excluded', sure)} (lower end {signed(low)})"
        short += f"; not good enough {after}: {'its F1 is below' if compared.gap.value < 0 else loss}"
    return None, "failed" if no_gain else "underpowered", short


def _non_inferior(case: Case, compared: Comparison) -> tuple[Outcome, str]:
    """Outcome and reason of the question whether a loss of the margin is excluded; under threshold_only it warns."""
    policy, margin, interval = case.policy, case.margin, compared.gap.interval
    alone = policy.policy == "threshold_only"
    if margin is None:
        return "warning" if alone else "failed", MARGIN_UNKNOWN
    if interval is not None and statistics.is_non_inferior(interval, margin):
        return "passed", of_margin("loss", margin, "excluded", policy.confidence)
    is_worse = compared.most < 0
    outcome: Outcome = "warning" if alone else "failed" if is_worse else "underpowered"
    loss = of_margin("loss", margin, "not excluded", policy.confidence)
    return outcome, f"worse, and {loss}" if is_worse else loss


def _bound(case: Case, rule: statistics.Rule | None) -> float | None:
    """Threshold that the lower end of the difference's interval has to exceed."""
    if case.policy.policy == "threshold_only":
        return None
    if case.policy.policy == "non_inferior" or rule == "refresh":
        return None if case.margin is None else -case.margin
    return 0.0


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
