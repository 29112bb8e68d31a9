"""All that the gate knows when it decides, as plain arrays: the same from a night's own scoring and from the database.

`nightgate.gate.decide` is a function of this and of the policy alone, so every past night can be decided again.
Predictions are class indices; scores, windows, intervals and tests all follow from them and are not part of it.
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
    """A column by whose values metrics are broken down."""

    name: str
    values: tuple[str, ...]
    codes: NDArray[np.int64]
    """Of each row the place of its value in `values`, shape [rows]."""


@dataclass(frozen=True)
class Rows:
    """Rows that all sides were scored on, in the order of their predictions."""

    true: Labels
    """Class indices, shape [rows]."""
    seen_at: NDArray[np.int64]
    """Microseconds since 1970 (UTC) of a row's time, or of the night that saw it first where rows have none."""
    fingerprints: tuple[str, ...]
    """32 hex digits each: what a row is named by."""
    groups: NDArray[np.int64] | None = None
    """A number for the group of each row, whose rows are not independent; None: all of them are."""
    slices: tuple[Slice, ...] = ()

    def __len__(self) -> int:
        return len(self.true)

    def only(self, chosen: Mask) -> Rows:
        """Some of them. `chosen`: shape [rows]."""
        return Rows(
            true=self.true[chosen],
            seen_at=self.seen_at[chosen],
            fingerprints=tuple(compress(self.fingerprints, chosen.tolist())),
            groups=None if self.groups is None else self.groups[chosen],
            slices=tuple(replace(one, codes=one.codes[chosen]) for one in self.slices),
        )


@dataclass(frozen=True)
class Serving:
    """How a fresh process without our code served the saved model."""

    flaw: str = ""
    """Why it could not; '' where it could."""
    rows: int = 0
    logit_difference: float | None = None
    """Largest, against the logits that the night scored it by."""
    flipped: int = 0
    """Rows whose label is another one, beyond what the tolerance explains."""
    latency_ms: float | None = None
    """Median of one text alone, after warm-up; of models that were timed in turns."""
    size_bytes: int | None = None


@dataclass(frozen=True)
class Side:
    """What is known of one model. All sides are scored on the same night, on the same rows."""

    predictions: Labels | None
    """On the test rows, shape [rows]; None where `flaw` says why there are none."""
    data_until: datetime | None
    """Aware: the model was trained on rows before this instant."""
    chosen_at: datetime | None = None
    """Aware: when a person made it champion, who may have gone by rows of until then; None: its own night chose it."""
    version: int | None = None
    """None: the candidate, which has no number yet."""
    flaw: str = ""
    """Why it cannot be scored or compared; '' where it can."""
    golden: Labels | None = None
    """On the golden rows."""
    trained_on: Mask | None = None
    """Test rows that it, or a model that it goes back to, was trained on or chosen by; None where that is unknown."""
    unknown_line: str = ""
    """Why `trained_on` is unknown."""
    calibration_error: float | None = None
    """Expected calibration error on all test rows: 15 bins of equal width by confidence (Guo et al. 2017)."""
    nonfinite_rows: int = 0
    """Test and golden rows with a logit that is NaN or infinite."""
    serving: Serving | None = None
    """None: it was not tried."""

    def __post_init__(self) -> None:
        for name in ("data_until", "chosen_at"):
            moment = getattr(self, name)
            assert moment is None or moment.tzinfo is not None, f"{name} must be aware"


@dataclass(frozen=True)
class Evidence:
    """One night's."""

    label_names: tuple[str, ...]
    test_version: str
    data_until: datetime
    """Aware: of the night. The test window counts back from it."""
    test: Rows
    candidate: Side
    champion: Side | None = None
    """None: the pipeline has none yet."""
    anchor: Side | None = None
    """None: there is none. Where the champion is the anchor, both are the same object."""
    golden: Rows | None = None
    champion_nights: int | None = None
    """Nights since the champion's own night."""
    seed_spread: float | None = None
    """Standard deviation of F1 between seeds, of the newest study of this configuration; None: there was none."""
    seed_average: str | None = None
    """By which average the F1 of that study is; None: by whatever one the policy has."""
    golden_note: str = ""
    """Why there are no golden rows."""

    @property
    def anchored_by_champion(self) -> bool:
        return self.anchor is not None and self.anchor is self.champion
