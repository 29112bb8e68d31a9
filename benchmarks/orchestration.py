"""Seconds that orchestration adds to a night: Prefect against `--no-prefect`, and our own bookkeeping.

    python -m benchmarks.orchestration [--rounds N] [--only server temporary fresh]
    python -m benchmarks.orchestration --due 100 [--at-once 2]     # pipelines due at one minute: benchmarks.due_at_once

Runs the same night of the sample pipeline with a tiny model, each time by `nightgate run` in a process and a copy of a
home of its own, in turns whose order rotates from round to round. The night's own log shows how much of it is work.
Exits with 1 if a limit is exceeded. Some twelve minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from benchmarks import due_at_once
from benchmarks.nights import NightError, Nights, Spent, running_server
from benchmarks.results import (
    Result,
    difference,
    exit_code,
    facts_list,
    log,
    machine_facts,
    median,
    parser,
    results_table,
)

ROUNDS = 6
BARE = "bare"
LIMITS = {"server": 8.0, "temporary": 20.0, "fresh": 40.0}
"""Seconds that each may add to a night without Prefect."""
OWN_LIMIT = 2.0
"""Seconds of a night without Prefect outside its work."""
TITLES = {
    BARE: "`--no-prefect`",
    "server": "with a running server",
    "temporary": "with a temporary server",
    "fresh": "with a temporary server in a fresh Prefect home",
}


def results(nights: dict[str, list[Spent]]) -> list[Result]:
    """Each measured limit: seconds added to the bare night of the same round, and the bare night's own bookkeeping."""
    bare = [night.wall for night in nights[BARE]]
    added = {name: difference(bare, [night.wall for night in nights[name]]) for name in LIMITS if name in nights}
    found = [
        Result(f"{TITLES[name]}: added", f"{value} s", f"at most {LIMITS[name]:g} s", value.median <= LIMITS[name])
        for name, value in added.items()
    ]
    own = median(night.own for night in nights[BARE])
    what = f"{TITLES[BARE]}: our own bookkeeping"
    return [*found, Result(what, f"{own} s", f"at most {OWN_LIMIT:g} s", own.median <= OWN_LIMIT)]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all limits hold, 1 if one does not or a night failed."""
    options = _options(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="nightgate-benchmark-", ignore_cleanup_errors=True) as scratch:
            if options.due:
                facts = machine_facts("prefect")
                found, more = due_at_once.measure(Path(scratch), options.due, options.at_once)
                print(f"{results_table(found)}\n\n{facts_list({**facts, **more})}")
                return exit_code(found)
            nights, facts = _measure(options, Path(scratch))
    except NightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    walls = (f"{name} {statistics.median(night.wall for night in spent):.1f} s" for name, spent in nights.items())
    found = results(nights)
    print(f"{results_table(found)}\n\n{facts_list({**facts, 'whole nights, medians': ', '.join(walls)})}")
    return exit_code(found)


def _measure(options: argparse.Namespace, scratch: Path) -> tuple[dict[str, list[Spent]], dict[str, str]]:
    """Nights of each variant, in the order of the rounds, and facts of the run."""
    log("a champion, in a home of its own")
    nights = Nights(scratch)
    facts = machine_facts("prefect", "torch")
    order = [name for name in TITLES if name in {BARE, *options.only}]
    measured: dict[str, list[Spent]] = {name: [] for name in order}
    with running_server(scratch / "server") if "server" in measured else nullcontext("") as url:

        def night(name: str, turn: int) -> Spent:
            if name == BARE:
                return nights.run(["--no-prefect"], {})
            environment = {"PREFECT_HOME": str(scratch / (f"fresh-{turn}" if name == "fresh" else "prefect"))}
            return nights.run([], environment | ({"PREFECT_API_URL": url} if name == "server" else {}))

        if "temporary" in measured:
            log("a first temporary server, which makes the Prefect home")
            night("temporary", 0)
        for turn in range(options.rounds):
            order = [*order[1:], order[0]]
            for name in order:
                measured[name].append(night(name, turn))
                log(f"round {turn + 1} of {options.rounds}: {TITLES[name]}: {measured[name][-1].wall:.1f} s")
        return measured, facts


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    cli = parser("orchestration", __doc__)
    cli.add_argument("--rounds", type=int, default=ROUNDS, help="paired rounds")
    cli.add_argument("--only", nargs="*", choices=LIMITS, default=list(LIMITS), help="beside the night without")
    cli.add_argument("--due", type=int, default=0, metavar="N", help="measure N pipelines due at one minute instead")
    cli.add_argument("--at-once", type=int, default=2, metavar="N", help="so many of these may run at once")
    options = cli.parse_args(arguments)
    if min(options.rounds, options.at_once) < 1:
        cli.error("--rounds and --at-once are at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
