"""A made-up pipeline: `Story` says what happens to it when, `Facts` what its nights find.

Models are made up too: each is right on a share of the rows that its night and the class decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from nightgate.config.pipeline import Pipeline
from nightgate.data.checks import CheckResult
from nightgate.data.refresh import Refreshed
from nightgate.data.refresh_counts import PartCounts
from nightgate.data.snapshots import Snapshot
from nightgate.gate.evidence import Rows, Serving, Side, Slice
from nightgate.gate.test_window import microseconds
from nightgate.metrics.classification import SliceScore, slice_scores
from nightgate.metrics.confusion import confusion_counts
from nightgate.metrics.drift import DriftStatistic
from nightgate.schedule import Night
from nightgate.sources.source_table import Quarantined

Labels = NDArray[np.int64]

FIRST_NIGHT = date(2025, 1, 1)
LABELS = ("1", "2", "3", "4", "5")
SHARES = (0.12, 0.13, 0.2, 0.25, 0.3)
PRODUCTS = ("backpack", "boots", "desk lamp", "headphones", "kettle", "running shoes", "shirt", "tent", "toaster")
LANGUAGES = ("de", "en", "es", "fr")
WRITTEN = ("reviews", "returns")
"""Names of the pipelines whose nights are written one by one; the others are copies of them in turn."""


@dataclass(frozen=True)
class Size:
    """How much is written."""

    nights: int = 730
    pipelines: int = 50
    written: int = 2
    test_rows: int = 5_000
    products: int = 20
    languages: int = 10
    epochs: int = 5
    every: int = 1
    """Nights whose rows a training waits for."""


YEAR = Size(nights=365, pipelines=3, written=1, test_rows=800, products=3, languages=2, epochs=3, every=2)
"""What tests and the output in docs/sql.md are of: seconds."""


@dataclass(frozen=True)
class Story:
    """What happens to a pipeline on which of its nights, counted from 0."""

    nights: int
    every: int = 1

    def at(self, share: float) -> int:
        return round(self.nights * share)

    @cached_property
    def other_setting(self) -> range:
        """Another learning rate, after which class 2 falls; and back."""
        return range(self.at(0.45), self.at(0.6))

    @cached_property
    def drop(self) -> range:
        """Rows of another kind come in, which every model does worse on; drift warns of them days before."""
        return range(self.at(0.75), self.at(0.75) + 14)

    def drifts(self, day: int) -> bool:
        return self.drop.start - 5 <= day < self.drop.start + 3

    def fails(self, day: int) -> bool:
        """Half of the export is missing."""
        return day % 45 == 20

    def is_quiet(self, day: int) -> bool:
        """Too few rows are new for a training; at weekends there are none."""
        return day > 0 and (day % 7 in {3, 4} or (day + 1) % self.every > 0)

    def crashes(self, day: int) -> bool:
        """The process dies after two epochs; an hour later the night goes on."""
        return day % 60 == 31

    def torch(self, day: int) -> str:
        return "2.10.0" if day < self.at(0.48) else "2.11.0"

    def code(self, day: int) -> str:
        return (
            "0.1.0+" + ("5d41402abc4b", "7d793037a076", "9d5ed678fe57")[sum(day >= self.at(at) for at in (0.2, 0.65))]
        )

    def test_version(self, day: int) -> str:
        return "t-3c59dc048e" if day < self.at(0.88) else "t-b6d767d2f8"


@dataclass(frozen=True)
class Model:
    """A version with what it predicts for every test row that the pipeline will ever have."""

    version: int
    run_id: str
    day: int
    predictions: Labels


class Facts:
    """What is made up of one pipeline: its rows, models, refreshes and settings."""

    def __init__(self, name: str, size: Size) -> None:
        self.name, self.size, self.story = name, size, Story(size.nights, size.every)
        self.random = np.random.default_rng(len(name))
        self.device = "NVIDIA H200" if name == WRITTEN[0] else "cpu"
        self.rows_a_night = max(1, size.test_rows // 100)
        number = size.test_rows + size.nights * self.rows_a_night
        self.true = self.random.choice(len(LABELS), number, p=SHARES).astype(np.int64)
        self._ease = self.random.normal(size=number)
        """How easily every model gets the row right."""
        self._prints = [hashlib.md5(f"{name} {row}".encode()).hexdigest() for row in range(number)]
        self._slices = (
            Slice("language", _named(LANGUAGES, size.languages), self.random.integers(0, size.languages, number)),
            Slice("product", _named(PRODUCTS, size.products), self.random.integers(0, size.products, number)),
        )
        self._columns = pd.DataFrame({f"slice_{one.name}": np.array(one.values)[one.codes] for one in self._slices})
        arrived = np.maximum(0, (np.arange(number) - size.test_rows) // self.rows_a_night + 1)
        self.arrived: Labels = arrived - np.maximum(0, (size.test_rows - np.arange(number)) // self.rows_a_night)
        """The night of each row, negative for those of before the first one."""

    def pipeline(self, day: int) -> Pipeline:
        rate = 1e-4 if day in self.story.other_setting else 5e-5
        known = self._pipelines.get(rate)
        if known is None:
            known = self._pipelines[rate] = Pipeline.model_validate(
                {
                    "name": self.name,
                    "data": {"source": {"kind": "sample"}, "labels": list(LABELS)},
                    "training": {"learning_rate": rate, "epochs": self.size.epochs},
                    # So few rows prove little.
                    "gate": {"min_f1": 0.4} if self.size.test_rows >= 2_000 else _LENIENT,
                    "resources": {"slot": "gpu"},
                }
            )
        return known

    @cached_property
    def _pipelines(self) -> dict[float, Pipeline]:
        return {}

    def tonight(self, day: int) -> Labels:
        """The places of tonight's test rows."""
        return np.arange(self.size.test_rows) + (day + 1) * self.rows_a_night

    def rows(self, at: Labels) -> Rows:
        start = microseconds(night_of(0).data_until)
        return Rows(
            self.true[at],
            start + self.arrived[at] * 86_400_000_000 - 3_600_000_000,
            tuple(self._prints[row] for row in at.tolist()),
            slices=tuple(replace(one, codes=one.codes[at]) for one in self._slices),
        )

    def model(self, day: int) -> Model:
        """A model of tonight: better with more rows, the worse the newer the rows are that it did not see."""
        story = self.story
        skill = 0.53 + 0.06 * (1 - np.exp(-day / 200)) + self.random.normal(0, 0.004)
        by_class = skill + np.array([0.03, -0.03, 0.0, 0.0, 0.02])
        if day in story.other_setting:
            by_class[1] -= 0.24
        unseen = np.maximum(0, self.arrived - day)
        new = (self.arrived >= story.drop.start) & (self.arrived < story.drop.stop)
        share = np.clip(by_class[self.true] - 0.0006 * unseen - 0.22 * new, 0.05, 0.95)
        draws = 0.95 * self._ease + np.sqrt(1 - 0.95**2) * self.random.normal(size=len(self._ease))
        wrong = np.clip(self.true + self.random.choice((-1, 1), len(draws)), 0, 4)
        wrong = np.where(wrong == self.true, (self.true + 2) % 5, wrong)
        return Model(0, "", day, np.where(draws < ndtri(share), self.true, wrong))

    def side(self, model: Model, at: Labels, night: Night) -> Side:
        latency = 4.0 + float(self.random.normal(0, 0.1))
        return Side(
            model.predictions[at],
            night.data_until - timedelta(days=_day_of(night) - model.day),
            model.version,
            trained_on=np.zeros(len(at), dtype=np.bool_),
            calibration_error=0.05,
            serving=Serving(rows=64, logit_difference=1e-6, latency_ms=latency, size_bytes=470_000_000),
        )

    def scored(self, at: Labels, predicted: Labels) -> list[SliceScore]:
        return slice_scores(self._columns.iloc[at], self.true[at], predicted, len(LABELS), LABELS)

    def refreshed(self, day: int, night: Night, snapshots: Path) -> Refreshed:
        # At weekends no row comes: the snapshot is Friday's.
        number = day - max(0, day % 7 - 2) if day % 7 in {3, 4} else day
        snapshot_id = f"s-{hashlib.md5(f'{self.name} {number}'.encode()).hexdigest()[:16]}"
        total = self.rows_a_night * (500 + number) + (8_000 if number >= self.story.drop.start else 0)
        new, test = 10 * self.rows_a_night if number == day else 0, self.size.test_rows
        bad = 1 + int(self.random.poisson(1)) if new else 0
        manifest = {
            "id": snapshot_id,
            "pipeline": self.name,
            "test_version": self.story.test_version(day),
            "rows": {"train": total - 2 * test, "validation": test, "test": test},
            "rows_total": total,
            "rows_duplicate": 3,
            "rows_quarantined": bad,
            "data_until": night.data_until.isoformat(),
            "first_time": None,
            "last_time": None,
            "bytes": 150 * total,
            "format": 2,
            "rules": {"classes": []},
        }
        part = f"{night.date}.csv"
        quarantined = tuple(
            Quarantined(f"{part}:{3 + 7 * line}", None, *_UNUSABLE[line % len(_UNUSABLE)], part) for line in range(bad)
        )
        return Refreshed(
            Snapshot(snapshot_id, snapshots / self.name / snapshot_id, manifest),
            quarantined,
            rows_new=new,
            rows_total=total,
            rows_duplicate=3,
            parts=(PartCounts(part, new + bad, taken=new, quarantined=bad, bytes=150 * new),),
            checks=(CheckResult("rows", "passed", 0.0, 0.1, f"{total:,} rows"),),
            relabelled=0,
        )

    def drift(self, day: int) -> Iterable[tuple[str, DriftStatistic]]:
        drifts = self.story.drifts(day)
        for reference in ("champion", "last_week"):
            for statistic, name, limit in _STATISTICS:
                moved = drifts and statistic == "slice_shares"
                value = 0.31 if moved else limit * float(self.random.uniform(0.2, 0.6))
                yield (
                    reference,
                    DriftStatistic(
                        statistic,
                        "total_variation" if name or statistic == "label_shares" else "kolmogorov_smirnov",
                        value=value,
                        threshold=limit,
                        rows_used=10 * self.rows_a_night,
                        reference_rows=70 * self.rows_a_night,
                        reason=f"{name or statistic.replace('_', ' ')} moved by {value:.2f}",
                        slice_name=name,
                    ),
                )

    def inputs(self, day: int, refreshed: Refreshed, pipeline: Pipeline) -> dict[str, str]:
        return {
            "snapshot": refreshed.snapshot.id,
            "configuration": pipeline.config_hash,
            "code": self.story.code(day),
            "base model": "c5a7f1d7a5f3",
            "Python": "3.11.9",
            "torch": self.story.torch(day),
            "transformers": "5.1.0",
        }

    def why(self, refreshed: Refreshed) -> str:
        least = 10 * self.rows_a_night * self.size.every
        return f"{refreshed.rows_new:,} new rows since the last night (trains at {least:,})"


_LENIENT = {"min_f1": 0.4, "confidence": 0.6, "margin": 0.03, "min_test_rows": 100, "min_slice_rows": 20}
_UNUSABLE = (
    ("unknown_label", "the label is '6 stars'", "six of five"),
    ("empty_text", "the text is blank", ""),
    ("bad_time", "the time is 'yesterday'", "yesterday"),
)
_STATISTICS = (
    ("label_shares", "", 0.1),
    ("slice_shares", "language", 0.15),
    ("slice_shares", "product", 0.15),
    ("text_length", "", 0.1),
    ("new_words", "", 0.05),
)


def night_of(day: int) -> Night:
    chosen = FIRST_NIGHT + timedelta(days=day)
    instant = datetime(chosen.year, chosen.month, chosen.day, 2, 15, tzinfo=UTC)
    return Night(chosen, "schedule", instant, instant)


def _day_of(night: Night) -> int:
    return (night.date - FIRST_NIGHT).days


def _named(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    return (*names, *(f"{names[0]} {number}" for number in range(2, 2 + count)))[:count]


def counts_of(true: Labels, predicted: Labels) -> Labels:
    return confusion_counts(true, predicted, len(LABELS))
