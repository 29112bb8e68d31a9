"""Evidence: the inputs of a gate decision as plain arrays, the same from a night's scoring and from the database.

`nightgate.gate.decide` depends on this and on the policy alone, so every past night can be decided again. Predictions
are class indices; scores, windows, intervals and tests are derived from them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from itertools import compress

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Slice:
    """A column whose values divide the rows for separate metrics."""

    name: str
    values: tuple[str, ...]
    codes: NDArray[np.int64]
    """Index in `values` of each row's value, shape [rows]."""


@dataclass(frozen=True)
class Rows:
    """Rows that all models were scored on, in the order of their predictions."""

    true: Labels
    """Class indices, shape [rows]."""
    seen_at: NDArray[np.int64]
    """Microseconds since 1970 (UTC): a row's time, or that of the night that first saw it if rows have none."""
    fingerprints: tuple[str, ...]
    """32 hex digits that identify each row."""
    groups: NDArray[np.int64] | None = None
    """Group number of each row (rows of a group are not independent); None: all rows are independent."""
    slices: tuple[Slice, ...] = ()

    def __len__(self) -> int:
        return len(self.true)

    def only(self, chosen: Mask) -> Rows:
        """The rows selected by `chosen`, shape [rows]."""
        return Rows(
            true=self.true[chosen],
            seen_at=self.seen_at[chosen],
            fingerprints=tuple(compress(self.fingerprints, chosen.tolist())),
            groups=None if self.groups is None else self.groups[chosen],
            slices=tuple(replace(one, codes=one.codes[chosen]) for one in self.slices),
        )


@dataclass(frozen=True)
class Serving:
    """Result of serving the saved model in a fresh process that has none of this package's code."""

    flaw: str = ""
    """Why it could not be served; '' if it could."""
    rows: int = 0
    logit_difference: float | None = None
    """Largest absolute difference from the night's own logits."""
    flipped: int = 0
    """Rows with another label, beyond what the tolerance explains."""
    rounded: int = 0
    """Rows with another label in the precision of the night's scores than in float32."""
    latency_ms: float | None = None
    """Median for a single text after warm-up, models timed in alternation."""
    size_bytes: int | None = None


@dataclass(frozen=True)
class Side:
    """Evidence about one model: candidate, champion or anchor. All are scored on the same night and rows."""

    predictions: Labels | None
    """On the test rows, shape [rows]; None if there are none, with the reason in `flaw`."""
    data_until: datetime | None
    """Aware: the model was trained on rows before this instant."""
    version: int | None = None
    """None: the candidate, which has no number yet."""
    flaw: str = ""
    """Why it cannot be scored or compared, as a clause behind its name; '' if it can."""
    relabelled: bool = False
    """Whether its labels have other names or mean something else than tonight's, as `flaw` says: a person decides."""
    golden: Labels | None = None
    """Predictions on the golden rows."""
    trained_on: Mask | None = None
    """Test rows that it or any of its ancestors was trained on or selected by; None: unknown."""
    unknown_line: str = ""
    """Why `trained_on` is unknown."""
    calibration_error: float | None = None
    """Expected calibration error on all test rows: 15 bins of equal width by confidence (Guo et al. 2017)."""
    nonfinite_rows: int = 0
    """Test and golden rows with a logit that is NaN or infinite."""
    serving: Serving | None = None
    """None: not tried."""

    def __post_init__(self) -> None:
        assert self.data_until is None or self.data_until.tzinfo is not None, "data_until must be aware"


@dataclass(frozen=True)
class Evidence:
    """The evidence of one night."""

    label_names: tuple[str, ...]
    test_version: str
    data_until: datetime
    """Aware: cut-off of the night's data, from which the test window counts back."""
    test: Rows
    candidate: Side
    champion: Side | None = None
    """None: the pipeline has none yet."""
    anchor: Side | None = None
    """None: there is none. If the champion is the anchor, both are the same object."""
    golden: Rows | None = None
    champion_nights: int | None = None
    """Nights since the champion's own night; None: unknown."""
    seed_spread: float | None = None
    """Standard deviation of F1 between seeds in the newest study of this configuration; None: no study."""
    seed_average: str | None = None
    """Average of that study's F1; None: the policy's."""
    golden_note: str = ""
    """Why golden rows that should exist do not."""
    precision: str = "fp32"
    """In which all predictions were computed."""

    @property
    def anchored_by_champion(self) -> bool:
        return self.anchor is not None and self.anchor is self.champion
