"""The measurements of a run as tables."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from benchmarks.pairing import ratio
from benchmarks.plot import Bar, svg
from benchmarks.variants import BEST, BY_NAME, EFFECT_OF_WINS, OURS, REFERENCE, VARIANTS
from benchmarks.workload import BATCH, EPOCHS, STEPS_PER_EPOCH, VALIDATION_ROWS

MB = 1e6
DEFAULT_SAVES = EPOCHS * STEPS_PER_EPOCH // 500
"""Of `save_strategy='steps'` with its default of 500 steps."""


@dataclass
class Measured:
    """One variant: seconds in the order of the rounds."""

    start_seconds: float
    facts: dict[str, Any]
    steps: dict[str, list[float]] = field(default_factory=dict)
    """Table to seconds per step."""
    evaluations: list[float] = field(default_factory=list)
    """Seconds per 1,000 rows."""
    memory: int = 0
    save: dict[str, float] = field(default_factory=dict)


@dataclass
class Results:
    shape: str
    device: str
    machine: dict[str, str]
    workload: dict[str, str]
    """Table to its rows in words."""
    flops: dict[str, float]
    """Table to the least arithmetic of a step."""
    parity: list[dict[str, Any]]
    engine: str
    ceiling: dict[str, list[float]] = field(default_factory=dict)
    """Precision to FLOP/s, round by round."""
    variants: dict[str, Measured] = field(default_factory=dict)
    seconds: float = 0.0

    def precision(self, name: str) -> str:
        """What a variant computes in."""
        variant = BY_NAME[name]
        if self.device == "cpu" or not variant.is_tuned:
            return "fp32"
        return str(self.variants[name].facts.get("precision", "bf16"))


def parity_table(findings: list[dict[str, Any]]) -> str:
    rows = [
        f"| {finding['what']} | {finding['found']:.2g} | {finding['limit']:g} | {'yes' if passed(finding) else 'NO'} |"
        for finding in findings
    ]
    return "\n".join(["| gate | found | allowed | passed |", "|---|---|---|---|", *rows])


def passed(finding: dict[str, Any]) -> bool:
    """NaN does not pass."""
    return bool(finding["found"] <= finding["limit"])


def markdown(results: Results) -> str:
    """Everything that the run found."""
    device = {"cpu": "the CPU", "cuda": "one GPU"}[results.device]
    parts = [
        f"## Shape `{results.shape}` on {device}",
        "\n".join(f"- {name}: {value}" for name, value in results.machine.items()),
        parity_table(results.parity),
        f"Compared against: {results.engine}.",
    ]
    for number, (table, facts) in enumerate(results.workload.items()):
        if any(table in measured.steps for measured in results.variants.values()):
            parts += [f"### Step, {table}", f"Lengths: {facts}.", _steps(results, table, with_wins=number == 0)]
    if any(measured.evaluations for measured in results.variants.values()):
        parts += ["### Evaluation and memory", _evaluation(results)]
    if OURS in results.variants and results.variants[OURS].save:
        parts += ["### Checkpoints of a night of 5 epochs", _checkpoints(results)]
        parts += ["### The whole job at the published recipe, computed", _whole_job(results)]
    parts.append(_legend(results))
    return "\n\n".join(parts) + "\n"


def picture(results: Results) -> str:
    """Ratio per win in the first table."""
    table = next(iter(results.workload))
    found = {name: measured for name, measured in results.variants.items() if table in measured.steps}
    reference = found[REFERENCE].steps[table]
    bars = [
        Bar(
            BY_NAME[name].title.removesuffix(" (reference)"),
            ratio(reference, measured.steps[table]),
            BY_NAME[name].side == "engine",
        )
        for name, measured in found.items()
    ]
    rounds = len(reference)
    return svg(
        f"Training step, shape {results.shape}: times faster than the stock Trainer with dynamic padding",
        f"Each blue row adds one win to the row above it. Median of {rounds} paired rounds, 95 % interval. "
        f"{results.machine.get('processor', '')}",
        bars,
    )


def _steps(results: Results, table: str, *, with_wins: bool) -> str:
    found = {name: measured for name, measured in results.variants.items() if table in measured.steps}
    reference = found[REFERENCE].steps[table]
    head = ["variant", "ms per step", "x reference", "x stock at its best", "% of ceiling"]
    if with_wins:
        head.insert(3, "x row above")
    lines = [_row(head), _row(["---"] * len(head))]
    above = ""
    for name, measured in found.items():
        seconds = measured.steps[table]
        median = statistics.median(seconds)
        is_win = name in EFFECT_OF_WINS and above in EFFECT_OF_WINS
        cells = [
            BY_NAME[name].title,
            f"{1000 * median:,.0f}" if median >= 0.1 else f"{1000 * median:,.2f}",
            str(ratio(reference, seconds)) if name != REFERENCE else "1",
            str(ratio(found[BEST].steps[table], seconds)) if BEST in found and name != BEST else "",
            _of_ceiling(results, table, name, median),
        ]
        if with_wins:
            cells.insert(3, str(ratio(found[above].steps[table], seconds)) if is_win else "")
        lines.append(_row(cells))
        above = name
    return "\n".join(lines)


def _evaluation(results: Results) -> str:
    found = results.variants
    reference, best = found[REFERENCE].evaluations, found[BEST].evaluations if BEST in found else []
    head = ["variant", "ms per 1,000 rows", "x reference", "x stock at its best", "peak memory, MB"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, measured in found.items():
        seconds = measured.evaluations
        to_best = str(ratio(best, seconds)) if best and seconds and name != BEST else ""
        to_reference = str(ratio(reference, seconds)) if seconds else ""
        lines.append(
            _row(
                [
                    BY_NAME[name].title,
                    f"{1000 * statistics.median(seconds):,.0f}" if seconds else "as the row above",
                    "1" if name == REFERENCE else to_reference,
                    to_best,
                    f"{measured.memory / MB:,.0f}",
                ]
            )
        )
    return "\n".join(lines)


def _checkpoints(results: Results) -> str:
    stock, ours = results.variants[REFERENCE].save["checkpoint"], results.variants[OURS].save
    reference = EPOCHS * stock
    rows = [
        (
            f"stock, as it comes: every 500 steps, all {DEFAULT_SAVES} kept",
            DEFAULT_SAVES * stock,
            DEFAULT_SAVES * stock,
        ),
        ("stock, every epoch, all kept (reference)", reference, reference),
        ("stock at its best: every epoch, save_total_limit=1", reference, stock),
        ("ours", (EPOCHS - 1) * ours["checkpoint"] + ours["finished"], ours["finished"]),
    ]
    lines = [
        _row(["", "written, MB", "fewer by", "left after it, MB", "fewer by"]),
        _row(["---"] * 5),
        *(
            _row(
                [
                    what,
                    f"{written / MB:,.0f}",
                    f"{reference / written:.1f}x",
                    f"{left / MB:,.0f}",
                    f"{reference / left:.1f}x",
                ]
            )
            for what, written, left in rows
        ),
    ]
    return "\n".join(lines)


def _whole_job(results: Results) -> str:
    table = next(iter(results.workload))
    head = ["variant", "start-up, s", "steps, h", "evaluation, h", "saving, h", "all, h", "x reference"]
    lines = [_row(head), _row(["---"] * len(head))]
    jobs = {name: _job(results, name, table) for name in (REFERENCE, BEST, OURS) if name in results.variants}
    for name, seconds in jobs.items():
        hours = [f"{value / 3600:.3f}" for value in (*seconds[1:], sum(seconds))]
        faster = sum(jobs[REFERENCE]) / sum(seconds)
        lines.append(_row([BY_NAME[name].title, f"{seconds[0]:.1f}", *hours, f"{faster:.2f}"]))
    return "\n".join(lines)


def _job(results: Results, name: str, table: str) -> tuple[float, float, float, float]:
    """Seconds of start-up, steps, evaluation and saving."""
    measured = results.variants[name]
    if name == OURS:
        saving = (EPOCHS - 1) * measured.save["blocked_seconds"] + measured.save["finish_seconds"]
    else:
        saving = EPOCHS * results.variants[REFERENCE].save["seconds"]
    return (
        measured.start_seconds,
        EPOCHS * STEPS_PER_EPOCH * statistics.median(measured.steps[table]),
        EPOCHS * VALIDATION_ROWS / 1000 * statistics.median(measured.evaluations),
        saving,
    )


def _of_ceiling(results: Results, table: str, name: str, seconds: float) -> str:
    ceiling = results.ceiling.get(results.precision(name))
    if not ceiling:
        return ""
    return f"{results.flops[table] / seconds / statistics.median(ceiling):.1%}"


def _legend(results: Results) -> str:
    lines = [
        f"- {variant.title}: {variant.what}."
        for variant in VARIANTS
        if variant.name in results.variants and (variant.side == "stock" or variant.name in EFFECT_OF_WINS)
    ]
    ceilings = ", ".join(
        f"{statistics.median(found) / 1e9:,.0f} GFLOP/s in {kind}" for kind, found in results.ceiling.items()
    )
    threads = ", ".join(
        f"{BY_NAME[name].title}: {measured.facts['threads']}" for name, measured in results.variants.items()
    )
    facts = results.variants[OURS].facts
    unused = [what for what, name in (("trimming", "trimmed"), ("deferring", "deferred")) if not facts[name]]
    if unused:
        lines.append(
            f"- The engine does without {' and '.join(unused)} here, since it would not pay: those rows repeat."
        )
    return "\n".join(
        [
            *lines,
            f"- ms per step: median over rounds of the round's mean, loading of the batch included. Batches of {BATCH} "
            "rows; all variants but the grouped one take the same ones.",
            "- ms per 1,000 rows: ours with its share of settling the deferred rows once in an evaluation of "
            f"{VALIDATION_ROWS:,} rows.",
            "- x: median of the rounds' ratios, with the interval that covers their true median with at least 95 %.",
            "- % of ceiling: least arithmetic of the step (no padding, last layer for first tokens) over its time, of "
            f"the rate of large matrix products, measured in every round: {ceilings}.",
            f"- whole job: {EPOCHS} x {STEPS_PER_EPOCH:,} steps and {EPOCHS} x {VALIDATION_ROWS:,} evaluated rows, "
            "multiplied out from the medians above and from what start-up and one save took; tokenising is in no side. "
            "Saving is what holds the training up.",
            f"- threads: {threads}.",
        ]
    )


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
