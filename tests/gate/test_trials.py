"""Single decisions of the gate, many times: coverage, false alarms, and agreement with the simulated years."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from benchmarks.gate_worlds import BASE, CONTESTED, EASY, SEED_SPREAD
from benchmarks.gate_years import paired_interval
from nightgate.config.gate import Gate
from nightgate.gate import statistics
from nightgate.gate.evidence import Evidence, Rows, Side, Slice
from nightgate.gate.measurements import DECIDING, Case
from nightgate.gate.slice_checks import slices
from nightgate.metrics.bootstrap import Interval, f1_difference, f1_estimate
from nightgate.metrics.confusion import Average

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

GATE = Gate()
ROWS, LABELS = 5000, 5

# --- coverage, on populations whose true F1 is known ---

SHARES = {"balanced": np.full(LABELS, 1 / LABELS), "skewed": np.array([0.60, 0.20, 0.10, 0.06, 0.04])}
BY_AUTHOR = 10
"""Rows of an author."""
ACCURACY = ((0.90, 0.90), (0.75, 0.45), (0.45, 0.75), (0.15, 0.15))
"""Of reference and candidate, for four kinds of authors: easy, suiting the one, suiting the other, hopeless."""
FAVOURITE = 0.5
"""Share of an author's rows that are of one class; the rest are as everybody's."""
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
            for accuracies in ACCURACY:
                true = FAVOURITE * np.eye(LABELS)[favourite] + (1 - FAVOURITE) * shares
                first, second = (_says(accuracy) for accuracy in accuracies)
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


@pytest.mark.parametrize("shares", SHARES)
def test_the_truth_of_a_population_is_what_very_many_of_its_rows_show(shares: str) -> None:
    population = Population.of(SHARES[shares])
    (true, reference, candidate), authors = population.draw(400_000, True, np.random.default_rng(4))
    averages: tuple[Average, ...] = ("weighted", "macro")
    for average in averages:
        f1, difference = population.truth(average)
        seen, other = (float(f1_score(true, labels, average=average)) for labels in (candidate, reference))
        assert seen == pytest.approx(f1, abs=0.006)
        assert seen - other == pytest.approx(difference, abs=0.006)
    assert np.bincount(authors).tolist() == [10] * 40_000


@pytest.mark.slow
@pytest.mark.parametrize("average", ["weighted", "macro"])
@pytest.mark.parametrize("clustered", [False, True], ids=["single rows", "authors of 10 rows"])
@pytest.mark.parametrize("shares", SHARES)
def test_an_interval_of_95_percent_holds_the_truth_that_often(shares: str, clustered: bool, average: Average) -> None:
    rng, population, repetitions = np.random.default_rng(1), Population.of(SHARES[shares]), 1000
    truths, hits = population.truth(average), np.zeros(2)
    for number in range(repetitions):
        (true, reference, candidate), authors = population.draw(1000, clustered, rng)
        settings: dict[str, Any] = {"groups": authors if clustered else None, "resamples": 500, "seed": number}
        estimates = (
            f1_estimate(true, candidate, LABELS, average, confidence=0.95, **settings),
            f1_difference(true, reference, candidate, LABELS, average, confidence=0.95, **settings),
        )
        for at, (estimate, truth) in enumerate(zip(estimates, truths, strict=True)):
            hits[at] += estimate.interval.low <= truth <= estimate.interval.high
    # A point, and three standard errors of so many repetitions.
    assert hits / repetitions == pytest.approx(0.95, abs=0.01 + 3 * math.sqrt(0.95 * 0.05 / repetitions))


# --- false alarms, on nights on which all models are equally good ---

SLICE_SHARES = (
    np.full(5, 1 / 5),
    1 / np.arange(2, 12) / (1 / np.arange(2, 12)).sum(),
    1 / np.arange(1, 21) / (1 / np.arange(1, 21)).sum(),
)
"""Of the values of three columns: 35 slices, which with the 5 classes are 40; of 5,000 rows the smallest has 70."""
GROUP_SPREAD = 0.1
"""Between groups, of what a model's F1 is above or below its usual one there."""


def labelled_night(gaps: Sequence[float] | Sequence[Floats], rng: np.random.Generator) -> tuple[Labels, list[Labels]]:
    """True labels, and for each gap (of all rows, or of each) those of a model that is so much above `BASE`.

    Classes and errors are even.
    """
    true = rng.integers(LABELS, size=ROWS)
    kind = rng.random(ROWS)
    models = []
    for gap in gaps:
        chance = (BASE + gap - EASY) / CONTESTED
        right = (kind < EASY) | ((kind < EASY + CONTESTED) & (rng.random(ROWS) < chance))
        models.append(np.where(right, true, (true + rng.integers(1, LABELS, size=ROWS)) % LABELS))
    return true, models


