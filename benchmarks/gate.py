"""Whether the gate keeps what it promises over years: simulated nights under five policies in six worlds.

    python -m benchmarks.gate [--runs N] [--rows N] [--margin F1] [--refresh-after NIGHTS] [--quick]

Hundreds of years of each policy in each world, `ours` by the gate's own rules (`nightgate.gate.statistics`) under the
default `[gate]`. Exit 1 when a promise is not kept; each is named. docs/gate.md says what is assumed, and
tests/gate/test_trials.py holds what single decisions promise.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from benchmarks.gate_worlds import BASE, MATTERS, WORLDS
from benchmarks.gate_years import POLICIES, Summary, average_candidate, summary
from benchmarks.machine import say
from nightgate import config

BY_NAME = {world.name: world for world in WORLDS}
DRIFTING = ("drift", "staleness")
"""Worlds in which what a champion knows goes out of date."""


@dataclass(frozen=True)
class Promise:
    title: str
    found: str
    bound: str
    holds: bool


def promises(years: Sequence[Summary]) -> Iterator[Promise]:
    """Each, with what was found. NaN keeps none."""
    ours = {year.world: year for year in years if year.policy == "ours"}
    for world, year in ours.items():
        title = f"{BY_NAME[world].title}: promotions that lose over {100 * MATTERS:g} points"
        yield Promise(title, f"{year.lost:.1%}", "10 %", year.lost <= 0.10)
    for world in DRIFTING:
        if world in ours:
            ahead = 100 * (ours[world].mean - float(average_candidate(BY_NAME[world]).mean()))
            title = f"{BY_NAME[world].title}: champion's mean, above that of tonight's average candidate"
            yield Promise(title, f"{ahead:+.2f} points", "at least 0", ahead >= 0)
    if "decay" in ours:
        curve = ours["decay"].curve
        fallen = 100 * (max(BASE, *curve) - curve[-1])
        yield Promise("silent decay: champion's fall from its best night", f"{fallen:.2f} points", "1", fallen <= 1)


def markdown(years: Sequence[Summary]) -> str:
    """The promises, then the years."""
    lines = ["| | found | bound | holds |", "|---|---|---|---|"]
    for one in promises(years):
        lines.append(f"| {one.title} | {one.found} | {one.bound} | {'yes' if one.holds else '**NO**'} |")
    lines += ["", f"| | mean F1 | final F1 | promotions a year | lost over {100 * MATTERS:g} points | champion's age |"]
    lines += ["|---|---|---|---|---|---|"]
    titles = {policy.name: policy.title for policy in POLICIES}
    for at, year in enumerate(years):
        if at == 0 or years[at - 1].world != year.world:
            average = 100 * average_candidate(BY_NAME[year.world])
            title = f"**{BY_NAME[year.world].title}**: average candidate"
            lines.append(f"| {title} | {average.mean():.2f} | {average[-1]:.2f} | | | |")
        lines.append(
            f"| {titles[year.policy]} | {100 * year.mean:.2f} | {100 * year.final:.2f} | {year.promotions:.1f} | "
            f"{year.lost:.1%} | {year.age:.0f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every promise is kept, 1 when one is not."""
    options = _options(arguments)
    began = time.monotonic()
    worlds = DRIFTING if options.quick else tuple(BY_NAME)
    gate = config.Gate(margin=options.margin, refresh_after=options.refresh_after)
    # The workers import numpy anew: each is one of as many as there are cores, and needs no threads of its own.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    years = []
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = [
            pool.submit(summary, world, policy.name, options.rows, options.runs, gate, 1)
            for world in worlds
            for policy in POLICIES
        ]
        for number, year in enumerate(pending, 1):
            years.append(year.result())
            say(f"{number} of {len(pending)}: {years[-1].world}, {years[-1].policy}")
    minutes = (time.monotonic() - began) / 60
    print(f"policy = {gate.policy!r}, margin = {gate.margin:g}, refresh_after = {gate.refresh_after}; {options.rows:,}")
    print(f"test rows in the window, {options.runs:,} years of each policy; {minutes:.1f} minutes\n")
    print(markdown(years))
    return verdict(years)


def verdict(years: Sequence[Summary]) -> int:
    """The exit code; each promise that is not kept is named."""
    broken = [one for one in promises(years) if not one.holds]
    for one in broken:
        print(f"FAILED: {one.title}: {one.found}, the bound is {one.bound}", file=sys.stderr)
    return 1 if broken else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gate = config.Gate()
    parser.add_argument("--runs", type=int, default=400, help="simulated years of each policy in each world")
    parser.add_argument("--rows", type=int, default=5000, help="test rows in the window; the promises are about 5,000")
    parser.add_argument("--margin", type=float, default=gate.margin, help="another than the default, in F1")
    parser.add_argument("--refresh-after", type=int, default=gate.refresh_after, help="another than the default")
    parser.add_argument("--quick", action="store_true", help="20 years in two worlds: a smoke test")
    options = parser.parse_args(arguments)
    if options.quick:
        options.runs = min(options.runs, 20)
    if options.runs < 1 or options.rows < 100:
        parser.error("--runs is at least 1, --rows at least 100")
    return options


if __name__ == "__main__":
    sys.exit(main())
