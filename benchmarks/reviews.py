"""Reviews of a file and trainings of all-MiniLM-L6-v2 on them, for the benchmarks of quality.

Finished trainings are lines of a journal, so that a benchmark of hours can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats

from benchmarks import workload as work
from benchmarks.workload import BATCH, L6, LABELS, SHAPES, Rows, Workload
from nightgate.config.sources import SampleSource
from nightgate.config.training import Training
from nightgate.engine import base_model_folder, devices
from nightgate.engine.encoding import encode
from nightgate.engine.step import Engine
from nightgate.metrics.confusion import class_scores, confusion_counts, overall_scores
from nightgate.sources.sample import sample_reviews
from nightgate.training.inputs import seed_epoch
from nightgate.training.scoring import mean_cross_entropy

SCORES = ("f1", "accuracy", "log_loss", "rarest_f1")
SCALE = dict.fromkeys(SCORES, 100) | {"log_loss": 1}
"""Scores are printed in points."""


@dataclass(frozen=True)
class Reviews:
    """Rows with different texts, in one shuffled order that depends on the file alone."""

    workload: Workload
    category: NDArray[np.str_]
    """Of each row; '' without that column."""
    name: str
    """Hash of texts and labels."""


def read(path: Path | None, *, text: str, label: str, category: str, max_length: int) -> Reviews:
    """Reviews of a Parquet or CSV file whose labels are 1 to 5; without one, those of the sample source."""
    if path is None:
        until = datetime(2026, 1, 1, tzinfo=UTC)
        frame = pd.DataFrame(sample_reviews(SampleSource(kind="sample"), until)).rename(columns={"product": category})
    else:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    frame = frame[frame[label].astype(str).isin(LABELS) & (frame[text].str.len() > 0)].drop_duplicates(text)
    frame = frame.iloc[np.random.default_rng(0).permutation(len(frame))]
    labels = frame[label].to_numpy(np.int64) - 1
    texts = frame[text].astype(str).tolist()
    loaded = work.load(base_model_folder.resolve(L6))
    encoded = encode(loaded.tokenizer, texts, max_length)
    lengths = np.diff(encoded.offsets)
    facts = f"{len(labels):,} rows; tokens after the cut at {max_length}: mean {lengths.mean():.1f}"
    shares = frame[category].astype(str).to_numpy(str) if category in frame else np.full(len(labels), "")
    digest = sha256(json.dumps([texts, labels.tolist(), max_length]).encode()).hexdigest()[:16]
    return Reviews(Workload(SHAPES["l6"], encoded.ids, encoded.offsets, labels, facts), shares, digest)


def new_engine(reviews: Reviews, recipe: Training, precision: str, steps: int) -> Engine:
    """An engine with a new head by the recipe's seed, which can train on any of the rows and score any."""
    rows = reviews.workload.encoded()
    loaded = work.load(base_model_folder.resolve(L6), seed=recipe.seed)
    picked = devices.Picked(torch.device("cpu"), devices.DTYPES[precision], "benchmark")
    return Engine(loaded, recipe, picked, steps, rows)


def batches(rows: Rows, recipe: Training) -> Iterator[tuple[int, list[Rows]]]:
    """The batches of each epoch, from 1, in the product's order."""
    for epoch in range(1, recipe.epochs + 1):
        order = rows[seed_epoch(recipe.seed, epoch).permutation(len(rows))]
        yield epoch, [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


def scores(reviews: Reviews, rows: Rows, logits: NDArray[np.float32]) -> dict[str, float]:
    """F1 (weighted), accuracy, log loss, and the F1 of the class with the fewest rows."""
    labels = reviews.workload.labels[rows]
    counts = confusion_counts(labels, logits.argmax(axis=1).astype(np.int64), len(LABELS))
    overall, rarest = overall_scores(counts), class_scores(counts, int(counts.sum(axis=1).argmin()))
    values = overall.f1_weighted, overall.accuracy, mean_cross_entropy(logits, labels), rarest.f1_weighted
    return dict(zip(SCORES, map(float, values), strict=True))  # type: ignore[arg-type]


class Interval(NamedTuple):
    """A mean and its 95 % interval by Student's t."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def interval(values: Sequence[float]) -> Interval:
    """NaN bounds with a single value."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Interval(mean, float("nan"), float("nan"))
    reach = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return Interval(mean, mean - reach, mean + reach)


class Journal:
    """JSON lines of what is finished; only those of the same options count."""

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self.path, self.options = path, json.loads(json.dumps(options))

    def lines(self, **facts: Any) -> list[dict[str, Any]]:
        """What was added under these options, with these facts."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                one = json.loads(line)
            except json.JSONDecodeError:  # the last line of a process that was killed
                continue
            if one["options"] == self.options and facts.items() <= one.items():
                found.append(one)
        return found

    def add(self, **facts: Any) -> None:
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps({"options": self.options, **facts}).encode() + b"\n")


def add_options(options: argparse.ArgumentParser) -> None:
    """The options that the benchmarks of quality share."""
    options.add_argument("--data", type=Path, help="Parquet or CSV file of reviews; without: generated ones")
    options.add_argument("--text", default="text", help="column of the texts")
    options.add_argument("--label", default="stars", help="column of the labels, 1 to 5")
    options.add_argument("--results", type=Path, help="journal of finished trainings; a second start goes on")
    options.add_argument("--max-length", type=int, default=64, help="tokens of a text")
    options.add_argument("--epochs", type=int, default=4)
    options.add_argument("--scored", type=int, default=0, help="at most so many spare rows are scored; 0: all")
    options.add_argument("--threads", type=int, default=0, help="0: as Nightgate picks them")