def equal_night(rng: np.random.Generator, columns: Sequence[Floats] = (), per_group: int = 1) -> Evidence:
    """On which candidate, champion and anchor are equally good, everywhere. `columns`: shares of a column's values."""
    until = datetime(2027, 1, 1, tzinfo=UTC)
    groups = np.arange(ROWS) // per_group
    num_groups = int(groups[-1]) + 1
    favours = [GROUP_SPREAD * (per_group > 1) * rng.standard_normal(num_groups)[groups] for _ in range(3)]
    true, models = labelled_night(favours, rng)
    test = Rows(
        true,
        seen_at=np.full(ROWS, int((until - timedelta(days=1)).timestamp() * 1e6)),
        fingerprints=tuple(f"{row:032x}" for row in range(ROWS)),
        groups=groups if per_group > 1 else None,
        slices=tuple(
            Slice(
                f"column {number}",
                tuple(map(str, range(len(shares)))),
                rng.choice(len(shares), num_groups, p=shares)[groups],
            )
            for number, shares in enumerate(columns)
        ),
    )
    candidate, champion, anchor = (Side(model, until) for model in models)
    return Evidence(tuple("12345"), "", until, test, candidate, champion, anchor)


def test_of_two_equal_models_the_second_is_called_superior_in_at_most_5_percent() -> None:
    chance = (BASE - EASY) / CONTESTED
    differ = 2 * chance * (1 - chance) * CONTESTED
    cells = np.random.default_rng(1).multinomial(ROWS, [differ / 2, differ / 2, 1 - differ], size=20_000)
    _, low, high = paired_interval(cells[:, 0], cells[:, 1], ROWS, GATE.confidence)
    assert np.mean([statistics.is_superior(Interval(*ends)) for ends in zip(low, high, strict=True)]) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("per_group", [1, 25], ids=["single rows", "rows in groups of 25"])
def test_one_of_40_slices_fails_on_at_most_5_percent_of_equal_nights(per_group: int) -> None:
    rng, nights, failed = np.random.default_rng(1), 100, 0
    for _ in range(nights):
        checks = slices(Case(equal_night(rng, SLICE_SHARES, per_group), GATE))
        assert len(checks) == 41 or per_group > 1, "a summary and 40 classes and slices; few groups miss some"
        failed += checks[0].outcome == "failed"
    assert failed / nights <= 0.05


# --- the simulated years count right rows where the gate resamples F1 ---


@pytest.mark.slow
def test_counts_of_right_rows_decide_as_the_bootstrap_of_f1_does() -> None:
    """The champion is old, so that all rules have a say; both models are drawn with the spread of seeds."""
    rng, nights, agreed = np.random.default_rng(1), 100, 0
    for night in range(nights):
        true, (champion, candidate) = labelled_night(rng.normal(0, SEED_SPREAD, size=2).tolist(), rng)
        losses, gains, _ = statistics.mcnemar(true, champion, candidate)
        gap, low, high = paired_interval(np.array([gains]), np.array([losses]), ROWS, GATE.confidence)
        estimate = f1_difference(
            true, champion, candidate, LABELS, GATE.average, confidence=GATE.confidence, seed=night
        )
        fast, real = (
            statistics.beats(value, interval, GATE, margin=GATE.margin, champion_nights=GATE.refresh_after)
            for value, interval in (
                (float(gap[0]), Interval(float(low[0]), float(high[0]))),
                (estimate.value, estimate.interval),
            )
        )
        agreed += fast == real
    assert agreed / nights >= 0.98


def test_the_simulated_interval_of_a_gap_is_that_of_resampling_its_rows() -> None:
    true, (champion, candidate) = labelled_night((0.0, 0.01), np.random.default_rng(3))
    gains = np.count_nonzero((candidate == true) & (champion != true))
    losses = np.count_nonzero((candidate != true) & (champion == true))
    found = paired_interval(np.array([gains]), np.array([losses]), ROWS, 0.95)
    resampled = f1_difference(true, champion, candidate, LABELS, "weighted")
    assert [float(part[0]) for part in found] == pytest.approx([resampled.value, *resampled.interval], abs=0.0015)


@pytest.mark.slow
def test_the_bootstrap_of_one_decision_takes_at_most_half_a_second_of_cpu_time() -> None:
    taken = []
    for _ in range(5):
        case = Case(equal_night(np.random.default_rng(0)), GATE)
        started = time.process_time()
        assert case.difference("champion", case.window, GATE.average, DECIDING).interval
        taken.append(time.process_time() - started)
    assert min(taken) <= 0.5
