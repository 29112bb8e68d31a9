"""Whether the gate keeps what it promises: simulated years under five policies, and trials of single decisions.

    python -m benchmarks.gate [--runs N] [--repetitions N] [--average macro] [--margin F1] [--quick] [--out FOLDER]

Years: hundreds of runs of each policy in six worlds, `ours` by the gate's own rules (`nightgate.gate.statistics`)
under the default `[gate]`. Trials: coverage of the intervals on populations whose truth is known, false alarms, CPU
time of a decision. Exit 1 when a promise is not kept; each is named. docs/gate.md has the results.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.gate_coverage import CONFIDENCE, SHARES, Coverage, coverage
from benchmarks.gate_plot import picture
from benchmarks.gate_trials import agreement, called_superior, decision_seconds, slices_failed
from benchmarks.gate_worlds import BASE, MATTERS, WORLDS
from benchmarks.gate_years import POLICIES, Summary, average_candidate, summary
from nightgate import config

ROWS = (5000, 2000)
"""Test rows in the window; the promises are about the first."""
PER_GROUP = 25
"""Rows of a group where slices come in groups: 200 of them, of which the smallest slices have a handful."""
BY_NAME = {world.name: world for world in WORLDS}
DRIFTING = ("drift", "staleness")
"""Worlds in which what a champion knows goes out of date."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    worlds: tuple[str, ...]
    rows: tuple[int, ...]
    runs: int
    coverage_rows: tuple[int, ...]
    repetitions: int
    nights: int
    """Of slices, and of the comparison with the bootstrap."""
    timed: bool = True
    """Whether the time of a decision is measured: beside other work it says nothing."""


FULL = Size(tuple(BY_NAME), ROWS, runs=400, coverage_rows=(5000, 1000), repetitions=2000, nights=100)
QUICK = Size(DRIFTING, ROWS[:1], runs=20, coverage_rows=(1000,), repetitions=40, nights=3, timed=False)


@dataclass
class Results:
    size: Size
    gate: config.Gate
    years: list[Summary] = field(default_factory=list)
    coverage: list[Coverage] = field(default_factory=list)
    superior: float = 0.0
    """Share of exactly equal pairs called superior."""
    agreement: float = 0.0
    slices: float = 0.0
    grouped_slices: float = 0.0
    decision_seconds: float = 0.0
    seconds: float = 0.0

    def ours(self, world: str) -> Summary:
        """On the number of rows that the promises are about."""
        wanted = (world, "ours", ROWS[0])
        return next(found for found in self.years if (found.world, found.policy, found.rows) == wanted)


@dataclass(frozen=True)
class Promise:
    title: str
    found: str
    bound: str
    holds: bool


def promises(results: Results) -> Iterator[Promise]:
    """Each, with what was found. NaN keeps none."""
    found = results.superior
    yield Promise("of two equal models the second is called superior", f"{found:.1%}", "5 %", found <= 0.05)
    for world in results.size.worlds:
        lost = results.ours(world).lost
        title = f"{BY_NAME[world].title}: promotions that lose over {100 * MATTERS:g} points"
        yield Promise(title, f"{lost:.1%}", "10 %", lost <= 0.10)
    for world in DRIFTING:
        if world in results.size.worlds:
            ahead = 100 * (results.ours(world).mean - float(average_candidate(BY_NAME[world]).mean()))
            title = f"{BY_NAME[world].title}: champion's mean, above that of tonight's average candidate"
            yield Promise(title, f"{ahead:+.2f} points", "at least 0", ahead >= 0)
    if "decay" in results.size.worlds:
        curve = results.ours("decay").curve
        fallen = 100 * (max(BASE, *curve) - curve[-1])
        yield Promise("silent decay: champion's fall from its best night", f"{fallen:.2f} points", "1", fallen <= 1)
    for case in results.coverage:
        yield Promise(
            f"true coverage of {CONFIDENCE:.0%}: {in_words(case)}",
            f"{case.covered:.1%}"
            + (f" of {case.repetitions:,}" if case.repetitions != results.size.repetitions else ""),
            f"{CONFIDENCE - case.allowed:.1%} to {min(1.0, CONFIDENCE + case.allowed):.1%}",
            case.holds,
        )
    for found, which in ((results.slices, ""), (results.grouped_slices, f", rows in groups of {PER_GROUP}")):
        yield Promise(f"equal nights on which one of 40 slices fails{which}", f"{found:.1%}", "5 %", found <= 0.05)
    found = results.agreement
    yield Promise("nights decided here as by the bootstrap", f"{found:.1%}", "at least 98 %", found >= 0.98)
    if results.size.timed:
        took = results.decision_seconds
        yield Promise("CPU time of the bootstrap of one decision", f"{took:.2f} s", "0.5 s", took <= 0.5)


def in_words(case: Coverage) -> str:
    rows = "authors of 10 rows" if case.clustered else "single rows"
    return f"{case.average} {case.what}, {case.shares}, {case.rows:,} rows, {rows}"


