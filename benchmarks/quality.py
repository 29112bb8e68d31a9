"""Does the engine train as well as the stock `Trainer`? Three seeds a side, with dropout, F1 on held-out rows.

With dropout the two cannot agree bit for bit: they draw their masks differently. What can be asked is whether their F1
differs by more than the seeds of one side differ among themselves.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from pathlib import Path

import numpy as np

from benchmarks.texts import Texts, read_texts, sample_texts
from benchmarks.workload import BATCH, LABELS, MAX_LENGTH, SHAPES, Rows, Workload, base_model, from_texts, load

SEEDS = (1, 2, 3)
T_95 = 2.776
"""Student's t of 97.5 % with 4 degrees of freedom: two sides of three seeds."""
HELD_OUT = 2_000


def compare(options: argparse.Namespace, scratch: Path) -> str:
    """Train both sides on the same rows; the table, as text."""
    from benchmarks.training import say

    # Before torch is imported; it changes the time that this takes, and nothing else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    texts, labels = _texts(options)
    source = str(options.data.name) if options.data else "generated reviews"
    workload = from_texts(SHAPES["l6"], texts, labels, source)
    order = np.random.default_rng(options.seed).permutation(len(texts))
    held_out, rows = order[:HELD_OUT], order[HELD_OUT : HELD_OUT + options.rows]
    found: dict[str, list[float]] = {"stock Trainer": [], "engine": []}
    for seed in SEEDS:
        for name, train in (("stock Trainer", _stock), ("engine", _ours)):
            predicted = train(workload, rows, held_out, seed, options, scratch)
            found[name].append(_f1(workload.labels[held_out], predicted))
            say(f"{name}, seed {seed}: F1 {found[name][-1]:.4f}")
    return _table(found, f"{source}, {len(rows):,} training and {len(held_out):,} test rows, {options.epochs} epochs")


def _table(found: dict[str, list[float]], what: str) -> str:
    means = {name: statistics.mean(scores) for name, scores in found.items()}
    spreads = {name: statistics.stdev(scores) for name, scores in found.items()}
    pooled = math.sqrt(statistics.mean(spread**2 for spread in spreads.values()))
    difference = means["engine"] - means["stock Trainer"]
    margin = T_95 * pooled * math.sqrt(2 / len(SEEDS))
    inside = abs(difference) <= margin
    lines = [
        f"all-MiniLM-L6-v2, {what}, dropout on, weighted F1",
        "",
        "| side | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " | mean | standard deviation |",
        "|---" * (len(SEEDS) + 3) + "|",
        *(
            f"| {name} | {' | '.join(f'{score:.4f}' for score in scores)} | {means[name]:.4f} | {spreads[name]:.4f} |"
            for name, scores in found.items()
        ),
        "",
        f"Engine minus stock: {difference:+.4f}, 95 % interval {difference - margin:+.4f} to "
        f"{difference + margin:+.4f} (Student's t, the seeds' pooled standard deviation {pooled:.4f}): "
        + ("no difference beyond that of seeds." if inside else "more than seeds explain."),
    ]
    return "\n".join(lines) + "\n"


def _texts(options: argparse.Namespace) -> Texts:
    if options.data is not None:
        return read_texts(options.data, options.text, options.label)
    return sample_texts(HELD_OUT + options.rows)


def _stock(
    workload: Workload, rows: Rows, held_out: Rows, seed: int, options: argparse.Namespace, scratch: Path
) -> Rows:
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer

    from benchmarks import stock
    from nightgate.engine.base_models import quiet_transformers

    quiet_transformers()
    loaded = load(base_model(workload.shape, scratch / "base"), seed=seed)
    steps = math.ceil(len(rows) / BATCH) * options.epochs
    trainer = Trainer(
        model=loaded.model,
        args=stock.arguments(
            scratch / "quality", device=options.device, max_steps=steps, train_sampling_strategy="random", seed=seed
        ),
        train_dataset=stock.dataset(workload, rows),
        processing_class=loaded.tokenizer,
        data_collator=DataCollatorWithPadding(loaded.tokenizer),
    )
    # It prints to standard output, which is the table's.
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    predicted: Rows = trainer.predict(stock.dataset(workload, held_out)).predictions.argmax(axis=1)
    return predicted


def _ours(
    workload: Workload, rows: Rows, held_out: Rows, seed: int, options: argparse.Namespace, scratch: Path
) -> Rows:
    from benchmarks.ours import take
    from nightgate.config import Training
    from nightgate.engine import devices
    from nightgate.engine.step import Engine
    from nightgate.training.inputs import seed_epoch

    encoded = workload.encoded()
    train, test = take(encoded, rows), take(encoded, held_out)
    recipe = Training(max_length=MAX_LENGTH, batch_size=BATCH, epochs=options.epochs, seed=seed)
    steps = math.ceil(len(rows) / BATCH)
    loaded = load(base_model(workload.shape, scratch / "base"), seed=seed)
    engine = Engine(loaded, recipe, devices.pick("auto"), steps * options.epochs, train, test)
    for epoch in range(1, options.epochs + 1):
        order = seed_epoch(seed, epoch).permutation(len(rows))
        engine.seed(seed, epoch)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            engine.step(batch, workload.labels[rows[batch]])
    predicted: Rows = engine.logits(test, batch_size=BATCH).argmax(axis=1)
    return predicted


def _f1(labels: Rows, predicted: Rows) -> float:
    from nightgate.metrics.confusion import confusion_counts, overall_scores

    f1 = overall_scores(confusion_counts(labels, predicted.astype(np.int64), len(LABELS))).f1("weighted")
    assert f1 is not None
    return f1
