"""What a year may be like, and by which rules a gate may decide in it. All the numbers that `benchmarks.gate` assumes.

Quality is the share of rows that a model has right; where classes are even and errors spread, weighted F1 is the same.
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
"""Standard deviation of the quality of candidates that differ by their seed alone."""
EASY, CONTESTED = 0.35, 0.40
"""Shares of rows that every model has right, and that are decided anew by each: two models of quality 0.55 disagree on
half of the latter, a fifth of all rows. The rest no model has right."""
MATTERS = 0.005
"""A promotion that loses more true quality than this is a mistake."""


@dataclass(frozen=True)
class World:
    name: str
    title: str
    change: Callable[[Floats, Floats], Floats]
    """What being trained on night `trained` adds to a model's quality on rows of `day`; broadcasts both."""


def _segment(trained: Floats, day: Floats) -> Floats:
    """25 points less on that fifth of the rows for a model that saw none, e times less for one that saw 20 nights."""
    unlearned = np.exp(-np.maximum(trained - 180, 0) / 20)
    return np.where(day >= 180, -0.2 * 0.25 * unlearned, 0.0)


WORLDS = (
    World("equal", "equal nights", lambda trained, day: 0.0 * (trained + day)),
    # What a label means moves: a model loses 1 point per 100 days between its training and a row, earlier or later.
    World("drift", "concept drift", lambda trained, day: -0.01 * np.abs(day - trained) / 100),
    # New things are written about: a model loses 2 points per 100 days on rows that came after its training.
    World("staleness", "staleness", lambda trained, day: -0.02 * np.maximum(day - trained, 0) / 100),
    # More rows make candidates better, by 1 point per 100 days.
    World("gains", "small steady gains", lambda trained, day: 0.01 * trained / 100 + 0.0 * day),
    # Something breaks slowly in what candidates are trained on: they lose 2 points per 100 days.
    World("decay", "silent decay", lambda trained, day: -0.02 * trained / 100 + 0.0 * day),
    # A fifth of the rows from day 180 on is of a kind that must be learned.
    World("segment", "a new segment", _segment),
)