def markdown(results: Results) -> str:
    """The promises, then a table of the years for each number of rows."""
    size, gate = results.size, results.gate
    parts = [
        f'`policy = "{gate.policy}"`, `margin = {gate.margin:g}`, `refresh_after = {gate.refresh_after}`; '
        f"{size.runs:,} runs of each policy, {size.repetitions:,} repetitions of each coverage; "
        f"it took {results.seconds / 60:.1f} minutes.",
        "\n".join(
            [
                "| | found | bound | holds |",
                "|---|---|---|---|",
                *(
                    f"| {one.title} | {one.found} | {one.bound} | {'yes' if one.holds else '**NO**'} |"
                    for one in promises(results)
                ),
            ]
        ),
    ]
    for rows in size.rows:
        parts += [f"### {rows:,} test rows in the window", _years(results, rows)]
    return "\n\n".join(parts) + "\n"


def _years(results: Results, rows: int) -> str:
    lines = [
        f"| | mean F1 | final F1 | promotions a year | lost over {100 * MATTERS:g} points | age of champion, nights |",
        "|---|---|---|---|---|---|",
    ]
    for name in results.size.worlds:
        world = BY_NAME[name]
        average = 100 * average_candidate(world)
        lines.append(f"| **{world.title}**: average candidate | {average.mean():.2f} | {average[-1]:.2f} | | | |")
        for policy in POLICIES:
            found = next(one for one in results.years if (one.world, one.policy, one.rows) == (name, policy.name, rows))
            lines.append(
                f"| {policy.title} | {100 * found.mean:.2f} | {100 * found.final:.2f} | {found.promotions:.1f} | "
                f"{found.lost:.1%} | {found.age:.0f} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every promise is kept, 1 when one is not."""
    options = _options(arguments)
    results = measure(options.size, options.gate)
    text = markdown(results)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gate.md").write_text(text, encoding="utf-8")
    measured = asdict(results) | {"gate": options.gate.model_dump()}
    (options.out / "gate.json").write_text(json.dumps(measured, indent=1), encoding="utf-8")
    drawn = picture([found for found in results.years if found.rows == ROWS[0]])
    (options.out / "gate-simulation.svg").write_text(drawn.svg + "\n", encoding="utf-8")
    print(text)
    return verdict(results)


def verdict(results: Results) -> int:
    """The exit code; each promise that is not kept is named."""
    broken = [one for one in promises(results) if not one.holds]
    for one in broken:
        print(f"FAILED: {one.title}: {one.found}, the bound is {one.bound}", file=sys.stderr)
    return 1 if broken else 0


def measure(size: Size, gate: config.Gate) -> Results:
    began = time.monotonic()
    results = Results(size, gate)
    # Alone, before the workers: what it measures is time.
    if size.timed:
        results.decision_seconds = decision_seconds(ROWS[0])
    # The workers import numpy anew: each is one of as many as there are cores, and needs no threads of its own.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:

        def later(function: Callable[..., Any], *given: Any) -> Future[Any]:
            return pool.submit(function, *given)

        superior = later(called_superior, 20_000, ROWS[0], 1)
        years = [
            later(summary, world, policy.name, rows, size.runs, gate, 1)
            for rows in size.rows
            for world in size.worlds
            for policy in POLICIES
        ]
        covered = [
            later(coverage, gate.average, shares, rows, clustered, size.repetitions, 1)
            for rows in size.coverage_rows
            for shares in SHARES
            for clustered in (True, False)
        ]
        slices, agreed = later(slices_failed, size.nights, ROWS[0], 1), later(agreement, size.nights, ROWS[0], 1)
        grouped = later(slices_failed, 4 * size.nights, ROWS[0], 2, PER_GROUP)
        results.superior = superior.result()
        for number, year in enumerate(years, 1):
            results.years.append(year.result())
            _say(f"year {number} of {len(years)}: {results.years[-1].world}, {results.years[-1].policy}")
        for number, cases in enumerate(covered, 1):
            results.coverage += cases.result()
            _say(f"coverage {number} of {len(covered)}: {in_words(results.coverage[-1])}")
        results.slices, results.agreement = slices.result(), agreed.result()
        results.grouped_slices = grouped.result()
    results.seconds = time.monotonic() - began
    return results


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    gate = config.Gate()
    parser.add_argument("--runs", type=int, help=f"simulated years of each policy in each world; {FULL.runs}")
    parser.add_argument("--repetitions", type=int, help=f"samples behind each coverage; {FULL.repetitions}")
    parser.add_argument("--average", choices=["weighted", "macro"], default=gate.average, help="of the coverages")
    parser.add_argument("--margin", type=float, default=gate.margin, help="another than the default, in F1")
    parser.add_argument("--refresh-after", type=int, default=gate.refresh_after, help="another than the default")
    parser.add_argument("--quick", action="store_true", help="two worlds, little of everything, no time, for a test")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where results are written")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    given = {"runs": options.runs, "repetitions": options.repetitions}
    if any(value is not None and value < 1 for value in given.values()):
        parser.error("--runs and --repetitions are at least 1")
    options.size = replace(size, **{name: value for name, value in given.items() if value is not None})
    options.gate = config.Gate(average=options.average, margin=options.margin, refresh_after=options.refresh_after)
    return options


if __name__ == "__main__":
    sys.exit(main())
