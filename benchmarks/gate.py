"""Simulated years of nights behind the gate, under five policies in six worlds, and the promises of the default one.

    python -m benchmarks.gate [--runs N] [--rows N] [--margin F1] [--refresh-after NIGHTS] [--quick]

Runs hundreds of years of each policy in each world; `ours` decides by `nightgate.gate.statistics` under the default
`[gate]`. Exits with 1 and names each promise that is not kept. docs/gate.md lists the assumptions;
tests/gate/test_trials.py has the promises about single decisions.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby

from benchmarks.gate_worlds import BASE, MATTERS, WORLDS
from benchmarks.gate_years import POLICIES, Summary, average_candidate, simulate
from benchmarks.results import Result, exit_code, log, parser, results_table, table
from nightgate.config.gate import Gate

BY_NAME = {world.name: world for world in WORLDS}
DRIFTING = ("drift", "staleness")
"""Worlds in which a champion goes out of date."""


def promises(years: Sequence[Summary]) -> Iterator[Result]:
    """The promises of the default policy; NaN keeps none."""
    ours = {year.world: year for year in years if year.policy == "ours"}
    for world, year in ours.items():
        what = f"{BY_NAME[world].title}: promotions that lose over {100 * MATTERS:g} points"
        yield Result(what, f"{year.lost:.1%}", "at most 10 %", year.lost <= 0.10)
    for world in DRIFTING:
        if world in ours:
            ahead = 100 * (ours[world].mean - float(average_candidate(BY_NAME[world]).mean()))
            what = f"{BY_NAME[world].title}: champion's mean, above that of tonight's average candidate"
            yield Result(what, f"{ahead:+.2f} points", "at least 0", ahead >= 0)
    if "decay" in ours:
        curve = ours["decay"].curve
        fallen = 100 * (max(BASE, *curve) - curve[-1])
        what = "silent decay: champion's fall from its best night"
        yield Result(what, f"{fallen:.2f} points", "at most 1", fallen <= 1)


def years_table(years: Sequence[Summary]) -> str:
    head = ["", "mean F1", "final F1", "promotions a year", f"lost over {100 * MATTERS:g} points", "champion's age"]
    titles = {policy.name: policy.title for policy in POLICIES}
    rows = []
    for world, group in groupby(years, lambda year: BY_NAME[year.world]):
        average = 100 * average_candidate(world)
        title = f"**{world.title}**: average candidate"
        rows.append((title, f"{average.mean():.2f}", f"{average[-1]:.2f}", "", "", ""))
        for year in group:
            f1 = f"{100 * year.mean:.2f}", f"{100 * year.final:.2f}"
            rows.append((titles[year.policy], *f1, f"{year.promotions:.1f}", f"{year.lost:.1%}", f"{year.age:.0f}"))
    return table(head, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every promise is kept, else 1."""
    options = _options(arguments)
    began = time.monotonic()
    worlds = DRIFTING if options.quick else tuple(BY_NAME)
    gate = Gate(margin=options.margin, refresh_after=options.refresh_after)
    # There is a worker for each core, so that each needs one thread.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    years = []
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = [
            pool.submit(simulate, world, policy.name, options.rows, options.runs, gate, 1)
            for world in worlds
            for policy in POLICIES
        ]
        for number, year in enumerate(pending, 1):
            years.append(year.result())
            log(f"{number} of {len(pending)}: {years[-1].world}, {years[-1].policy}")
    print(f"policy = {gate.policy!r}, margin = {gate.margin:g}, refresh_after = {gate.refresh_after}; {options.rows:,}")
    print(f"test rows in the window, {options.runs:,} years of each policy; {time.monotonic() - began:.0f} s\n")
    kept = list(promises(years))
    print(f"{results_table(kept)}\n\n{years_table(years)}")
    return exit_code(kept)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    cli = parser("gate", __doc__)
    gate = Gate()
    cli.add_argument("--runs", type=int, default=400, help="simulated years of each policy in each world")
    cli.add_argument("--rows", type=int, default=5000, help="test rows in the window; the promises are about 5,000")
    cli.add_argument("--margin", type=float, default=gate.margin, help="in F1, instead of the default")
    cli.add_argument("--refresh-after", type=int, default=gate.refresh_after, help="instead of the default")
    cli.add_argument("--quick", action="store_true", help="20 years in two worlds: a smoke test")
    options = cli.parse_args(arguments)
    if options.quick:
        options.runs = min(options.runs, 20)
    if options.runs < 1 or options.rows < 100:
        cli.error("--runs is at least 1, --rows at least 100")
    return options


if __name__ == "__main__":
    sys.exit(main())
