"""Statistical rules of the gate on plain numbers: superiority, non-inferiority, power, Holm and McNemar.

The nightly decision and the simulated years of `benchmarks.gate` use the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from nightgate.config.gate import Gate
from nightgate.metrics.bootstrap import Interval

Rule = Literal["superior", "refresh", "non_inferior", "threshold_only"]
"""Rule by which a candidate beats the champion."""


def is_superior(interval: Interval) -> bool:
    """Whether an interval of the candidate's F1 minus another's lies above 0; False for NaN."""
    return interval.low > 0


def is_non_inferior(interval: Interval, margin: float) -> bool:
    """Whether an interval of the candidate's F1 minus another's excludes a loss of `margin` or more; False for NaN."""
    return interval.low > -margin


def beats(
    gap: float, interval: Interval | None, gate: Gate, *, margin: float, champion_nights: int | None
) -> Rule | None:
    """The rule by which a candidate beats the champion under the policy, or None if it does not.

    Args:
        gap: candidate's F1 minus the champion's.
        interval: of the gap; without one, or with a gap that is not finite, only threshold_only passes.
        margin: in F1, derived from `gate.margin` and its unit.
        champion_nights: nights since the champion's own; None (unknown) counts as young.
    """
    if gate.policy == "threshold_only":
        return "threshold_only"
    if interval is None or not math.isfinite(gap):
        return None
    if gate.policy == "non_inferior":
        return "non_inferior" if is_non_inferior(interval, margin) else None
    if is_superior(interval):
        return "superior"
    may_refresh = is_old(gate, champion_nights) and gap >= 0
    return "refresh" if may_refresh and refresh_low(gap, interval, gate.confidence) > -margin else None


def is_old(gate: Gate, champion_nights: int | None) -> bool:
    """Whether a champion of so many nights may be replaced by a candidate that is not superior."""
    return champion_nights is not None and 0 < gate.refresh_after <= champion_nights


def refresh_confidence(confidence: float) -> float:
    """Confidence of the non-inferiority that a refresh needs: half the error, because it is tried every night.

    With the whole error 10.6 % of promotions among equally good candidates lost over half a point, with half of it
    8.8 % (2,500 and 1,000 simulated years, `benchmarks.gate`).
    """
    return (1 + confidence) / 2


def refresh_low(gap: float, interval: Interval, confidence: float) -> float:
    """The lower end of the gap's interval at `refresh_confidence`, stretched from `confidence` by normal quantiles."""
    quantile = NormalDist().inv_cdf
    stretch = quantile((1 + refresh_confidence(confidence)) / 2) / quantile((1 + confidence) / 2)
    return gap - (gap - interval.low) * stretch


def detectable_gain(std_error: float, confidence: float, power: float = 0.8) -> float:
    """The true gain that is found superior with probability `power`, for a difference with this standard error.

    (z of (1 + confidence) / 2 plus z of power) times the standard error: the sample size formula of a two-sided test
    (Chow, Shao and Wang 2008, section 3.1) solved for the difference.
    """
    normal = NormalDist()
    return (normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(power)) * std_error


def unseen_gain(num_units: int, confidence: float) -> float:
    """Upper bound of the share of rows on which two models differ that agree on all of `num_units` rows or groups.

    1 - (1 - confidence)^(1 / units), about 3 / units at 95 %: the rule of three (Hanley and Lippman-Hand 1983).
    """
    return 1.0 - math.pow(1.0 - confidence, 1.0 / num_units)


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Which of m hypotheses are rejected at the family-wise error rate `level` (Holm 1979).

    The smallest p-value is compared with level / m, the next with level / (m - 1), and so on until one is above its
    limit. NaN is never rejected.
    """
    rejected = [False] * len(p_values)
    # NumPy sorts NaN last.
    for rank, at in enumerate(np.argsort(p_values, kind="stable")):
        if not p_values[at] <= level / (len(p_values) - rank):
            break
        rejected[at] = True
    return rejected


def mcnemar(
    true: NDArray[np.int64], reference: NDArray[np.int64], candidate: NDArray[np.int64]
) -> tuple[int, int, float]:
    """Rows right with the reference only, with the candidate only, and McNemar's exact two-sided p-value."""
    first, second = reference == true, candidate == true
    losses, gains = int(np.count_nonzero(first & ~second)), int(np.count_nonzero(second & ~first))
    discordant = losses + gains
    return losses, gains, min(1.0, 2 * float(bdtr(min(losses, gains), discordant, 0.5)))
