"""Results of a benchmark: values with their limits, medians of paired rounds, and facts about the machine."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import NamedTuple

import psutil
from scipy import stats


@dataclass(frozen=True)
class Result:
    """A value, and its limit if it has one."""

    what: str
    found: str
    allowed: str = ""
    passed: bool | None = None
    """None without a limit."""


def at_most(what: str, found: float, limit: float) -> Result:
    """Passes where `found` is at most `limit`; NaN fails."""
    return Result(what, f"{found:.3g}", f"at most {limit:g}", bool(found <= limit))


def exit_code(results: Iterable[Result]) -> int:
    """1 if a result failed, each of which is printed to standard error; else 0."""
    failed = [result for result in results if result.passed is False]
    for result in failed:
        print(f"FAILED: {result.what}: {result.found}, allowed: {result.allowed or '-'}", file=sys.stderr)
    return 1 if failed else 0


def results_table(results: Iterable[Result]) -> str:
    words = {True: "ok", False: "**FAILED**", None: ""}
    rows = [(result.what, result.found, result.allowed, words[result.passed]) for result in results]
    return table(["what", "found", "allowed", ""], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def facts_list(facts: Mapping[str, str]) -> str:
    """A list in Markdown."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


class Median(NamedTuple):
    """Median of all rounds, and the narrowest pair of rounds that encloses the true median with 95 %.

    Of n independent rounds those of rank k + 1 and n - k do, if a binomial of n tosses is at most k with 2.5 %. Of
    fewer than six the smallest and the largest are taken, which do so with less.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(reference: Sequence[float], other: Sequence[float]) -> Median:
    """How many times faster `other` is than `reference`: seconds of the same rounds, in the same order."""
    return median(slower / faster for slower, faster in zip(reference, other, strict=True))


def difference(reference: Sequence[float], other: Sequence[float]) -> Median:
    """How far `other` is above `reference`: values of the same rounds, in the same order."""
    return median(above - below for below, above in zip(reference, other, strict=True))


def median(values: Iterable[float]) -> Median:
    found = sorted(values)
    left_out = max(0, int(stats.binom.ppf(0.025, len(found), 0.5)) - 1)
    return Median(statistics.median(found), found[left_out], found[-1 - left_out])


def log(message: str) -> None:
    """Print progress to standard error: standard output is for the results."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def machine_facts(*packages: str) -> dict[str, str]:
    """Facts about this machine, to be taken before the measurement."""
    return {
        "machine": f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
        "load before the run": f"{psutil.getloadavg()[0]:.1f} (over 0.2, others disturb the figures)",
    }


def missing(device: str, **modules: str) -> str:
    """Describe a module (given as module=extras) or a GPU that is missing, with the remedy; '' if nothing is."""
    for module, extras in modules.items():
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: pip install -c constraints.txt '.[{extras}]'"
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return f"no GPU that this PyTorch ({torch.__version__}) can use: see docs/gpu.md, or try --device cpu"
    return ""


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser whose help has the module's docstring as it is."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"python -m benchmarks.{module}", description=description, formatter_class=formatter)
