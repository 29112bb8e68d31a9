"""Power of the gate: the gain over the champion that is detected with 80 % power, by the number of test rows.

The standard error of a paired difference falls with the square root of the number of rows (or groups), so that of one
night predicts what more rows would detect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from nightgate.analysis.replay import NO_CONFIG, judged_runs, policy_of
from nightgate.config.gate import Gate
from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.gate.evidence import Evidence
from nightgate.gate.measurements import Case
from nightgate.gate.statistics import detectable_gain
from nightgate.gate.wording import points
from nightgate.runs.evidence_store import load_evidence

SIZES = (250, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)


@dataclass(frozen=True)
class Power:
    """Power of one night's test window under a policy."""

    night: date
    rows: int
    std_error: float
    """Of candidate's F1 minus the champion's, paired, on these rows."""
    gain: float
    """The night's difference in F1."""
    confidence: float
    margin: float | None
    """The policy's, in F1; None if it is in units of a spread that was not measured."""

    def error_with(self, rows: float) -> float:
        """The standard error of the difference on this many rows."""
        return self.std_error * math.sqrt(self.rows / rows)

    def detectable_with(self, rows: float) -> float:
        """The true gain that this many rows detect with 80 % power."""
        return detectable_gain(self.error_with(rows), self.confidence)

    def rows_for(self, gain: float) -> int:
        """Test rows that detect a true gain of this size with 80 % power."""
        return math.ceil(self.rows * (self.detectable_with(self.rows) / gain) ** 2)

    def describe(self) -> str:
        """The gain that the night's rows detect, and the rows that detect the margin."""
        gain = points(self.detectable_with(self.rows))
        text = f"night {self.night}: {self.rows:,} test rows detect a gain of {gain} points of F1 with 80 % power; "
        text += f"that night's was {points(self.gain)}"
        if self.margin:
            text += f"; a gain of {points(self.margin)} points (margin) takes {self.rows_for(self.margin):,} rows"
        return text

    def sizes(self) -> Sequence[int]:
        """Numbers of rows to report: round ones and the night's own."""
        return sorted({*SIZES, self.rows})


def newest_power(db: Database, pipeline: str, overrides: Mapping[str, Any] | None = None) -> Power:
    """Power of the newest night that compared candidate and champion, under its own policy with `overrides`.

    Raises:
        RegistryError: there is no such night.
        ConfigurationError: as `policy_of`.
    """
    policy_of(NO_CONFIG, overrides or {})  # Refuses wrong overrides even without nights.
    for run in reversed(judged_runs(db, pipeline)):
        policy = policy_of(run.config, overrides or {})
        found = power_of(run.night, load_evidence(db, run.run_id), policy)
        if found is not None:
            return found
    raise RegistryError(
        f"no night of {pipeline} has compared a candidate with a champion that differs from it, so the standard error "
        "of a difference is unknown",
        next_step=f"run two nights first: nightgate run {pipeline}",
    )


def power_of(night: date, evidence: Evidence, policy: Gate) -> Power | None:
    """Power of a night's evidence; None if candidate and champion were not compared or agree on every row."""
    case = Case(evidence, policy)
    compared = case.against("champion")
    if compared is None or not compared.gap.std_error:
        return None
    return Power(night, case.num_rows, compared.gap.std_error, compared.gap.value, policy.confidence, case.margin)
