"""Whether the gate's intervals cover the truth as often as they say, on populations whose true F1 is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightgate.metrics.bootstrap import f1_difference, f1_estimate
from nightgate.metrics.confusion import Average

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Counts = NDArray[np.int64]

CONFIDENCE = 0.95
RESAMPLES = 1000
"""A tenth of the gate's, for time: an end of an interval moves by a twelfth of a standard error more."""
MORE = 5
"""Times as many repetitions, where the first ones are in doubt."""
LABELS = 5
BY_AUTHOR = 10
"""Rows of an author."""
SHARES = {
    "balanced": np.full(LABELS, 1 / LABELS),
    "skewed": np.array([0.60, 0.20, 0.10, 0.06, 0.04]),
}
ACCURACY = ((0.90, 0.90), (0.75, 0.45), (0.45, 0.75), (0.15, 0.15))
"""Of reference and candidate, for the four kinds of authors: easy, one's own, the other's, hopeless."""
FAVOURITE = 0.5
"""Share of an author's rows that are of his favourite class; the rest are as everybody's."""
COPIED = 0.5
"""Share of rows on which the candidate says what the reference says: both learned from the same rows."""


@dataclass(frozen=True)
class Population:
    """Rows as triples (true, reference's, candidate's label)."""

    kinds: Floats
    """Probability of each triple for every kind of author, shape [kinds, triples]."""
    weights: Floats
    """Share of each kind, shape [kinds]."""

    @classmethod
    def of(cls, shares: Floats) -> Population:
        kinds, weights = [], []
        for favourite in range(LABELS):
            for reference, candidate in ACCURACY:
                true = FAVOURITE * np.eye(LABELS)[favourite] + (1 - FAVOURITE) * shares
                first, second = _says(reference), _says(candidate)
                joint = first[:, :, None] * (COPIED * np.eye(LABELS)[None] + (1 - COPIED) * second[:, None, :])
                kinds.append((true[:, None, None] * joint).ravel())
                weights.append(shares[favourite] / len(ACCURACY))
        return cls(np.array(kinds), np.array(weights))

    def draw(self, rows: int, clustered: bool, rng: np.random.Generator) -> tuple[list[Labels], Labels]:
        """Labels (true, reference, candidate) of `rows` rows, and their authors; one row each unless `clustered`."""
        by_author = BY_AUTHOR if clustered else 1
        authors = rows // by_author
        kind = rng.choice(len(self.weights), size=authors, p=self.weights)
        ends = self.kinds.cumsum(axis=1)
        ends[:, -1] = 1.0
        cell = np.empty((authors, by_author), dtype=np.int64)
        for at in range(len(self.weights)):
            of_kind = kind == at
            cell[of_kind] = np.searchsorted(ends[at], rng.random((int(of_kind.sum()), by_author)), side="right")
        labels = np.unravel_index(cell.ravel(), (LABELS,) * 3)
        return [np.asarray(part, dtype=np.int64) for part in labels], np.repeat(np.arange(authors), by_author)

    def truth(self, average: Average) -> tuple[float, float]:
        """F1 of the candidate, and that minus the reference's."""
        joint = (self.weights @ self.kinds).reshape((LABELS,) * 3)
        reference, candidate = (_f1(joint.sum(axis=axis), average) for axis in (2, 1))
        return candidate, candidate - reference


def _says(accuracy: float) -> Floats:
    """Probability of each predicted label for each true one; near labels are confused more often, as stars are."""
    near = 0.5 ** np.abs(np.subtract.outer(np.arange(LABELS), np.arange(LABELS)))
    np.fill_diagonal(near, 0)
    wrong: Floats = (1 - accuracy) * near / near.sum(axis=1, keepdims=True)
    return wrong + accuracy * np.eye(LABELS)


def _f1(confusion: Floats, average: Average) -> float:
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    by_class = 2 * np.diag(confusion) / (true + predicted)
    return float(by_class.mean() if average == "macro" else by_class @ true)


@dataclass(frozen=True)
class Coverage:
    """How often an interval held the truth."""

    what: str
    """`F1` or `difference`."""
    average: str
    shares: str
    rows: int
    clustered: bool
    covered: float
    repetitions: int

    @property
    def allowed(self) -> float:
        """Off the nominal: a point, or two standard errors where few repetitions say less than that."""
        return max(0.01, 2 * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / self.repetitions))

    @property
    def holds(self) -> bool:
        return abs(self.covered - CONFIDENCE) <= self.allowed


def coverage(average: Average, shares: str, rows: int, clustered: bool, repetitions: int, seed: int) -> list[Coverage]:
    """Of F1 and of the paired difference, in samples from one population.

    Where the first repetitions put one outside of what is allowed, it may be chance: then `MORE` times as many decide.
    """
    rng = np.random.default_rng(seed)
    population = Population.of(SHARES[shares])

    def cases(hits: Counts, number: int) -> list[Coverage]:
        parts = zip(("F1", "difference"), (hits / number).tolist(), strict=True)
        return [Coverage(what, average, shares, rows, clustered, covered, number) for what, covered in parts]

    hits = _hits(population, average, rows, clustered, range(repetitions), rng)
    if not all(case.holds for case in cases(hits, repetitions)):
        hits += _hits(population, average, rows, clustered, range(repetitions, MORE * repetitions), rng)
        repetitions *= MORE
    return cases(hits, repetitions)


def _hits(
    population: Population, average: Average, rows: int, clustered: bool, samples: range, rng: np.random.Generator
) -> Counts:
    """In how many samples the interval of F1 held the truth, and in how many that of the difference."""
    truths = population.truth(average)
    hits = np.zeros(2, dtype=np.int64)
    for number in samples:
        (true, reference, candidate), authors = population.draw(rows, clustered, rng)
        settings: dict[str, Any] = {
            "groups": authors if clustered else None,
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": number,
        }
        estimates = (
            f1_estimate(true, candidate, LABELS, average, **settings),
            f1_difference(true, reference, candidate, LABELS, average, **settings),
        )
        for at, (estimate, truth) in enumerate(zip(estimates, truths, strict=True)):
            assert estimate.interval is not None
            hits[at] += estimate.interval.low <= truth <= estimate.interval.high
    return hits
