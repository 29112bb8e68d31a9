"""Worlds of simulated years: how the quality of models changes over time. All assumptions of `benchmarks.gate`.

Quality is the share of correct rows, which is also the weighted F1 where classes are even and errors are spread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NIGHTS = 365
BASE = 0.55
"""Quality of an average candidate on night 0."""
SEED_SPREAD = 0.006
"""Standard deviation of the quality of candidates that differ by seed alone."""
EASY, CONTESTED = 0.35, 0.40
"""Shares of rows that every model predicts correctly, and that each model decides by chance: two models of quality 0.55
disagree on half of the latter, a fifth of all rows. The rest no model predicts correctly."""
MATTERS = 0.005
"""A promotion that loses more true quality than this is a mistake."""


@dataclass(frozen=True)
class World:
    """One assumption about how quality changes."""

    name: str
    title: str
    change: Callable[[Floats, Floats], Floats]
    """Quality that a model trained on night `trained` gains on rows of `day`; broadcasts both."""


def _segment(trained: Floats, day: Floats) -> Floats:
    """25 points less on a fifth of the rows for a model that saw none of them, e times less after 20 nights."""
    unlearned = np.exp(-np.maximum(trained - 180, 0) / 20)
    return np.where(day >= 180, -0.2 * 0.25 * unlearned, 0.0)


WORLDS = (
    World("equal", "equal nights", lambda trained, day: 0.0 * (trained + day)),
    # The meaning of labels drifts: 1 point less per 100 days between training and row, either way.
    World("drift", "concept drift", lambda trained, day: -0.01 * np.abs(day - trained) / 100),
    # Texts have new subjects: 2 points less per 100 days on rows after the training.
    World("staleness", "staleness", lambda trained, day: -0.02 * np.maximum(day - trained, 0) / 100),
    # More rows improve candidates by 1 point per 100 days.
    World("gains", "small steady gains", lambda trained, day: 0.01 * trained / 100 + 0.0 * day),
    # Training data deteriorates slowly: candidates lose 2 points per 100 days.
    World("decay", "silent decay", lambda trained, day: -0.02 * trained / 100 + 0.0 * day),
    # A fifth of the rows from day 180 on are of a new kind.
    World("segment", "a new segment", _segment),
)
