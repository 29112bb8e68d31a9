"""Nights that go on from the version before, beside full training every night and a champion left alone.

    python -m benchmarks.continued --data reviews.parquet --results continued.jsonl [--chains 12] [--worlds steady ...]
    python -m benchmarks.continued --quick        # generated reviews, some minutes

A chain is a seed: its first night trains in full, then lines of nights go on from it, each with its own replay and
rate, and the mean of the last five nights' weights is scored as well. Every `--full-every` nights they train in full,
as the product does; the last night of 29 is the one before such a night. Full training, at the nights that are scored,
is the reference of the same chain: differences are paired by chain. New rows come in one shuffled order, are drawn and
learnt by the product's own functions, and all rows that no night has are scored:

    steady    1 % more rows a night
    category  the same; a category comes with every second new row from night 10 on, and never before
    growth    5 % more rows a night

Every finished part is a line of the journal: a second start goes on. It ends with the cost of a whole night, computed
from the parts of this run. Needs the extra `demo`; works offline.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import reviews
from benchmarks.results import facts_list, log, machine_facts, parser, table
from benchmarks.reviews import SCALE, SCORES, Journal, Reviews, interval
from benchmarks.workload import BATCH, L6, STEPS_PER_EPOCH, VALIDATION_ROWS, Rows
from nightgate.config.training import Training
from nightgate.cpu_threads import pick_threads
from nightgate.engine import base_models, devices
from nightgate.engine.optimizer import learning_rates
from nightgate.engine.step import Engine
from nightgate.training.continued import LabelledKeys, continued_recipe, draw

WORLDS = {"steady": 0.01, "category": 0.01, "growth": 0.05}
"""Share of the rows that a night adds."""
CATEGORY_FROM = 10
AVERAGED = 5
"""Nights whose weights are averaged."""
FULL, CHAMPION = "full training every night", "champion left alone"
COST_ROWS, COST_EPOCHS, COST_NEW = STEPS_PER_EPOCH * BATCH, 5, 0.01
MODELS_SCORED = 3
"""Candidate, champion and anchor, each on the test rows, which are as many as the validation rows."""
TIMED = 12

Weights = dict[str, Tensor]


class Line(NamedTuple):
    """How a line of nights goes on."""

    replay: float
    rate: float

    @property
    def title(self) -> str:
        return f"replay {self.replay:g}, rate {self.rate:g}"


@dataclass(frozen=True)
class Chain:
    """One seed in one world."""

    world: str
    seed: int
    nights: Sequence[Rows]
    """Rows that come, by night; those of the first night are the start."""
    scored: Rows
    recipe: Training
    precision: str
    folder: Path
    """Of the weights of full trainings."""

    def engine(self, rows: Reviews) -> Engine:
        return reviews.new_engine(rows, self.recipe, self.precision, 1)

    def full(self, night: int) -> Path:
        """The weights of the full training of a night."""
        # The first night of two worlds has the same rows.
        world = self.world if night or self.world == "category" else "all"
        return self.folder / f"full-{world}-{self.seed}-{night}.safetensors"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    base_models.quiet_transformers()
    torch.set_num_threads(options.threads or pick_threads()[0])
    facts = machine_facts("torch", "transformers")
    began = time.monotonic()
    rows = reviews.read(
        options.data,
        text=options.text,
        label=options.label,
        category=options.category_column,
        max_length=options.max_length,
    )
    spent_reading = time.monotonic() - began
    options.category = options.category or [name for name, _ in Counter(rows.category.tolist()).most_common(2)][-1]
    precision = devices.PRECISIONS[devices.pick(options.precision).dtype]
    names = ("rows", "nights", "epochs", "max_length", "scored", "category", "full_every")
    chosen = {name: getattr(options, name) for name in names}
    with tempfile.TemporaryDirectory(prefix="nightgate-benchmark-") as scratch:
        path = options.results or Path(scratch) / "journal.jsonl"
        journal = Journal(path, {"reviews": rows.name, "precision": precision, **chosen})
        lines = [Line(replay, rate) for replay, rate in product(options.replay, options.rate)]
        for seed, world in product(range(1, options.chains + 1), options.worlds):
            nights = arrivals(rows, world, options.rows, options.nights, options.category)
            spare = np.setdiff1d(np.arange(len(rows.workload.labels)), np.concatenate(nights))
            recipe = Training(
                base_model=L6, epochs=options.epochs, max_length=options.max_length, seed=seed, batch_size=BATCH
            )
            scored = spare[: options.scored or None]
            chain = Chain(world, seed, nights, scored, recipe, precision, path.parent)
            run(chain, rows, journal, lines, options.at, options.full_every)
        for world in options.worlds:
            print(f"\n## {world}: {WORLDS[world]:.0%} more rows a night\n\n{world_table(journal, world, lines)}")
        facts |= {"rows": f"{options.rows:,} at the start, of {rows.workload.facts}", "precision": precision}
        facts |= {"scored": f"{options.scored or 'all spare'} rows", "epochs of a full training": str(options.epochs)}
        print(f"\n{cost_table(rows, precision, options.replay, spent_reading)}\n\n{facts_list(facts)}")
    return 0


def arrivals(rows: Reviews, world: str, start: int, nights: int, category: str) -> list[Rows]:
    """The rows of the first night and those that come in each night after it."""
    order = np.arange(len(rows.workload.labels))
    late = rows.category == category
    known, held_back = (order[~late], order[late]) if world == "category" else (order, order[:0])
    coming, total = [known[:start]], start
    known = known[start:]
    for night in range(1, nights + 1):
        count = max(1, round(total * WORLDS[world]))
        late_count = min(count // 2, len(held_back)) if night >= CATEGORY_FROM else 0
        early_count = count - late_count
        coming.append(np.concatenate([known[:early_count], held_back[:late_count]]))
        known, held_back = known[early_count:], held_back[late_count:]
        total += len(coming[-1])
    return coming


def run(
    chain: Chain, rows: Reviews, journal: Journal, lines: Sequence[Line], at: Sequence[int], full_every: int
) -> None:
    """Train and score what the journal lacks of one chain."""
    same = {"world": chain.world, "seed": chain.seed}
    restarts = range(full_every, max(at) + 1, full_every)
    for night in sorted({0, *restarts, *at}):
        # A champion left alone is the model of the first night.
        method = FULL if night else CHAMPION
        is_scored = night not in (0, *at) or journal.lines(**same, method=method, night=night)
        goes_on = night in (0, *restarts)  # lines begin with its weights
        if is_scored and (chain.full(night).exists() or not goes_on):
            continue
        log(f"{chain.world}, chain {chain.seed}: full training of night {night}")
        engine = chain.engine(rows)
        if chain.full(night).exists():
            engine.load_weights(load_file(chain.full(night)))
        else:
            train(engine, rows, np.concatenate(chain.nights[: night + 1]), chain.recipe)
            save_file(_copied(engine), chain.full(night))
        if not is_scored:
            journal.add(**same, method=method, night=night, **_scores(engine, rows, chain.scored))
    for line in lines:
        if not journal.lines(**same, method=_averaged(line), night=max(at)):
            log(f"{chain.world}, chain {chain.seed}: {line.title}")
            _run_line(chain, rows, journal, line, at, restarts)


def train(engine: Engine, rows: Reviews, chosen: Rows, recipe: Training) -> None:
    """Train with a fresh optimiser."""
    engine.restore(engine.weights(), {}, 0)
    engine.rate = learning_rates(recipe, recipe.epochs * math.ceil(len(chosen) / BATCH))
    for epoch, batches in reviews.batches(chosen, recipe):
        engine.seed(recipe.seed, epoch)
        for batch in batches:
            engine.step(batch, rows.workload.labels[batch])


def _run_line(
    chain: Chain, rows: Reviews, journal: Journal, line: Line, at: Sequence[int], restarts: Sequence[int]
) -> None:
    engine = chain.engine(rows)
    engine.load_weights(load_file(chain.full(0)))
    recipe = continued_recipe(chain.recipe.model_copy(update={"continued_rate": line.rate}))
    learnt, recent = _keys(rows, chain.nights[0]), deque[Weights](maxlen=AVERAGED)
    same = {"world": chain.world, "seed": chain.seed}
    for night in range(1, max(at) + 1):
        held = np.concatenate(chain.nights[: night + 1])
        available = _keys(rows, held)
        if night in restarts:
            engine.load_weights(load_file(chain.full(night)))
            learnt = available
            recent.clear()
        else:
            places = draw(available, learnt, replay=line.replay, least=BATCH, seed=(chain.seed, night))
            train(engine, rows, held[places], recipe)
            learnt = learnt.joined(_keys(rows, held[places]))
        recent.append(_copied(engine))
        if night in at:
            journal.add(**same, method=line.title, night=night, **_scores(engine, rows, chain.scored))
            engine.load_weights({name: torch.stack([one[name] for one in recent]).mean(dim=0) for name in recent[0]})
            journal.add(**same, method=_averaged(line), night=night, **_scores(engine, rows, chain.scored))
            engine.load_weights(recent[-1])


def _keys(rows: Reviews, chosen: Rows) -> LabelledKeys:
    return LabelledKeys(chosen.astype(np.uint64), rows.workload.labels[chosen])


def _copied(engine: Engine) -> Weights:
    return {name: tensor.clone().contiguous() for name, tensor in engine.weights().items()}


def _averaged(line: Line) -> str:
    return f"{line.title}, mean of {AVERAGED} nights"


def _scores(engine: Engine, rows: Reviews, scored: Rows) -> dict[str, float]:
    return reviews.scores(rows, scored, engine.logits(rows.workload.encoded(scored), batch_size=BATCH))


def world_table(journal: Journal, world: str, lines: Sequence[Line]) -> str:
    """Mean scores of each method at the last night, and its F1 beside full training, paired by chain."""
    found = journal.lines(world=world)
    last = max((line["night"] for line in found), default=0)
    by_method: dict[str, dict[int, dict[str, Any]]] = {}
    for line in found:
        if line["night"] in (0, last):
            by_method.setdefault(line["method"], {})[line["seed"]] = line
    reference, alone = by_method.get(FULL, {}), by_method.get(CHAMPION, {})
    rows = []
    for method in (FULL, CHAMPION, *(title for line in lines for title in (line.title, _averaged(line)))):
        own = by_method.get(method, {})
        paired = sorted(own.keys() & reference.keys() & alone.keys())
        if not paired:
            continue
        gaps = [100 * (own[seed]["f1"] - reference[seed]["f1"]) for seed in paired]
        losses = [own[seed]["log_loss"] - reference[seed]["log_loss"] for seed in paired]
        to_win = np.mean([100 * (reference[seed]["f1"] - alone[seed]["f1"]) for seed in paired])
        won = f"{1 + np.mean(gaps) / to_win:.0%}" if to_win >= 1 else ""
        cells = [f"{np.mean([SCALE[name] * own[seed][name] for seed in paired]):.2f}" for name in SCORES]
        rows.append((method, str(len(paired)), *cells, str(interval(gaps)), str(interval(losses)), won))
    head = ["method", "chains", "F1", "accuracy", "log loss", "F1 of the rarest class"]
    head += [
        f"F1 minus full training, night {last} (95 %)",
        "log loss minus full training",
        "of what full training wins",
    ]
    return table(head, rows)


def cost_table(rows: Reviews, precision: str, replays: Sequence[float], spent_reading: float) -> str:
    """A night's cost as a share of a full training's, computed from a step and an evaluation of this run."""
    recipe = Training(base_model=L6, max_length=rows.workload.encoded(np.arange(1)).max_length)
    began = time.monotonic()
    engine = reviews.new_engine(rows, recipe, precision, TIMED)
    starting = spent_reading + time.monotonic() - began
    chosen, seconds = np.arange(TIMED * BATCH).reshape(TIMED, BATCH), []
    for batch in chosen:
        began = time.perf_counter()
        engine.step(batch, rows.workload.labels[batch]).item()
        seconds.append(time.perf_counter() - began)
    scored = rows.workload.encoded(chosen.ravel())
    evaluated = []
    for _ in range(3):
        began = time.perf_counter()
        engine.logits(scored, batch_size=BATCH)
        evaluated.append((time.perf_counter() - began) / len(scored))
    step, row = float(np.median(seconds[2:])), float(np.median(evaluated))
    scoring = MODELS_SCORED * VALIDATION_ROWS * row
    full = starting + COST_EPOCHS * (COST_ROWS / BATCH * step + VALIDATION_ROWS * row) + scoring
    head = ["night of 40,000 rows, 5 epochs, 1 % of them new", "seconds", "of a full training's"]
    cells = [(FULL, f"{full:,.0f}", "100 %")]
    for replay in replays:
        steps = math.ceil(COST_NEW * COST_ROWS * (1 + replay) / BATCH)
        short = starting + steps * step + VALIDATION_ROWS * row + scoring
        cells.append((f"a continued night, replay {replay:g}", f"{short:,.0f}", f"{short / full:.1%}"))
        for every in (15, 30):
            mean = (full + (every - 1) * short) / every
            cells.append((f"mean, full training every {every} nights", f"{mean:,.0f}", f"{mean / full:.1%}"))
    facts = f"A step took {1000 * step:.0f} ms, 1,000 rows {1000 * row:.2f} s, reading and loading {starting:.1f} s."
    return f"{table(head, cells)}\n\n{facts}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = parser("continued", __doc__)
    reviews.add_options(options)
    options.add_argument("--category-column", default="product_category", help="column of the rows' categories")
    options.add_argument("--category", help="the one that comes late; without: the second most frequent")
    options.add_argument("--worlds", nargs="*", choices=WORLDS, default=list(WORLDS))
    options.add_argument("--chains", type=int, default=12)
    options.add_argument("--nights", type=int, default=29)
    options.add_argument("--full-every", type=int, default=15, help="nights; the default is the product's")
    options.add_argument("--at", type=int, nargs="*", help="nights to score; without: the last one")
    options.add_argument("--rows", type=int, default=2000, help="rows of the first night")
    options.add_argument("--replay", type=float, nargs="*", default=[1.0, 4.0])
    options.add_argument("--rate", type=float, nargs="*", default=[0.1, 0.3], help="shares of the peak rate")
    options.add_argument("--precision", choices=("auto", *devices.DTYPES), default="auto")
    options.add_argument("--quick", action="store_true", help="one small chain of each world on generated reviews")
    chosen = options.parse_args(arguments)
    if chosen.quick:
        chosen.rows, chosen.nights, chosen.full_every, chosen.epochs, chosen.chains = 160, 12, 8, 1, 1
        chosen.scored, chosen.max_length, chosen.rate = 100, 24, [0.1]
    chosen.at = chosen.at or [chosen.nights]
    return chosen


if __name__ == "__main__":
    sys.exit(main())
