"""Simulated years of nights behind a gate: many runs of one policy in one world, side by side.

A run does what a pipeline does. A candidate a night is scored on the test rows that are there; the champion and the
anchor are scored on the same rows, and what they had right last night they have right tonight. So a champion that was
lucky on its test rows stays lucky until newer rows come. Rows come in lots of five days, whose rows are exchangeable:
how many of a lot each pair of models has right is all that is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmarks.gate_worlds import BASE, CONTESTED, EASY, MATTERS, NIGHTS, SEED_SPREAD, WORLDS, World
from nightgate import config
from nightgate.gate import statistics
from nightgate.metrics.bootstrap import Interval

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

LOT_DAYS = 5
WINDOW_LOTS = 90 // LOT_DAYS
"""The default test window."""
HISTORY_LOTS = NIGHTS // LOT_DAYS
"""A year of rows before the first night."""


@dataclass(frozen=True)
class Tonight:
    """What a gate may go by, one number a run."""

    f1: Floats
    """Of the candidate."""
    champion_f1: Floats
    """On tonight's rows."""
    stored_f1: Floats
    """The champion's on the night of its promotion."""
    gap: tuple[Floats, Floats, Floats]
    """Candidate's F1 minus the champion's, and the ends of its interval."""
    anchor_gap: tuple[Floats, Floats, Floats]
    champion_nights: Counts


@dataclass(frozen=True)
class Policy:
    name: str
    title: str
    promotes: Callable[[Tonight, config.Gate], Mask]
    all_rows: bool = False
    """And not the window alone."""
    has_anchor: bool = False


def intervals(gap: tuple[Floats, Floats, Floats]) -> list[Interval]:
    return [Interval(low, high) for low, high in zip(gap[1].tolist(), gap[2].tolist(), strict=True)]


def _superior(tonight: Tonight, gate: config.Gate) -> Mask:
    del gate
    return np.array([statistics.is_superior(interval) for interval in intervals(tonight.gap)])


def _ours(tonight: Tonight, gate: config.Gate) -> Mask:
    """The gate's own rules. `min_f1` is left to the first policy, so that comparing shows."""
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
    Policy("threshold", "fixed threshold: F1 of 0.54", lambda tonight, gate: tonight.f1 >= gate.min_f1),
    Policy("stored", "not below the champion's stored score", lambda tonight, _: tonight.f1 >= tonight.stored_f1),
    Policy(
        "tolerance", "at most 2 points below it tonight", lambda tonight, _: tonight.f1 >= tonight.champion_f1 - 0.02
    ),
    Policy("all_rows", "superior on all rows", _superior, all_rows=True),
    Policy("ours", "ours", _ours, has_anchor=True),
)


@dataclass(frozen=True)
class Years:
    """Arrays of shape [nights, runs]."""

    champion: Floats
    """True quality on rows of that night, after its decision."""
    promoted: Mask
    lost: Mask
    """The promotion cost more than `MATTERS`."""
    age: Counts
    """Nights since the champion's own, before the decision."""


@dataclass(frozen=True)
class Summary:
    """The runs of one policy in one world. Quality in shares, not in points."""

    world: str
    policy: str
    mean: float
    """True F1 of the champion, over nights and runs."""
    final: float
    """The same, on the last night."""
    promotions: float
    """A year."""
    lost: float
    """Share of the promotions that cost more than `MATTERS`; 0 where there were none."""
    age: float
    """Nights since the champion's own, mean."""
    curve: list[float]
    """True F1 of the champion by night, mean over the runs."""


def paired_interval(gains: Counts, losses: Counts, rows: int, confidence: float) -> tuple[Floats, Floats, Floats]:
    """(gains - losses) / rows and the ends of its interval: what resampling rows comes to where there are thousands.

    The variance is that of a multinomial's difference of two counts, ((gains + losses) / rows - gap^2) / rows.
    """
    gap = (gains - losses) / rows
    half = NormalDist().inv_cdf((1 + confidence) / 2) * np.sqrt(((gains + losses) / rows - gap**2) / rows)
    return gap, gap - half, gap + half


class _Models:
    """One model a run: the night it was trained on, and the luck of its seed."""

    def __init__(self, world: World, trained: Floats, luck: Floats) -> None:
        self.world, self.trained, self.luck = world, trained, luck

    def quality(self, days: Floats) -> Floats:
        """Shape [runs, days]."""
        return BASE + self.luck[:, None] + self.world.change(self.trained[:, None], days[None, :])

    def chance(self, days: Floats) -> Floats:
        """Of having a contested row right, shape [runs, days]."""
        return np.clip((self.quality(days) - EASY) / CONTESTED, 0, 1)

    def replaced(self, by: _Models, where: Mask) -> _Models:
        trained, luck = np.where(where, by.trained, self.trained), np.where(where, by.luck, self.luck)
        return _Models(self.world, trained, luck)


class _Rows:
    """Test rows by lot. `right` counts contested ones by (anchor right, champion right), shape [runs, lots, 2, 2]."""

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
        """Both meet rows that are new to them."""
        contested, days = self.contested[:, lots], self.days[lots]
        same = (champion.trained == anchor.trained)[:, None]
        anchored = self._rng.binomial(contested, anchor.chance(days))
        chance = champion.chance(days)
        both = np.where(same, anchored, self._rng.binomial(anchored, chance))
        champion_only = np.where(same, 0, self._rng.binomial(contested - anchored, chance))
        self.right[:, lots, 1, 1], self.right[:, lots, 1, 0] = both, anchored - both
        self.right[:, lots, 0, 1], self.right[:, lots, 0, 0] = champion_only, contested - anchored - champion_only

    def meet(self, lots: slice, candidate: _Models) -> Counts:
        """How many of `right` the candidate has right, the same shape: given the row it does not go by the others."""
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


def summary(world: str, policy: str, rows: int, runs: int, gate: config.Gate, seed: int) -> Summary:
    """`runs` years of the policy of that name in the world of that name."""
    worlds, policies = {one.name: one for one in WORLDS}, {one.name: one for one in POLICIES}
    years = simulate(worlds[world], policies[policy], rows, runs, gate, seed)
    promoted, curve = int(years.promoted.sum()), years.champion.mean(axis=1)
    return Summary(
        world,
        policy,
        mean=float(curve.mean()),
        final=float(curve[-1]),
        promotions=promoted / runs,
        lost=float(years.lost.sum() / max(1, promoted)),
        age=float(years.age.mean()),
        curve=curve.tolist(),
    )


def simulate(world: World, policy: Policy, rows: int, runs: int, gate: config.Gate, seed: int) -> Years:
    """`runs` years of a policy; `rows` test rows in a window. All policies of a world meet the same candidates."""
    luck = np.random.default_rng(seed).normal(0, SEED_SPREAD, size=(NIGHTS + 1, runs))
    rng = np.random.default_rng([seed, rows, *policy.name.encode()])
    test = _Rows(rows, runs, rng)
    champion = anchor = _Models(world, np.zeros(runs), luck[0])
    test.arrive(slice(0, HISTORY_LOTS), champion, anchor)
    stored = _f1(test, _lots(0, policy), test.right[:, _lots(0, policy)][..., 1].sum(axis=(1, 2)))
    shape = (NIGHTS, runs)
    years = Years(np.zeros(shape), np.zeros(shape, np.bool_), np.zeros(shape, np.bool_), np.zeros(shape, np.int64))
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
        years.champion[night - 1] = champion.quality(today)[:, 0]
        years.promoted[night - 1], years.lost[night - 1] = promoted, promoted & (gain < -MATTERS)
        years.age[night - 1] = tonight.champion_nights
    return years


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
