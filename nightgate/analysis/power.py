"""What the test rows can see: the gain over the champion that shows with 80 % power, by the number of test rows.

A standard error of a difference on the same kind of rows goes with one over the square root of their number (of groups,
where rows come in groups), so one night's says what more rows would bring.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from nightgate import config
from nightgate.analysis.replay import NO_CONFIG, judged_runs, policy_of
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
    """Of one night's test window under a policy."""

    night: date
    rows: int
    std_error: float
    """Of candidate's F1 minus the champion's, paired, on these rows."""
    gain: float
    """Tonight's difference."""
    confidence: float
    margin: float | None
    """The policy's, in F1; None where it is in units of a spread that nobody measured."""

    def error_with(self, rows: float) -> float:
        """The standard error that so many rows would have."""
        return self.std_error * math.sqrt(self.rows / rows)

    def detectable_with(self, rows: float) -> float:
        """The true gain that so many rows would show with 80 % power."""
        return detectable_gain(self.error_with(rows), self.confidence)

    def rows_for(self, gain: float) -> int:
        """Test rows that show a true gain of this size with 80 % power."""
        return math.ceil(self.rows * (self.detectable_with(self.rows) / gain) ** 2)

    def told(self) -> str:
        """What the night's own rows see, and how many would see the margin."""
        seen = points(self.detectable_with(self.rows))
        text = f"night {self.night}: {self.rows:,} test rows show a gain of {seen} points of F1 with 80 % power; "
        text += f"that night's was {points(self.gain)}"
        if self.margin:
            text += f"; a gain of {points(self.margin)} points (margin) takes {self.rows_for(self.margin):,} rows"
        return text

    def sizes(self) -> Sequence[int]:
        """Numbers of rows worth telling: round ones, and tonight's."""
        return sorted({*SIZES, self.rows})


def newest_power(db: Database, pipeline: str, overrides: Mapping[str, Any] | None = None) -> Power:
    """Of the newest night whose candidate met a champion, under its own policy with `overrides` in it.

    Raises:
        RegistryError: there is no such night.
        ConfigurationError: as `policy_of`.
    """
    policy_of(NO_CONFIG, overrides or {})  # Also where there is no night to refuse it.
    for run in reversed(judged_runs(db, pipeline)):
        policy = policy_of(run.config, overrides or {})
        found = power_of(run.night, load_evidence(db, run.run_id), policy)
        if found is not None:
            return found
    raise RegistryError(
        f"no night of {pipeline} has compared a candidate with a champion that differs from it, so nothing is known of "
        "how far two models differ on these rows",
        next_step=f"run two nights first: nightgate run {pipeline}",
    )


def power_of(night: date, evidence: Evidence, policy: config.Gate) -> Power | None:
    """What the evidence says of it; None where there is no champion that the candidate can be compared with.

    Also None where the two agree on every row: nothing was seen of how far differences vary.
    """
    case = Case(evidence, policy)
    compared = case.against("champion")
    if compared is None or not compared.gap.std_error:
        return None
    return Power(night, case.num_rows, compared.gap.std_error, compared.gap.value, policy.confidence, case.margin)
