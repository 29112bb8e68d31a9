"""Simulation of years of nights behind a gate: many runs of one policy in one world, as arrays.

Each night a candidate is scored on the current test rows, and so are the champion and the anchor, whose predictions do
not change from night to night: a champion that was lucky on its test rows stays lucky until newer rows arrive. Rows
arrive in exchangeable lots of five days, so that counts of correct rows by pair of models are all that is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmarks.gate_worlds import BASE, CONTESTED, EASY, MATTERS, NIGHTS, SEED_SPREAD, WORLDS, World
from nightgate.config.gate import Gate
from nightgate.gate import statistics
from nightgate.metrics.bootstrap import Interval

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

THRESHOLD = 0.54
"""A point below the average candidate of the first night."""
LOT_DAYS = 5
WINDOW_LOTS = 90 // LOT_DAYS
"""The default test window."""
HISTORY_LOTS = NIGHTS // LOT_DAYS
"""A year of rows before the first night."""


@dataclass(frozen=True)
class Tonight:
    """Evidence of a night, one number for each run."""

    f1: Floats
    """The candidate's."""
    champion_f1: Floats
    """On tonight's rows."""
    stored_f1: Floats
    """The champion's on the night of its promotion."""
    gap: tuple[Floats, Floats, Floats]
    """Candidate's F1 minus the champion's, with the ends of its interval."""
    anchor_gap: tuple[Floats, Floats, Floats]
    champion_nights: Counts


@dataclass(frozen=True)
class Policy:
    """A rule of promotion."""

    name: str
    title: str
    promotes: Callable[[Tonight, Gate], Mask]
    all_rows: bool = False
    """Decides on all test rows, not on the window alone."""
    has_anchor: bool = False


def intervals(gap: tuple[Floats, Floats, Floats]) -> list[Interval]:
    return [Interval(low, high) for low, high in zip(gap[1].tolist(), gap[2].tolist(), strict=True)]


def _superior(tonight: Tonight, _: Gate) -> Mask:
    return np.array([statistics.is_superior(interval) for interval in intervals(tonight.gap)])


def _ours(tonight: Tonight, gate: Gate) -> Mask:
    """The gate's own rules without `min_f1`, so that the comparison alone decides."""
    nights = tonight.champion_nights.tolist()
    sides = zip(tonight.gap[0].tolist(), intervals(tonight.gap), intervals(tonight.anchor_gap), nights, strict=True)
    return np.array(
        [
            statistics.beats(gap, champion, gate, margin=gate.margin, champion_nights=age) is not None
            and statistics.is_non_inferior(anchor, gate.margin)
            for gap, champion, anchor, age in sides
        ]
    )


POLICIES = (
    Policy("threshold", f"fixed threshold: F1 of {THRESHOLD:g}", lambda tonight, _: tonight.f1 >= THRESHOLD),
    Policy("stored", "not below the champion's stored score", lambda tonight, _: tonight.f1 >= tonight.stored_f1),
    Policy(
        "tolerance", "at most 2 points below it tonight", lambda tonight, _: tonight.f1 >= tonight.champion_f1 - 0.02
    ),
    Policy("all_rows", "superior on all rows", _superior, all_rows=True),
    Policy("ours", "ours", _ours, has_anchor=True),
)


@dataclass(frozen=True)
class Summary:
    """The runs of one policy in one world. Quality in shares, not in points."""

    world: str
    policy: str
    mean: float
    """True F1 of the champion, over nights and runs."""
    final: float
    """True F1 of the champion on the last night."""
    promotions: float
    """In a year."""
    lost: float
    """Share of the promotions that cost more than `MATTERS`; 0 without promotions."""
    age: float
    """Nights since the champion's training, mean, before each decision."""
    curve: list[float]
    """True F1 of the champion by night, mean over the runs."""


def paired_interval(gains: Counts, losses: Counts, rows: int, confidence: float) -> tuple[Floats, Floats, Floats]:
    """(gains - losses) / rows with the ends of its interval, a normal approximation of the bootstrap.

    The variance is that of a multinomial's difference of two counts, ((gains + losses) / rows - gap^2) / rows.
    """
    gap = (gains - losses) / rows
    half = NormalDist().inv_cdf((1 + confidence) / 2) * np.sqrt(((gains + losses) / rows - gap**2) / rows)
    return gap, gap - half, gap + half


class _Models:
    """One model for each run: its night of training, and the luck of its seed."""

    def __init__(self, world: World, trained: Floats, luck: Floats) -> None:
        self.world, self.trained, self.luck = world, trained, luck

    def quality(self, days: Floats) -> Floats:
        """Shape [runs, days]."""
        return BASE + self.luck[:, None] + self.world.change(self.trained[:, None], days[None, :])

    def chance(self, days: Floats) -> Floats:
        """Probability of a correct contested row, shape [runs, days]."""
        return np.clip((self.quality(days) - EASY) / CONTESTED, 0, 1)

    def replaced(self, by: _Models, where: Mask) -> _Models:
        trained, luck = np.where(where, by.trained, self.trained), np.where(where, by.luck, self.luck)
        return _Models(self.world, trained, luck)


