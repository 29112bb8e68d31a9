"""The `[gate]` table of a pipeline file: what a candidate must show to be promoted."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nightgate.config.values import Duration, Section

Blockable = Literal["slices", "golden", "shares", "calibration", "latency", "size"]
"""Checks that warn, or hold a candidate where `Gate.blocks` them."""

WARNING_LIMITS: dict[Blockable, float] = {
    "slices": 0.05,
    "shares": 0.3,
    "calibration": 0.3,
    "latency": 2.0,
    "size": 1.5,
}
"""Limits where the field is not set."""

LIMITS: dict[Blockable, str] = {
    "slices": "slice_margin",
    "golden": "golden_margin",
    "shares": "max_share_gap",
    "calibration": "max_calibration_error",
    "latency": "max_latency_ratio",
    "size": "max_size_ratio",
}
"""The limit of each of them."""


class Gate(Section):
    """What a candidate must show to be promoted. A limit that is not set has a constant, beyond which it only warns."""

    average: Literal["weighted", "macro"] = "weighted"
    """What f1, precision and recall mean everywhere in this pipeline: averages over the classes that have true rows."""
    min_f1: Literal["majority"] | Annotated[float, Field(ge=0, le=1)] = "majority"
    """Lowest F1 on the test window with which a candidate may be promoted; 'majority': more than the F1 of always
    predicting the commonest class."""
    min_f1_on: Literal["estimate", "lower"] = "estimate"
    """What must reach `min_f1`: the F1 itself, or the lower end of its interval."""
    policy: Literal["superior", "non_inferior", "threshold_only"] = "superior"
    """How to compare with the champion. `superior`: better at `confidence`; `non_inferior`: not worse by more than
    `margin`; `threshold_only`: no comparison."""
    confidence: float = Field(default=0.95, ge=0.5, le=0.999)
    """Two-sided level of every interval. At 0.95, one in 40 candidates that are exactly as good counts as better.
    Beyond 0.999 the resamples are too few."""
    margin: float = Field(default=0.01, ge=0, le=10)
    """Smallest difference that matters, in units of `margin_unit`: how much worse a non-inferior candidate may be, and
    the gain that must be excluded before a candidate counts as not better."""
    margin_unit: Literal["f1", "seed_spread"] = "f1"
    """`f1`: 0.01 is one point. `seed_spread`: standard deviations between seeds, measured by `nightgate seeds`."""
    refresh_after: int = Field(default=30, ge=0, le=10_000)
    """Nights after which a candidate that is not below the champion and non-inferior, at half the error, may replace it
    too; 0: never."""
    test_window: Duration = "90d"
    """Only test rows that are no older than this decide, such as '90d'; '' for all."""
    min_test_rows: int = Field(default=2000, ge=1, le=10_000_000)
    """The window is extended backwards until it holds this many rows, if there are as many."""
    blocking: tuple[Blockable, ...] = ("slices",)
    """Checks that hold a candidate instead of only warning, besides those that always do. A check whose limit is set
    blocks too."""
    golden_margin: float = Field(default=0.05, ge=0, le=1)
    """How much F1 a candidate may lose against the champion on the golden rows."""
    golden_blocks: bool = False
    """The same as 'golden' in `blocking`."""
    slice_floor: float = Field(default=0.0, ge=0, le=1)
    """Lowest F1 of every class and slice; 0: none."""
    slice_margin: float | None = Field(default=None, ge=0, le=1)
    """How much F1 a class or slice may lose against the champion. Not set: 0.05."""
    min_slice_rows: int = Field(default=50, ge=2, le=1_000_000)
    """Classes and slices with fewer test rows are underpowered: they neither pass nor fail."""
    max_share_gap: float | None = Field(default=None, ge=0, le=1)
    """Largest difference between the share of a class in the predictions and in the test rows. Not set: warns beyond
    0.3. 1: not checked, not even whether more than one class is predicted."""
    max_calibration_error: float | None = Field(default=None, ge=0, le=1)
    """Largest expected calibration error on the test rows. Not set: warns beyond 0.3."""
    max_latency_ratio: float | None = Field(default=None, gt=0, le=1000)
    """Highest latency per text, relative to the champion's. Not set: warns beyond 2."""
    max_size_ratio: float | None = Field(default=None, gt=0, le=1000)
    """Largest size of the files, relative to the champion's. Not set: warns beyond 1.5."""
    approval: bool = False
    """Whether a candidate that passed the gate waits until a person approves or rejects it."""
    approval_timeout: Annotated[Duration, Field(min_length=1)] = "18h"
    """How long it waits, such as '18h'; then it is held."""

    @model_validator(mode="after")
    def _margin_has_a_sane_unit(self) -> Gate:
        if self.margin_unit == "f1" and self.margin > 1:
            raise ValueError(f"margin: {self.margin} is more than F1 can differ; 0.01 is a point")
        return self

    def blocks(self, check: Blockable) -> bool:
        """Whether this check holds a candidate instead of only warning."""
        if check == "golden":
            return self.golden_blocks or check in self.blocking
        return check in self.blocking or getattr(self, LIMITS[check]) is not None

    def limit(self, check: Blockable) -> float:
        """The limit of this check: its field, or the constant beyond which it warns where that is not set."""
        value: float | None = getattr(self, LIMITS[check])
        return WARNING_LIMITS[check] if value is None else value
