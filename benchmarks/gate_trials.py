"""Single decisions, many times: false alarms, agreement of the fast form with the bootstrap, and how long one takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from benchmarks.gate_worlds import BASE, CONTESTED, EASY, SEED_SPREAD
from benchmarks.gate_years import paired_interval
from nightgate import config
from nightgate.gate import statistics
from nightgate.gate.evidence import Evidence, Rows, Side, Slice
from nightgate.gate.measurements import DECIDING, Case
from nightgate.gate.slice_checks import slices
from nightgate.metrics.bootstrap import Interval, f1_difference

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

GATE = config.Gate()
LABELS = 5
SLICE_SHARES = (
    np.full(5, 1 / 5),
    1 / np.arange(2, 12) / (1 / np.arange(2, 12)).sum(),
    1 / np.arange(1, 21) / (1 / np.arange(1, 21)).sum(),
)
"""Of the values of three columns: 35 slices, which with the 5 classes are 40; of 5,000 rows the smallest has 70."""


GROUP_SPREAD = 0.1
"""Between groups, of what a model's F1 is above or below its usual one there."""


def called_superior(pairs: int, rows: int, seed: int) -> float:
    """Share of pairs of exactly equal models of which the second is called superior."""
    rng = np.random.default_rng(seed)
    chance = (BASE - EASY) / CONTESTED
    differ = 2 * chance * (1 - chance) * CONTESTED
    cells = rng.multinomial(rows, [differ / 2, differ / 2, 1 - differ], size=pairs)
    _, low, high = paired_interval(cells[:, 0], cells[:, 1], rows, GATE.confidence)
    return float(np.mean([statistics.is_superior(Interval(*ends)) for ends in zip(low, high, strict=True)]))


def labelled_night(
    rows: int, gaps: Sequence[float] | Sequence[Floats], rng: np.random.Generator
) -> tuple[Labels, list[Labels]]:
    """True labels, and for each gap (of all rows, or of each) those of a model that is so much above `BASE`.

    Classes and errors are even.
    """
    true = rng.integers(LABELS, size=rows)
    kind = rng.random(rows)
    models = []
    for gap in gaps:
        chance = (BASE + gap - EASY) / CONTESTED
        right = (kind < EASY) | ((kind < EASY + CONTESTED) & (rng.random(rows) < chance))
        models.append(np.where(right, true, (true + rng.integers(1, LABELS, size=rows)) % LABELS))
    return true, models


def agreement(nights: int, rows: int, seed: int) -> float:
    """Share of nights on which counts of right rows, which the simulated years go by, decide as the bootstrap of F1.

    The champion is old, so that all rules have a say; both models are drawn with the spread of seeds.
    """
    rng = np.random.default_rng(seed)
    agreed = 0
    for night in range(nights):
        true, (champion, candidate) = labelled_night(rows, rng.normal(0, SEED_SPREAD, size=2).tolist(), rng)
        losses, gains, _ = statistics.mcnemar(true, champion, candidate)
        gap, low, high = paired_interval(np.array([gains]), np.array([losses]), rows, GATE.confidence)
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
    return agreed / nights


def slices_failed(nights: int, rows: int, seed: int, per_group: int = 1) -> float:
    """Share of nights on which the gate's check of 40 classes and slices fails, both models being equally good.

    Args:
        per_group: rows of a group, which share their slices, and suit one of the models better by chance.
    """
    rng = np.random.default_rng(seed)
    failed = 0
    for _ in range(nights):
        checks = slices(Case(_equal_night(rows, rng, SLICE_SHARES, per_group), GATE))
        assert len(checks) == 41 or per_group > 1, "a summary and 40 classes and slices; few groups miss some"
        failed += checks[0].outcome == "failed"
    return failed / nights


def decision_seconds(rows: int) -> float:
    """CPU seconds of the bootstrap that decides between candidate and champion, on 5 classes: the least of five."""
    rng = np.random.default_rng(0)
    taken = []
    for _ in range(5):
        case = Case(_equal_night(rows, rng), GATE)
        started = time.process_time()
        assert case.difference("champion", case.window, GATE.average, DECIDING).interval
        taken.append(time.process_time() - started)
    return min(taken)


def _equal_night(rows: int, rng: np.random.Generator, columns: Sequence[Floats] = (), per_group: int = 1) -> Evidence:
    """On which candidate, champion and anchor are equally good, everywhere. `columns`: shares of a column's values."""
    until = datetime(2027, 1, 1, tzinfo=UTC)
    groups = np.arange(rows) // per_group
    num_groups = int(groups[-1]) + 1
    favours = [GROUP_SPREAD * (per_group > 1) * rng.standard_normal(num_groups)[groups] for _ in range(3)]
    true, models = labelled_night(rows, favours, rng)
    test = Rows(
        true,
        seen_at=np.full(rows, int((until - timedelta(days=1)).timestamp() * 1e6)),
        fingerprints=tuple(f"{row:032x}" for row in range(rows)),
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
