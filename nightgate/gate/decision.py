"""What the gate says: checks, each with its numbers and a sentence, a verdict, and what was measured on the way."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nightgate.metrics.bootstrap import Interval

Outcome = Literal["passed", "failed", "underpowered", "warning", "not_run"]
Verdict = Literal["promote", "hold", "underpowered"]


@dataclass(frozen=True)
class Check:
    """One row of `gate_checks`. `slice_name` and `slice_value` are '' where the whole test window is meant."""

    name: str
    outcome: Outcome
    reason: str
    """A sentence with the numbers in it."""
    metric: str = "f1"
    candidate_value: float | None = None
    champion_value: float | None = None
    """Of the side that it is compared with: the anchor's, in the check of that name."""
    threshold: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    rows_used: int | None = None
    slice_name: str = ""
    slice_value: str = ""
    brief: str = ""
    """What the verdict says of it; '' is all of `reason`."""


@dataclass(frozen=True)
class Score:
    """An F1 by the policy's average, with its interval."""

    rows: int
    f1: float | None
    """None where there are no rows."""
    interval: Interval | None = None


@dataclass(frozen=True)
class Measured:
    """What the evidence amounts to under a policy. Rows that a side was trained on count nowhere."""

    window: NDArray[np.bool_]
    """Test rows that decide, shape [rows of the test split]."""
    window_start: datetime | None
    """Aware, of the first row in the window; None: all rows are in it."""
    left_out: int
    """Test rows that a side was trained on."""
    candidate: Score
    """On the window, as are all but the next and the last."""
    candidate_all: Score
    """On all test rows."""
    champion: Score | None = None
    difference: Interval | None = None
    """Of candidate's F1 minus champion's, rows (or groups) paired."""
    detectable_gain: float | None = None
    """Gain over the champion that this window shows with 80 % power."""
    anchor: Score | None = None
    moves_anchor: bool = False
    """The candidate is significantly better than the anchor, or there is none yet: promoted, it becomes the anchor."""
    champion_fresh: Score | None = None
    """The champion on test rows that came after the data that it was trained on and chosen by."""


@dataclass(frozen=True)
class Decision:
    verdict: Verdict
    """`underpowered`: nothing speaks against the candidate but that too few rows speak for it. It is held."""
    reason: str
    checks: tuple[Check, ...]
    measured: Measured | None = None

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.outcome == "failed")
