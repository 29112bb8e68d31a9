"""False alarms of a fallen F1 in years without any change, and how soon a real fall is seen, both by simulation.

    python -m benchmarks.alarms                # some 40 minutes on a core
    python -m benchmarks.alarms --years 2      # to see it work

A year has one champion and 365 refreshes; after each `nightgate.metrics.fall` looks at all rows that came. `lucky`: the
champion was the best of ten candidates on its test rows, of whose predictions 80 % are common to all.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from nightgate.metrics.confusion import Average, confusion_counts, overall_scores
from nightgate.metrics.fall import LIMIT, Predicted, largest_fall

NIGHTS = 365
CANDIDATES, COMMON = 10, 0.8


@dataclass(frozen=True)
class World:
    """Classes with their shares, and the share of each that the model has right; its errors are spread evenly."""

    name: str
    shares: tuple[float, ...]
    right: tuple[float, ...]
    average: Average
    test_rows: int
    rows_a_night: int

    def true(self, rng: np.random.Generator, num_rows: int) -> np.ndarray:
        return rng.choice(len(self.shares), num_rows, p=self.shares)

    def predictions(self, rng: np.random.Generator, true: np.ndarray, lost: float = 0.0) -> np.ndarray:
        is_right = rng.random(len(true)) < np.array(self.right)[true] * (1 - lost)
        other = (true + rng.integers(1, len(self.shares), len(true))) % len(self.shares)
        return np.where(is_right, true, other)

    def promoted(self, rng: np.random.Generator, *, lucky: bool) -> Predicted:
        true = self.true(rng, self.test_rows)
        base = self.predictions(rng, true)
        if not lucky:
            return Predicted(true, base)
        own = [np.where(rng.random(len(true)) < COMMON, base, self.predictions(rng, true)) for _ in range(CANDIDATES)]
        return Predicted(true, max(own, key=lambda one: self.f1(true, one)))

    def f1(self, true: np.ndarray, predictions: np.ndarray) -> float:
        return overall_scores(confusion_counts(true, predictions, len(self.shares))).f1(self.average) or 0.0

    def z(self, then: Predicted, true: np.ndarray, predictions: np.ndarray, arrived: np.ndarray) -> float:
        now = Predicted(true, predictions)
        fall = largest_fall(then, now, arrived, num_labels=len(self.shares), average=self.average)
        return -np.inf if fall is None else fall.z


TWO, RARE, FIVE = (0.5, 0.5), (0.97, 0.03), (0.35, 0.25, 0.2, 0.15, 0.05)
WORLDS = (
    World("two even classes", TWO, (0.8, 0.8), "weighted", 2000, 100),
    World("two, nearly all right", TWO, (0.98, 0.97), "weighted", 2000, 100),
    World("a class of 3 %", RARE, (0.99, 0.6), "macro", 2000, 100),
    World("five classes", FIVE, (0.7, 0.6, 0.55, 0.5, 0.4), "weighted", 2000, 100),
    World("five classes, few rows", FIVE, (0.7, 0.6, 0.55, 0.5, 0.4), "macro", 500, 20),
)


def quiet_year(world: World, rng: np.random.Generator, *, lucky: bool) -> float:
    """The largest z of a year without change."""
    then = world.promoted(rng, lucky=lucky)
    arrived = np.repeat(np.arange(NIGHTS), world.rows_a_night)
    true = world.true(rng, len(arrived))
    predictions = world.predictions(rng, true)
    ends = range(world.rows_a_night, len(true) + 1, world.rows_a_night)
    return max(world.z(then, true[:end], predictions[:end], arrived[:end]) for end in ends)


def nights_until_seen(world: World, rng: np.random.Generator, lost: float, good_nights: int = 60) -> int:
    """How many refreshes with the fall it takes, after a number of good ones."""
    then = world.promoted(rng, lucky=False)
    parts = [(world.true(rng, world.rows_a_night), 0.0) for _ in range(good_nights)]
    for bad in count(1):
        parts.append((world.true(rng, world.rows_a_night), lost))
        true = np.concatenate([true for true, _ in parts])
        if bad == 1:
            predictions = np.concatenate([world.predictions(rng, rows, share) for rows, share in parts])
        else:
            predictions = np.concatenate([predictions, world.predictions(rng, parts[-1][0], lost)])
        arrived = np.repeat(np.arange(len(parts)), world.rows_a_night)
        if world.z(then, true, predictions, arrived) > LIMIT or bad == NIGHTS:
            return bad
    raise AssertionError


def lines(years: int) -> Iterator[str]:
    yield "| world | false alarm a year | lucky champion | a tenth of the right ones lost: seen after | a quarter |"
    yield "|---|---|---|---|---|"
    for number, world in enumerate(WORLDS):
        seeds = [np.random.default_rng([number, year]) for year in range(years)]
        shares = [np.mean([quiet_year(world, rng, lucky=lucky) > LIMIT for rng in seeds]) for lucky in (False, True)]
        seen = [int(np.median([nights_until_seen(world, rng, lost) for rng in seeds])) for lost in (0.1, 0.25)]
        what = f"{world.name}, {world.average}, {world.test_rows:,} test rows, {world.rows_a_night} a night"
        found = " | ".join(f"{share:.1%}" for share in shares)
        yield f"| {what} | {found} | " + " | ".join(f"{nights} nights" for nights in seen) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, default=100, help="simulated years for each figure (default: 100)")
    for line in lines(parser.parse_args().years):
        print(line, flush=True)


if __name__ == "__main__":
    main()
