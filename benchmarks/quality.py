"""F1 of whole trainings: bf16 against fp32 with the same dropout masks, and the engine against the stock `Trainer`.

    python -m benchmarks.quality --data reviews.parquet --results quality.jsonl

Each seed trains the same recipe on the same batches with dropout: the engine in fp32 and in bf16, and for the first
`--stock-seeds` seeds the stock Trainer in fp32, whose masks are its own. All other rows are scored, each side in the
precision that it was trained in. Every finished training is a line of the journal: a second start goes on, and
`--only` trains some sides, for several processes at once. Needs the extras `bench` and `demo`; works offline.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, Trainer

from benchmarks import reviews, stock
from benchmarks import workload as work
from benchmarks.results import Result, at_most, exit_code, facts_list, log, machine_facts, parser, results_table, table
from benchmarks.reviews import SCALE, SCORES, Journal, Reviews, interval
from benchmarks.workload import BATCH, L6, Rows
from nightgate.config.training import Training
from nightgate.cpu_threads import pick_threads
from nightgate.engine import base_model_folder, base_models
from nightgate.training.scoring import logits_of

SIDES = ("fp32", "bf16", "trainer")
POINTS = 0.3
"""Largest difference of F1 in points that its interval may reach."""
FEWEST = 3
"""Seeds from which on limits hold: the interval of two reaches twelve standard errors."""
COMPARED_STEPS = 20
SAME_MASKS = 1e-3
"""Largest mean difference between the losses of two precisions: the same masks left 1e-4, others 4e-3."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 if a limit is exceeded."""
    options = _options(arguments)
    base_models.quiet_transformers()
    torch.set_num_threads(options.threads or pick_threads()[0])
    facts = machine_facts("torch", "transformers")
    rows = reviews.read(
        options.data, text=options.text, label=options.label, category="", max_length=options.max_length
    )
    train = np.arange(options.rows // BATCH * BATCH)
    scored = np.arange(len(train), len(rows.workload.labels))[: options.scored or None]
    with tempfile.TemporaryDirectory(prefix="nightgate-benchmark-") as scratch:
        chosen = {"rows": len(train), "epochs": options.epochs, "max_length": options.max_length, "scored": len(scored)}
        journal = Journal(options.results or Path(scratch) / "journal.jsonl", {"reviews": rows.name, **chosen})
        for seed in range(1, options.seeds + 1):
            for side in SIDES[: 3 if seed <= options.stock_seeds else 2]:
                if side in options.only and not journal.lines(side=side, seed=seed):
                    log(f"seed {seed}: {side}")
                    recipe = Training(
                        base_model=L6, epochs=options.epochs, max_length=options.max_length, seed=seed, batch_size=BATCH
                    )
                    train_side = _stock if side == "trainer" else _ours
                    began = time.monotonic()
                    found = train_side(rows, train, scored, recipe, side, Path(scratch))
                    journal.add(side=side, seed=seed, seconds=time.monotonic() - began, **found)
        results = compared(journal)
        facts["rows"] = f"{len(train):,} of {rows.workload.facts}"
        facts["trainings"] = f"{options.epochs} epochs; {len(scored):,} spare rows scored"
        print(f"{sides_table(journal)}\n\n{results_table(results)}\n\n{facts_list(facts)}")
    return exit_code(results)


def _ours(rows: Reviews, train: Rows, scored: Rows, recipe: Training, precision: str, _: Path) -> dict[str, Any]:
    engine = reviews.new_engine(rows, recipe, precision, recipe.epochs * len(train) // BATCH)
    losses = []
    for epoch, batches in reviews.batches(train, recipe):
        engine.seed(recipe.seed, epoch)
        losses += [engine.step(batch, rows.workload.labels[batch]).item() for batch in batches]
    logits = engine.logits(rows.workload.encoded(scored), batch_size=BATCH)
    return {"losses": [round(loss, 5) for loss in losses[:COMPARED_STEPS]], **reviews.scores(rows, scored, logits)}


def _stock(rows: Reviews, train: Rows, scored: Rows, recipe: Training, _: str, scratch: Path) -> dict[str, Any]:
    loaded = work.load(base_model_folder.resolve(L6), seed=recipe.seed)
    order = np.concatenate([batch for _, batches in reviews.batches(train, recipe) for batch in batches])
    Trainer(
        model=loaded.model,
        args=stock.arguments(scratch / "stock", device="cpu", max_steps=len(order) // BATCH, seed=recipe.seed),
        train_dataset=stock.dataset(rows.workload, order),
        processing_class=loaded.tokenizer,
        data_collator=DataCollatorWithPadding(loaded.tokenizer),
    ).train()
    return reviews.scores(rows, scored, logits_of(loaded.model, rows.workload.encoded(scored), batch_size=BATCH))


def compared(journal: Journal) -> list[Result]:
    """Differences between the sides, paired by seed."""
    by_seed = {side: {line["seed"]: line for line in journal.lines(side=side)} for side in SIDES}

    def pairs(one: str, other: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        both = sorted(by_seed[one].keys() & by_seed[other].keys())
        return [(by_seed[one][seed], by_seed[other][seed]) for seed in both]

    results = []
    if precisions := pairs("bf16", "fp32"):
        apart = [float(np.abs(np.subtract(ours["losses"], theirs["losses"])).mean()) for ours, theirs in precisions]
        results.append(at_most(f"loss of the first {COMPARED_STEPS} steps: mean difference", max(apart), SAME_MASKS))
        for name in SCORES:
            gap = interval([SCALE[name] * (ours[name] - theirs[name]) for ours, theirs in precisions])
            what = f"{name}, bf16 minus fp32, {len(precisions)} seeds: mean (95 % interval)"
            limited = name == "f1" and len(precisions) >= FEWEST
            within = max(abs(gap.low), abs(gap.high)) <= POINTS if limited else None
            results.append(Result(what, str(gap), f"within {POINTS:g} points" if limited else "", within))
    if stocks := pairs("fp32", "trainer"):
        gap = interval([100 * (ours["f1"] - theirs["f1"]) for ours, theirs in stocks])
        what = f"f1, fp32 minus Trainer, {len(stocks)} seeds: mean (95 % interval)"
        limited = len(stocks) >= FEWEST
        within = gap.low <= 0 <= gap.high if limited else None
        results.append(Result(what, str(gap), "0 is within" if limited else "", within))
    return results


def sides_table(journal: Journal) -> str:
    """Means over seeds, with the standard deviation."""
    rows = []
    for side in SIDES:
        if lines := journal.lines(side=side):
            cells = [side, str(len(lines))]
            for name in SCORES:
                values = [SCALE[name] * line[name] for line in lines]
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
                cells.append(f"{np.mean(values):.2f} ({spread:.2f})")
            rows.append((*cells, f"{np.median([line['seconds'] for line in lines]):.0f}"))
    head = [
        "side",
        "seeds",
        "F1 (sd between seeds)",
        "accuracy",
        "log loss",
        "F1 of the rarest class",
        "median s a training",
    ]
    return table(head, rows)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = parser("quality", __doc__)
    reviews.add_options(options)
    options.add_argument("--rows", type=int, default=2000, help="training rows")
    options.add_argument("--seeds", type=int, default=8)
    options.add_argument("--stock-seeds", type=int, default=3, help="seeds that the Trainer trains too")
    options.add_argument("--only", nargs="*", choices=SIDES, default=SIDES, help="sides to train; none: report alone")
    options.add_argument("--quick", action="store_true", help="two seeds of some steps on generated rows: a smoke test")
    chosen = options.parse_args(arguments)
    if chosen.quick:
        chosen.rows, chosen.epochs, chosen.seeds, chosen.stock_seeds = 64, 1, 2, 2
        chosen.scored, chosen.max_length = 200, 24
    return chosen


if __name__ == "__main__":
    sys.exit(main())
