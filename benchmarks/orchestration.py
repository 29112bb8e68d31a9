"""What orchestration adds to a night: seconds by Prefect against `--no-prefect`, and by our own bookkeeping.

    python -m benchmarks.orchestration [--rounds N] [--only server temporary fresh]

Runs the same night of the sample pipeline with a tiny model again and again, each by `nightgate run` in a process and a
copy of a home of its own, in turns whose order rotates from round to round. What is work, the night's own log says.
Ends with 1 when a bound does not hold. Some twelve minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import Neighbours, description, say
from benchmarks.nights import NightError, Nights, Spent, running_server
from benchmarks.pairing import Median, difference

ROUNDS = 6
BARE = "bare"


@dataclass(frozen=True)
class Variant:
    name: str
    title: str
    bound: float | None
    """Seconds that it may add to a bare night."""


VARIANTS = (
    Variant(BARE, "`--no-prefect`", None),
    Variant("server", "with a server that runs", 8),
    Variant("temporary", "with a temporary server", 20),
    Variant("fresh", "with a temporary server in a fresh Prefect home", 40),
)
OWN_BOUND = 2.0
"""Seconds of a bare night outside its work."""


@dataclass(frozen=True)
class Finding:
    """One bound, and what was found against it."""

    title: str
    night: float
    """Median seconds of the whole night."""
    found: Median
    bound: float

    @property
    def holds(self) -> bool:
        return self.found.median <= self.bound


def findings(nights: dict[str, list[Spent]]) -> list[Finding]:
    """Each bound that was measured: a variant's night less the bare one of the same round, and the bare one's own."""
    bare = nights[BARE]
    found = []
    for variant in VARIANTS:
        if variant.bound is not None and variant.name in nights:
            walls = [night.wall for night in nights[variant.name]]
            added = difference([night.wall for night in bare], walls)
            found.append(Finding(variant.title, statistics.median(walls), added, variant.bound))
    own = difference([0.0] * len(bare), [night.own for night in bare])
    wall = statistics.median(night.wall for night in bare)
    return [*found, Finding("our own bookkeeping, of the night without Prefect", wall, own, OWN_BOUND)]


def markdown(nights: dict[str, list[Spent]], facts: dict[str, str]) -> str:
    """The table of bounds, and the facts of the run."""
    lines = ["| | whole night, s | added, s | bound, s | holds |", "|---|---|---|---|---|"]
    for finding in findings(nights):
        holds = "yes" if finding.holds else "**NO**"
        lines.append(f"| {finding.title} | {finding.night:.1f} | {finding.found} | {finding.bound:g} | {holds} |")
    return "\n".join([*lines, "", *(f"- {name}: {value}" for name, value in facts.items())])


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every bound holds, 1 when one does not or a night failed."""
    options = _options(arguments)
    scratch = Path(tempfile.mkdtemp(prefix="nightgate-benchmark-"))
    try:
        nights, facts = _measure(options, scratch)
    except NightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(markdown(nights, facts))
    return verdict(nights)


def verdict(nights: dict[str, list[Spent]]) -> int:
    """The exit code; each bound that does not hold is named."""
    broken = [finding for finding in findings(nights) if not finding.holds]
    for finding in broken:
        print(
            f"FAILED: {finding.title}: {finding.found.median:.1f} s, the bound is {finding.bound:g} s", file=sys.stderr
        )
    return 1 if broken else 0


def _measure(options: argparse.Namespace, scratch: Path) -> tuple[dict[str, list[Spent]], dict[str, str]]:
    """Variant to its nights, in the order of the rounds, and the facts of the run."""
    chosen = [variant for variant in VARIANTS if variant.name in {BARE, *options.only}]
    nights = Nights(scratch)
    say("a champion, in a home of its own")
    nights.prepare()
    measured: dict[str, list[Spent]] = {variant.name: [] for variant in chosen}
    with running_server(scratch / "server") if "server" in measured else nullcontext("") as url:

        def night(name: str, turn: int) -> Spent:
            if name == BARE:
                return nights.run(["--no-prefect"], {})
            environment = {"PREFECT_HOME": str(scratch / (f"fresh-{turn}" if name == "fresh" else "prefect"))}
            return nights.run([], environment | ({"PREFECT_API_URL": url} if name == "server" else {}))

        if "temporary" in measured:
            say("a first temporary server, which makes the Prefect home")
            night("temporary", 0)
        neighbours = Neighbours()
        for turn in range(options.rounds):
            at = turn % len(chosen)
            for variant in chosen[at:] + chosen[:at]:
                found = night(variant.name, turn)
                measured[variant.name].append(found)
                say(f"round {turn + 1} of {options.rounds}: {variant.title}: {found.wall:.1f} s")
        return measured, {**description("prefect", "torch"), "other processes": str(neighbours)}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.orchestration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [variant.name for variant in VARIANTS if variant.name != BARE]
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="paired rounds")
    parser.add_argument("--only", nargs="*", choices=names, default=names, help="these, beside the night without")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
