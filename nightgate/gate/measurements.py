"""Measurements shared by all checks: the rows of the window, F1 of each model on them, and paired differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, reduce
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nightgate.config.gate import Gate
from nightgate.gate.decision import Score
from nightgate.gate.evidence import Evidence, Labels, Mask, Rows, Side
from nightgate.gate.statistics import detectable_gain, unseen_gain
from nightgate.gate.test_window import test_window
from nightgate.metrics.bootstrap import Estimate, Statistic, f1_difference, f1_estimate

Role = Literal["candidate", "champion", "anchor"]
Other = Literal["champion", "anchor"]

REPORTED = 2_000
"""Resamples of an interval that is only reported."""
DECIDING = 10_000
"""Resamples of an interval that a check depends on."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """The candidate and another model on the window, rows (or groups) paired."""

    ours: float
    theirs: float
    gap: Estimate
    detectable: float
    """The true gain that is detected with 80 % power; infinite if there is no standard error."""

    @property
    def most(self) -> float:
        """The largest gain that is not excluded; infinite if there is no interval.

        An interval of no width, such as that of models that never differ, says nothing about rows that were not seen.
        """
        if self.gap.interval is None:
            return math.inf
        return self.gap.interval.high if self.gap.std_error else self.gap.value + self.detectable


@dataclass(frozen=True, eq=False)
class Case:
    """Evidence and policy, with the measurements that both determine."""

    evidence: Evidence
    policy: Gate

    # --- rows ---

    @cached_property
    def roles(self) -> tuple[Role, ...]:
        """Roles that have a model of their own: an anchor that is the champion is left out."""
        others: tuple[Other, ...] = ("champion",) if self.evidence.anchored_by_champion else ("champion", "anchor")
        return ("candidate", *(role for role in others if self.side(role)))

    @cached_property
    def clean(self) -> Mask:
        """Test rows that no model is known to have been trained on."""
        known = [side.trained_on for role in self.roles if (side := self.side(role)) and side.trained_on is not None]
        return ~reduce(np.logical_or, known, np.zeros(len(self.evidence.test), dtype=np.bool_))

    @cached_property
    def window_and_start(self) -> tuple[Mask, datetime | None]:
        policy, test = self.policy, self.evidence.test
        return test_window(test.seen_at, self.evidence.data_until, policy.test_window, policy.min_test_rows, self.clean)

    @property
    def window(self) -> Mask:
        return self.window_and_start[0]

    @cached_property
    def num_rows(self) -> int:
        """Rows in the window."""
        return int(np.count_nonzero(self.window))

    # --- sides ---

    @property
    def num_labels(self) -> int:
        return len(self.evidence.label_names)

    @cached_property
    def places(self) -> Labels:
        """Rank of each class's name, so that the bootstrap's draws do not depend on the pipeline's order of classes."""
        names = self.evidence.label_names
        return np.array([sorted(names).index(name) for name in names], dtype=np.int64)

    def side(self, role: Role) -> Side | None:
        side: Side | None = getattr(self.evidence, role)
        return side

    def name(self, role: Role) -> str:
        """Such as `the champion (version 3)`."""
        side = self.side(role)
        return f"the {role}" if side is None or side.version is None else f"the {role} (version {side.version})"

    def obstacle(self, *roles: Role) -> str:
        """Why these models cannot be scored on the window, as a clause; '' if they can."""
        for role in roles:
            side = self.side(role)
            assert side is not None, role
            if flaw := side.flaw or unusable(side.predictions, self.evidence.test, self.num_labels):
                return f"{self.name(role)} {flaw}"
        return "" if self.num_rows else "there are no test rows left that no model was trained on"

    def true(self, mask: Mask) -> Labels:
        return self.places[self.evidence.test.true[mask]]

    def labels(self, role: Role, mask: Mask) -> Labels:
        """Predictions of a model without an obstacle on these rows."""
        side = self.side(role)
        assert side is not None, role
        assert side.predictions is not None, role
        return self.places[side.predictions[mask]]

    def groups(self, mask: Mask) -> Labels | None:
        groups = self.evidence.test.groups
        return None if groups is None else groups[mask]

    def num_units(self, mask: Mask) -> int:
        """Number of independent units: groups if rows come in groups, else rows."""
        groups = self.groups(mask)
        return int(np.count_nonzero(mask)) if groups is None else len(np.unique(groups))

    # --- F1 ---

    def estimate(self, role: Role, mask: Mask, statistic: Statistic, resamples: int) -> Estimate:
        """F1 of a model; the statistic of a class is its rank in `places`."""
        return f1_estimate(
            self.true(mask),
            self.labels(role, mask),
            self.num_labels,
            statistic,
            groups=self.groups(mask),
            confidence=self.policy.confidence,
            resamples=resamples,
        )

    def difference(self, role: Other, mask: Mask, statistic: Statistic, resamples: int) -> Estimate:
        """The candidate's F1 minus that of another model, rows (or groups) paired."""
        return f1_difference(
            self.true(mask),
            self.labels(role, mask),
            self.labels("candidate", mask),
            self.num_labels,
            statistic,
            groups=self.groups(mask),
            confidence=self.policy.confidence,
            resamples=resamples,
        )

    def score(self, role: Role, mask: Mask, resamples: int = REPORTED) -> Score:
        rows = int(np.count_nonzero(mask))
        if not rows or self.obstacle(role):
            return Score(rows, None)
        found = self.estimate(role, mask, self.policy.average, resamples)
        return Score(rows, found.value, found.interval)

    @cached_property
    def scores(self) -> dict[Role, Score]:
        """F1 of each model on the window."""
        decides = "candidate" if self.policy.min_f1_on == "lower" else None
        found = {role: self.score(role, self.window, DECIDING if role == decides else REPORTED) for role in self.roles}
        return found | ({"anchor": found["champion"]} if self.evidence.anchored_by_champion else {})

    @cached_property
    def commonest(self) -> int:
        """Rank in `places` of the class with the most rows in the window, which has at least one row."""
        return int(np.bincount(self.true(self.window)).argmax())

    @cached_property
    def min_f1(self) -> float | None:
        """The F1 that the policy asks for; for 'majority' that of always predicting the commonest class of the window.

        None for 'majority' where the window is empty. Of two classes that are equally common both give the same F1.
        """
        if self.policy.min_f1 != "majority":
            return self.policy.min_f1
        if not self.num_rows:
            return None
        true = self.true(self.window)
        # By the function that scores the candidate: one that always predicts this class ties to the last digit.
        constant = f1_estimate(
            true, np.full_like(true, self.commonest), self.num_labels, self.policy.average, resamples=2
        )
        return constant.value

    def against(self, role: Other) -> Comparison | None:
        """The candidate compared with that model on the window; None if one of them is missing or cannot be scored."""
        return self._comparisons[role]

    @cached_property
    def _comparisons(self) -> dict[Other, Comparison | None]:
        champion = self._compare("champion")
        anchor = champion if self.evidence.anchored_by_champion else self._compare("anchor")
        return {"champion": champion, "anchor": anchor}

    def _compare(self, role: Other) -> Comparison | None:
        if self.side(role) is None or self.obstacle("candidate", role):
            return None
        gap = self.difference(role, self.window, self.policy.average, DECIDING)
        ours, theirs = self.scores["candidate"].f1, self.scores[role].f1
        assert ours is not None
        assert theirs is not None
        error = math.inf if gap.std_error is None else gap.std_error
        confidence = self.policy.confidence
        # The bootstrap of models that never differ has an error of 0.
        gain = detectable_gain(error, confidence) if error else unseen_gain(self.num_units(self.window), confidence)
        return Comparison(ours, theirs, gap, gain)

    # --- policy ---

    @cached_property
    def margin(self) -> float | None:
        """In F1; None if it is in units of a spread that was not measured, or not by the policy's average."""
        if self.policy.margin_unit == "f1":
            return self.policy.margin
        if self.evidence.seed_average not in {None, self.policy.average}:
            return None
        spread = self.evidence.seed_spread
        return None if spread is None or not math.isfinite(spread) or spread < 0 else self.policy.margin * spread


MARGIN_UNKNOWN = (
    "the margin is in units of the spread between seeds (margin_unit 'seed_spread'), and there was no seed study of "
    "this configuration: run `nightgate seeds PIPELINE` first, with the same --set as the night"
)


def unusable(predictions: NDArray[np.generic] | None, rows: Rows, num_labels: int, kind: str = "test") -> str:
    """Why predictions cannot be used for these rows, as a clause behind the model's name; '' if they can."""
    if predictions is None:
        return f"has no predictions on the {kind} rows"
    if predictions.shape != (len(rows),):
        return f"has {len(predictions):,} predictions for {len(rows):,} {kind} rows"
    if not np.issubdtype(predictions.dtype, np.integer):
        return f"has predictions on the {kind} rows that are not class indices ({predictions.dtype})"
    if len(rows) and not 0 <= int(predictions.min()) <= int(predictions.max()) < num_labels:
        return f"has predictions on the {kind} rows outside the {num_labels} classes"
    return ""
