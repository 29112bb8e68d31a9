"""What orchestration adds to a night: seconds by Prefect against `--no-prefect`, and by our own bookkeeping.

    python -m benchmarks.orchestration [--rounds N] [--pipeline FILE] [--out FOLDER]

Runs the same night of a pipeline again and again, each by `nightgate run` in a process of its own and from a copy of
the same home, in turns whose order rotates from round to round: without Prefect, with a server that runs, with a
temporary server, and with a temporary server in a fresh Prefect home. The model is so small that there is little
work; what is work, the night's own log says. Exit 1 when a bound does not hold. Some twelve minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.nights import NightError, Nights, Spent, running_server, write_pipeline
from benchmarks.pairing import Median, difference

ROUNDS = 6
"""The fewest that give an interval of 95 %."""
BARE = "bare"
BUSY = 0.05
"""A share of the cores in other processes' hands that is worth a warning."""


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


@dataclass
class Results:
    machine: dict[str, str]
    nights: dict[str, list[Spent]] = field(default_factory=dict)
    """Variant to its nights, in the order of the rounds."""
    seconds: float = 0.0


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


def markdown(results: Results) -> str:
    """The tables, and what they mean."""
    lines = [f"- {name}: {value}" for name, value in results.machine.items()]
    lines += ["", "| | whole night, s | added, s | bound, s | holds |", "|---|---|---|---|---|"]
    for finding in findings(results.nights):
        holds = "yes" if finding.holds else "**NO**"
        lines.append(f"| {finding.title} | {finding.night:.1f} | {finding.found} | {finding.bound:g} | {holds} |")
    lines += ["", "Where the seconds outside the work go (medians):", ""]
    lines += ["| night | before the training | with its epochs | until the scoring | after it | work |"]
    lines += ["|---|---|---|---|---|---|"]
    for variant in VARIANTS:
        nights = results.nights.get(variant.name)
        if nights:
            parts = ("before", "dealing", "between", "after", "work")
            cells = [f"{statistics.median(getattr(night, part) for night in nights):.2f}" for part in parts]
            lines.append(f"| {variant.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + _LEGEND


_LEGEND = """\
- added: median over the rounds of the night less the night without Prefect of the same round, with the interval that
  covers their true median with at least 95 %, or with the share it names.
- work: the lives of the training, scoring and serving processes, the reading of the source and the gate's statistics.
  The time in which this process deals with an epoch that the training process reported counts as ours, although the
  training goes on meanwhile.
- our own bookkeeping: all the rest of a night without Prefect, from the start of the interpreter to its end.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every bound holds, 1 when one does not or a night failed."""
    options = _options(arguments)
    scratch = Path(tempfile.mkdtemp(prefix="nightgate-benchmark-"))
    try:
        results = _measure(options, scratch)
    except NightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    text = markdown(results)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "orchestration.md").write_text(text, encoding="utf-8")
    (options.out / "orchestration.json").write_text(json.dumps(asdict(results), indent=1), encoding="utf-8")
    print(text)
    return verdict(results.nights)


def verdict(nights: dict[str, list[Spent]]) -> int:
    """The exit code; each bound that does not hold is named."""
    broken = [finding for finding in findings(nights) if not finding.holds]
    for finding in broken:
        print(
            f"FAILED: {finding.title}: {finding.found.median:.1f} s, the bound is {finding.bound:g} s", file=sys.stderr
        )
    return 1 if broken else 0


def _measure(options: argparse.Namespace, scratch: Path) -> Results:
    began = time.monotonic()
    chosen = [variant for variant in VARIANTS if variant.name in {BARE, *options.only}]
    names = {variant.name for variant in chosen}
    nights = Nights(options.pipeline or write_pipeline(scratch), scratch)
    say("a champion, in a home of its own")
    nights.prepare()
    results = Results({"versions": ", ".join(f"{name} {version(name)}" for name in ("prefect", "torch"))})
    results.machine["processor"] = f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"

    def night(name: str, turn: int) -> Spent:
        if name == BARE:
            return nights.run(["--no-prefect"], {})
        folder = scratch / (f"fresh-{turn}" if name == "fresh" else "prefect")
        environment = {"PREFECT_HOME": str(folder)}
        return nights.run([], environment | ({"PREFECT_API_URL": url} if name == "server" else {}))

    def rounds() -> None:
        if "temporary" in names:
            say("a first temporary server, which makes the Prefect home")
            night("temporary", 0)
        neighbours = _Neighbours()
        for turn in range(options.rounds):
            for variant in chosen[turn % len(chosen) :] + chosen[: turn % len(chosen)]:
                found = night(variant.name, turn)
                results.nights.setdefault(variant.name, []).append(found)
                say(f"round {turn + 1} of {options.rounds}: {variant.title}: {found.wall:.1f} s")
        results.machine["other processes"] = neighbours.in_words()

    url = ""
    if "server" in names:
        say("a Prefect server")
        with running_server(scratch / "server") as url:
            rounds()
    else:
        rounds()
    results.seconds = time.monotonic() - began
    results.machine["the run took"] = f"{results.seconds / 60:.1f} minutes"
    return results


class _Neighbours:
    """How much of the cores went to others than this run's processes, of which the server is one."""

    def __init__(self) -> None:
        self._began, self._counts_then = time.monotonic(), self._counts()

    def in_words(self) -> str:
        (busy, own), (busy_then, own_then) = self._counts(), self._counts_then
        cores = (time.monotonic() - self._began) * (psutil.cpu_count() or 1)
        share = max(0.0, (busy - busy_then) - (own - own_then)) / max(cores, 1e-9)
        warning = ": the figures are disturbed, run it again on a quiet machine" if share > BUSY else ""
        return f"took {share:.0%} of the cores meanwhile{warning}"

    def _counts(self) -> tuple[float, float]:
        times = psutil.cpu_times()
        used = [psutil.Process().cpu_times()]
        # Of a server that runs; what the nights used is in the count of children that have ended.
        used += [child.cpu_times() for child in psutil.Process().children(recursive=True)]
        own = sum(one.user + one.system + one.children_user + one.children_system for one in used)
        return times.user + times.system + times.nice, own


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.orchestration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [variant.name for variant in VARIANTS if variant.name != BARE]
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="paired rounds; 6 or more for 95 %% intervals")
    parser.add_argument("--only", nargs="*", choices=names, default=names, help="these, beside the night without")
    parser.add_argument("--pipeline", type=Path, help="a pipeline file, instead of a small one made for the purpose")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where results are written")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