class _Rows:
    """Test rows by lot; `right` counts contested ones by (anchor correct, champion correct), [runs, lots, 2, 2]."""

    def __init__(self, rows: int, runs: int, rng: np.random.Generator) -> None:
        lots = HISTORY_LOTS + NIGHTS // LOT_DAYS
        self.days: Floats = (np.arange(lots, dtype=np.float64) - HISTORY_LOTS + 0.5) * LOT_DAYS
        # Any window of lots holds exactly `rows`.
        self.sizes = np.diff(np.round(np.arange(lots + 1) * rows / WINDOW_LOTS)).astype(np.int64)
        self.contested = rng.binomial(self.sizes, CONTESTED, size=(runs, lots))
        self.easy = rng.binomial(self.sizes - self.contested, EASY / (1 - CONTESTED))
        self.right = np.zeros((runs, lots, 2, 2), dtype=np.int64)
        self._rng = rng

    def arrive(self, lots: slice, champion: _Models, anchor: _Models) -> None:
        """Draw both models' predictions on new rows."""
        contested, days = self.contested[:, lots], self.days[lots]
        same = (champion.trained == anchor.trained)[:, None]
        anchored = self._rng.binomial(contested, anchor.chance(days))
        chance = champion.chance(days)
        both = np.where(same, anchored, self._rng.binomial(anchored, chance))
        champion_only = np.where(same, 0, self._rng.binomial(contested - anchored, chance))
        self.right[:, lots, 1, 1], self.right[:, lots, 1, 0] = both, anchored - both
        self.right[:, lots, 0, 1], self.right[:, lots, 0, 0] = champion_only, contested - anchored - champion_only

    def meet(self, lots: slice, candidate: _Models) -> Counts:
        """Draw how many of `right` the candidate predicts correctly, independently of the other models."""
        return self._rng.binomial(self.right[:, lots], candidate.chance(self.days[lots])[:, :, None, None])

    def replace(self, lots: slice, hits: Counts, promoted: Mask, anchored: Mask) -> None:
        """The candidate becomes champion, and anchor, where the masks say so."""
        misses = self.right[:, lots] - hits
        moved = np.stack([misses.sum(axis=3), hits.sum(axis=3)], axis=3)
        both = np.zeros_like(moved)
        both[..., 0, 0], both[..., 1, 1] = misses.sum(axis=(2, 3)), hits.sum(axis=(2, 3))
        moved = np.where(anchored[:, None, None, None], both, moved)
        self.right[:, lots] = np.where(promoted[:, None, None, None], moved, self.right[:, lots])


def average_candidate(world: World) -> Floats:
    """True quality of each night's average candidate on rows of that night, shape [nights]."""
    nights = np.arange(1.0, NIGHTS + 1)
    return np.asarray(BASE + world.change(nights, nights))


def simulate(world_name: str, policy_name: str, rows: int, runs: int, gate: Gate, seed: int) -> Summary:
    """`runs` years of a policy in a world, with `rows` test rows in a window. All policies meet the same candidates."""
    (world,) = (one for one in WORLDS if one.name == world_name)
    (policy,) = (one for one in POLICIES if one.name == policy_name)
    luck = np.random.default_rng(seed).normal(0, SEED_SPREAD, size=(NIGHTS + 1, runs))
    test = _Rows(rows, runs, np.random.default_rng([seed, rows, *policy.name.encode()]))
    champion = anchor = _Models(world, np.zeros(runs), luck[0])
    test.arrive(slice(0, HISTORY_LOTS), champion, anchor)
    stored = _f1(test, _lots(0, policy), test.right[:, _lots(0, policy)][..., 1].sum(axis=(1, 2)))
    curve, promotions, lost, age = np.zeros(NIGHTS), 0, 0, 0.0
    for night in range(1, NIGHTS + 1):
        lots = _lots(night, policy)
        if night % LOT_DAYS == 0:
            test.arrive(slice(lots.stop - 1, lots.stop), champion, anchor)
        candidate = _Models(world, np.full(runs, float(night)), luck[night])
        hits = test.meet(lots, candidate)
        tonight = _tonight(test, lots, hits, stored, night - champion.trained.astype(np.int64), gate.confidence)
        promoted = policy.promotes(tonight, gate)
        anchored = promoted & (tonight.anchor_gap[1] > 0) if policy.has_anchor else promoted
        test.replace(lots, hits, promoted, anchored)
        today, before = np.array([float(night)]), champion
        champion, anchor = champion.replaced(candidate, promoted), anchor.replaced(candidate, anchored)
        stored = np.where(promoted, tonight.f1, stored)
        gain = (champion.quality(today) - before.quality(today))[:, 0]
        curve[night - 1] = champion.quality(today).mean()
        promotions += int(promoted.sum())
        lost += int((promoted & (gain < -MATTERS)).sum())
        age += float(tonight.champion_nights.mean()) / NIGHTS
    mean, final, lost_share = float(curve.mean()), float(curve[-1]), lost / max(1, promotions)
    return Summary(world_name, policy_name, mean, final, promotions / runs, lost_share, age, curve.tolist())


def _lots(night: int, policy: Policy) -> slice:
    known = HISTORY_LOTS + night // LOT_DAYS
    return slice(0 if policy.all_rows else known - WINDOW_LOTS, known)


def _f1(test: _Rows, lots: slice, hits: Counts) -> Floats:
    return np.asarray((test.easy[:, lots].sum(axis=1) + hits) / int(test.sizes[lots].sum()))


def _tonight(test: _Rows, lots: slice, hits: Counts, stored: Floats, ages: Counts, confidence: float) -> Tonight:
    # By (anchor right, champion right), shape [runs, 2, 2].
    got, had = hits.sum(axis=1), test.right[:, lots].sum(axis=1)
    missed, rows = had - got, int(test.sizes[lots].sum())
    return Tonight(
        f1=_f1(test, lots, got.sum(axis=(1, 2))),
        champion_f1=_f1(test, lots, had[:, :, 1].sum(axis=1)),
        stored_f1=stored,
        gap=paired_interval(got[:, :, 0].sum(axis=1), missed[:, :, 1].sum(axis=1), rows, confidence),
        anchor_gap=paired_interval(got[:, 0].sum(axis=1), missed[:, 1].sum(axis=1), rows, confidence),
        champion_nights=ages,
    )
