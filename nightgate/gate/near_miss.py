"""The field of `[gate]` with whose other value a held candidate would have been promoted.

    near_miss(evidence, policy, decision)    # Setting("min_f1", 0.521, "0.55")

The value follows from the checks' numbers and is confirmed by deciding again. Decisions that miss by several fields
have none, and neither has a candidate that cannot be scored or served.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from nightgate.config.gate import LIMITS, Blockable, Gate
from nightgate.gate import statistics
from nightgate.gate.decide import decide, holding
from nightgate.gate.decision import Check, Decision
from nightgate.gate.evidence import Evidence
from nightgate.gate.measurements import Case
from nightgate.metrics.bootstrap import Interval

DIGITS = 4
"""Decimals of a value."""
SCALE = 10.0**DIGITS
Value = float | str


@dataclass(frozen=True)
class Setting:
    field: str
    value: Value
    now: str
    """The value that was used."""

    def __str__(self) -> str:
        return f"gate.{self.field}={_text(self.value)} would have let it pass ({self.field} was {self.now})"


def near_miss(evidence: Evidence, policy: Gate, decision: Decision) -> Setting | None:
    """The field with a value that promotes the candidate; None if no field does so alone."""
    case = Case(evidence, policy)
    asked = [dict(_settings(case, check, decision)) for check in holding(decision.checks)]
    if not asked or any(len(one) != 1 or one.keys() != asked[0].keys() for one in asked):
        return None
    [field] = asked[0]
    values = [one[field] for one in asked]
    # Several checks share only a margin, of which the widest passes them all.
    value = values[0] if isinstance(values[0], str) else max(values)
    try:
        other = Gate.model_validate(policy.model_dump() | {field: value})
    except ValidationError:
        return None
    if decide(evidence, other).verdict != "promote":
        return None
    return Setting(field, value, _now(case, field))


def _settings(case: Case, check: Check, decision: Decision) -> Iterator[tuple[str, Value]]:
    """Each field that the check missed, with a value that it would have met."""
    policy, candidate = case.policy, case.evidence.candidate
    gap = None
    if check.candidate_value is not None and check.champion_value is not None:
        gap = check.candidate_value - check.champion_value
    if check.name == "min_f1":
        reached = check.ci_low if policy.min_f1_on == "lower" else check.candidate_value
        if reached is not None:
            yield "min_f1", _below(reached)
    elif check.name in ("beats_champion", "anchor") and gap is not None and check.ci_low is not None:
        yield from _of_comparison(case, check, gap, check.ci_low)
    elif check.name == "golden" and gap is not None:
        yield "golden_margin", _above(-gap)
    elif check.name == "slices":
        for kind, value in (("slice_margin", _lost), ("slice_floor", _reached)):
            missed = [one for one in decision.checks if (one.name, one.outcome) == (kind, "failed")]
            if missed:
                yield kind, value(missed)
    elif check.name == "degenerate":
        yield from _beyond(policy, "shares", check.candidate_value)
        yield from _beyond(policy, "calibration", candidate.calibration_error)
    elif check.name == "serving" and case.evidence.champion is not None:
        ours, theirs = candidate.serving, case.evidence.champion.serving
        if ours is not None and theirs is not None:
            yield from _beyond(policy, "latency", _ratio(ours.latency_ms, theirs.latency_ms))
            yield from _beyond(policy, "size", _ratio(ours.size_bytes, theirs.size_bytes))


def _of_comparison(case: Case, check: Check, gap: float, low: float) -> Iterator[tuple[str, Value]]:
    """A wider margin, or where the policy has no use for one, policy non_inferior."""
    policy, margin = case.policy, case.margin
    if margin is None:
        return
    if check.name == "beats_champion" and policy.policy == "superior":
        if low > -margin:
            yield "policy", "non_inferior"
            return
        if gap < 0 or not statistics.is_old(policy, case.evidence.champion_nights):
            return
        assert check.ci_high is not None
        low = statistics.refresh_low(gap, Interval(low, check.ci_high), policy.confidence)
    unit = 1.0 if policy.margin_unit == "f1" else case.evidence.seed_spread
    if unit:
        yield "margin", _above(-low / unit)


def _beyond(policy: Gate, check: Blockable, value: float | None) -> Iterator[tuple[str, Value]]:
    if value is not None and math.isfinite(value) and value > policy.limit(check) and policy.blocks(check):
        yield LIMITS[check], _above(value)


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None


def _lost(missed: list[Check]) -> float:
    return _above(max((one.champion_value or 0.0) - (one.candidate_value or 0.0) for one in missed))


def _reached(missed: list[Check]) -> float:
    return _below(min(one.candidate_value or 0.0 for one in missed))


def _above(value: float) -> float:
    """The next number of `DIGITS` decimals above the value; one that has no decimals any more is its own."""
    scaled = value * SCALE
    return round((math.floor(scaled) + 1) / SCALE, DIGITS) if math.isfinite(scaled) else value


def _below(value: float) -> float:
    """The next number of `DIGITS` decimals that is not above the value; as `_above`."""
    scaled = value * SCALE
    return round(math.floor(scaled) / SCALE, DIGITS) if math.isfinite(scaled) else value


def _now(case: Case, field: str) -> str:
    if field == "min_f1" and case.policy.min_f1 == "majority":
        return f"'majority', {case.min_f1:.4f}"
    value = getattr(case.policy, field)
    if value is None:
        value = case.policy.limit(next(check for check, limit in LIMITS.items() if limit == field))
    return _text(value)


def _text(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:g}"
