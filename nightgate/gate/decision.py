"""Result types of the gate: checks with their numbers and reasons, the verdict, and what was measured."""

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
    """One row of `gate_checks`. `slice_name` and `slice_value` are '' for a check of the whole test window."""

    name: str
    outcome: Outcome
    reason: str
    """One sentence: what was compared, the numbers, the threshold, the rows."""
    metric: str = "f1"
    candidate_value: float | None = None
    champion_value: float | None = None
    """The compared model's value: the anchor's in the check `anchor`."""
    threshold: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    rows_used: int | None = None
    slice_name: str = ""
    slice_value: str = ""
    brief: str = ""
    """Shorter reason for the verdict; '' uses `reason`."""


@dataclass(frozen=True)
class Score:
    """F1 by the policy's average, with its interval."""

    rows: int
    f1: float | None
    """None if there are no rows, or no usable predictions."""
    interval: Interval | None = None


@dataclass(frozen=True)
class Measured:
    """Scores on the window, or on the rows of their name, without rows that a model was trained on."""

    window: NDArray[np.bool_]
    """Test rows in the window, shape [rows of the test split]."""
    window_start: datetime | None
    """Aware, time of the oldest row in the window; None: all rows are in it."""
    left_out: int
    """Test rows excluded because a model was trained on them."""
    candidate: Score
    candidate_all: Score
    champion: Score | None = None
    difference: Interval | None = None
    """Interval of the candidate's F1 minus the champion's, rows (or groups) paired."""
    detectable_gain: float | None = None
    """Gain over the champion that this window detects with 80 % power."""
    anchor: Score | None = None
    moves_anchor: bool = False
    """Whether the candidate, if promoted, becomes the anchor: it is superior to the anchor, or there is none yet."""
    min_f1: float | None = None
    """The F1 that the policy asked for, also where it is that of the commonest class."""


@dataclass(frozen=True)
class Decision:
    verdict: Verdict
    """`hold`: a check failed, which is evidence against the candidate. `underpowered`: none failed, but an interval is
    too wide to show what is asked or its opposite; the candidate is held too."""
    reason: str
    checks: tuple[Check, ...]
    measured: Measured

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.outcome == "failed")
