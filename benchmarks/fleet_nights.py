"""Made-up nights of a pipeline, written by the functions that record real ones; `Story` says what happens when.

Models are made up too: each is right on a share of the rows that its night and the class decide, and the gate judges
what it predicted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import sqlalchemy as sa
import time_machine
from numpy.typing import NDArray
from scipy.special import ndtri
from sqlalchemy.orm import Session

from nightgate.config.pipeline import Pipeline
from nightgate.data.checks import CheckResult
from nightgate.data.refresh import Refreshed
from nightgate.data.refresh_counts import PartCounts
from nightgate.data.snapshots import Snapshot
from nightgate.database.schema import Attempt, Run
from nightgate.database.transactions import Database
from nightgate.errors import DataCheckError
from nightgate.gate.decide import decide
from nightgate.gate.evidence import Evidence, Rows, Serving, Side, Slice
from nightgate.gate.test_window import microseconds
from nightgate.metrics import bootstrap
from nightgate.metrics.classification import SliceScore, score, slice_scores
from nightgate.metrics.confusion import confusion_counts
from nightgate.metrics.drift import DriftStatistic
from nightgate.operations.reconciliation import mark_announced, mark_closed
from nightgate.registry import freezes, promotion
from nightgate.runs import claim, evaluations, lifecycle, records
from nightgate.runs.evaluations import Evaluation
from nightgate.runs.liveness import Owner
from nightgate.runs.run_row import RunRow, read_run
from nightgate.schedule import Night
from nightgate.sources.source_table import Quarantined
from nightgate.training.protocol import EpochReport, TrainResult

Labels = NDArray[np.int64]

FIRST_NIGHT = date(2025, 1, 1)
LABELS = ("1", "2", "3", "4", "5")
SHARES = (0.12, 0.13, 0.2, 0.25, 0.3)
PRODUCTS = ("backpack", "boots", "desk lamp", "headphones", "kettle", "running shoes", "shirt", "tent", "toaster")
LANGUAGES = ("de", "en", "es", "fr")
WRITTEN = ("reviews", "returns")
"""Names of the pipelines whose nights are written one by one; the others are copies of them in turn."""
SECONDS_AN_EPOCH = 240


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


@contextmanager
def few_resamples() -> Iterator[None]:
    """The gate's intervals of 100 resamples: its 10,000 to 50,000 take a quarter of a second a night."""
    real = bootstrap._estimate

    def estimate(*labels: Any, resamples: int, **options: Any) -> bootstrap.Estimate:
        return real(*labels, resamples=min(resamples, 100), **options)

    with patch.object(bootstrap, "_estimate", estimate):
        yield


@dataclass(frozen=True)
class _Model:
    """A version with what it predicts for every test row that the pipeline will ever have."""

    version: int
    run_id: str
    day: int
    predictions: Labels


class Writer:
    """Writes the nights of one pipeline."""

    def __init__(self, db: Database, name: str, size: Size) -> None:
        self._db, self._name, self._size, self._story = db, name, size, Story(size.nights, size.every)
        self._random = np.random.default_rng(len(name))
        self._device = "NVIDIA H200" if name == WRITTEN[0] else "cpu"
        self._rows_a_night = max(1, size.test_rows // 100)
        number = size.test_rows + size.nights * self._rows_a_night
        self._true = self._random.choice(len(LABELS), number, p=SHARES).astype(np.int64)
        self._ease = self._random.normal(size=number)
        """How easily every model gets the row right."""
        self._prints = [hashlib.md5(f"{name} {row}".encode()).hexdigest() for row in range(number)]
        self._slices = (
            Slice("language", _named(LANGUAGES, size.languages), self._random.integers(0, size.languages, number)),
            Slice("product", _named(PRODUCTS, size.products), self._random.integers(0, size.products, number)),
        )
        self._columns = pd.DataFrame({f"slice_{one.name}": np.array(one.values)[one.codes] for one in self._slices})
        arrived = np.maximum(0, (np.arange(number) - size.test_rows) // self._rows_a_night + 1)
        self._arrived: Labels = arrived - np.maximum(0, (size.test_rows - np.arange(number)) // self._rows_a_night)
        """The night of each row, negative for those of before the first one."""
        self._champion: _Model | None = None
        self._promotions = 0

    def write(self) -> None:
        for day in range(self._size.nights):
            self.write_night(day)
        self._db.write(self._name_code_versions)

    def write_night(self, day: int) -> None:
        night = _night(day)
        with time_machine.travel(night.data_until, tick=False) as self._clock:
            self._write_night(day, night)

    def _write_night(self, day: int, night: Night) -> None:
        before = self._champion
        run = self._night(day, night)
        if run.status == "promoted":
            self._promotions += 1
            if self._promotions == 4:  # the night is run again manually
                self._night(day, replace(night, trigger="manual"), force=True)
            if self._promotions == 6 and before is not None:
                self._pass(hours=7)
                self._roll_back(before)
        if day % 30 == 12 and freezes.frozen(self._db, self._name):
            freezes.unfreeze(self._db, self._name, by="ada", reason="the labels of that week are corrected")

    def _night(self, day: int, night: Night, *, force: bool = False) -> RunRow:
        """One run of a night."""
        story, pipeline = self._story, self._pipeline(day)
        run = self._open(pipeline, night, force=force)
        # Where the first of two attempts dies, the second is opened here.
        place = (self._db, run.run_id, run.attempt)
        self._pass(minutes=1)
        lifecycle.record_attempt(*place, slot="gpu", slot_wait_seconds=float(self._random.integers(0, 90)))
        if story.fails(day):
            return self._fail(place)
        refreshed = self._refreshed(day, night)
        records.record_snapshot(*place, refreshed, drift=list(self._drift(day)))
        quiet = story.is_quiet(day) and not force
        champion = None
        if self._champion is not None:
            champion = self._evaluated(self._champion, day, refreshed.snapshot.id, run.run_id)
            self._pass(seconds=20)
        records.record_reasons(*place, self._inputs(day, refreshed, pipeline), self._why(refreshed), champion)
        if quiet:
            return self._end(place, "skipped", reason="too few rows are new since the last training")
        candidate = self._model(day)
        self._train(place, candidate, day)
        if story.crashes(day) and run.attempt == 1:
            lifecycle.record_attempt(*place, heartbeat_at=datetime.now(UTC))
            self._pass(hours=1)
            resumed = self._open(pipeline, night)
            place = (self._db, resumed.run_id, resumed.attempt)
            lifecycle.record_attempt(*place, slot="gpu", slot_wait_seconds=0.0)
            self._train(place, candidate, day, resumed_from=1)
        return self._judge(place, day, night, pipeline, candidate)

    def _open(self, pipeline: Pipeline, night: Night, *, force: bool = False) -> RunRow:
        host = f"worker-{1 + len(self._name) % 2}"
        owner = Owner(host, 4711, datetime.now(UTC), space="boot/1", ticks=1)
        return claim.open_run(self._db, pipeline, night, owner=owner, force=force)

    def _judge(
        self, place: tuple[Database, str, int], day: int, night: Night, pipeline: Pipeline, candidate: _Model
    ) -> RunRow:
        (db, run_id, _), champion = place, self._champion
        self._pass(minutes=3)
        candidate = replace(candidate, run_id=run_id)
        at = self._tonight(day)
        rows = self._rows(at)
        of_champion = None if champion is None else self._side(champion, at, night)
        evidence = Evidence(
            LABELS,
            self._story.test_version(day),
            night.data_until,
            rows,
            replace(self._side(candidate, at, night), version=None),
            of_champion,
            of_champion,
            champion_nights=None if champion is None else day - champion.day,
            seed_average=pipeline.gate.average,
        )
        made_by = {"candidate": run_id}
        if champion is not None:
            made_by |= dict.fromkeys(("champion", "anchor"), champion.run_id)
        decision = decide(evidence, pipeline.gate)
        window = decision.measured.window
        right, predicted = rows.true[window], candidate.predictions[at][window]
        scores = score(right, predicted, len(LABELS))
        details = (self._scored(at[window], predicted), _counts(right, predicted))
        records.record_decision(*place, decision, evidence, made_by, scores, *details)
        libraries = {"torch": self._story.torch(day), "transformers": "5.1.0"}
        version = promotion.add_version(
            *place,
            lambda number: f"models/{self._name}/v{number:04}",
            base_model_revision="c5a7f1d7a5f3",
            environment={"python": "3.11.9", "device": self._device, "precision": "bf16", "libraries": libraries},
            size_bytes=470_000_000,
        )
        frozen = freezes.frozen(db, self._name)
        if decision.verdict != "promote" or frozen:
            else_ = f"{frozen}; else it would have been promoted: " if frozen else ""
            return self._end(place, "held", reason=f"{else_}{decision.reason}")
        promotion.promote_candidate(
            db,
            self._name,
            version,
            run_id=run_id,
            attempt=place[2],
            expected=None if champion is None else champion.version,
            reason=decision.reason,
            moves_anchor=True,
        )
        self._champion = replace(candidate, version=version)
        return self._ended(run_id)

    def _roll_back(self, before: _Model) -> None:
        assert self._champion is not None
        bad, reason = self._champion.version, "complaints about returns that were read as praise"
        promotion.roll_back(self._db, self._name, before.version, expected=bad, by="ada", reason=reason)
        self._champion = before

    def _fail(self, place: tuple[Database, str, int]) -> RunRow:
        seen = 40 * self._rows_a_night
        found = CheckResult("rows", "failed", 0.52, 0.1, "52 % of the rows that the last night had are gone")
        error = DataCheckError(
            f"the data of {self._name} failed a check: {found.reason}",
            next_step="mend the export, then run the night again",
        )
        error.parts, error.checks = (PartCounts("reviews.csv", seen, taken=seen),), (found,)
        records.record_failed_refresh(*place, error)
        why = {"error_type": error.error_type, "reason": error.reason, "next_step": error.next_step}
        return self._end(place, "failed", **why)

    def _end(self, place: tuple[Database, str, int], status: str, **why: str | None) -> RunRow:
        lifecycle.finish_run(*place, status, **why)
        return self._ended(place[1])

    def _ended(self, run_id: str) -> RunRow:
        run = read_run(self._db, run_id)
        mark_announced(self._db, run)
        mark_closed(self._db, run)
        return run

    def _pass(self, **time: float) -> None:
        self._clock.shift(timedelta(**time))

    # --- made-up facts ---

    def _pipeline(self, day: int) -> Pipeline:
        rate = 1e-4 if day in self._story.other_setting else 5e-5
        known = self._pipelines.get(rate)
        if known is None:
            known = self._pipelines[rate] = Pipeline.model_validate(
                {
                    "name": self._name,
                    "data": {"source": {"kind": "sample"}, "labels": list(LABELS)},
                    "training": {"learning_rate": rate, "epochs": self._size.epochs},
                    # So few rows prove little.
                    "gate": {"min_f1": 0.4} if self._size.test_rows >= 2_000 else _LENIENT,
                    "resources": {"slot": "gpu"},
                }
            )
        return known

    @cached_property
    def _pipelines(self) -> dict[float, Pipeline]:
        return {}

    def _tonight(self, day: int) -> Labels:
        """The places of tonight's test rows."""
        return np.arange(self._size.test_rows) + (day + 1) * self._rows_a_night

    def _rows(self, at: Labels) -> Rows:
        start = microseconds(_night(0).data_until)
        return Rows(
            self._true[at],
            start + self._arrived[at] * 86_400_000_000 - 3_600_000_000,
            tuple(self._prints[row] for row in at.tolist()),
            slices=tuple(replace(one, codes=one.codes[at]) for one in self._slices),
        )

    def _model(self, day: int) -> _Model:
        """A model of tonight: better with more rows, the worse the newer the rows are that it did not see."""
        story = self._story
        skill = 0.53 + 0.06 * (1 - np.exp(-day / 200)) + self._random.normal(0, 0.004)
        by_class = skill + np.array([0.03, -0.03, 0.0, 0.0, 0.02])
        if day in story.other_setting:
            by_class[1] -= 0.24
        unseen = np.maximum(0, self._arrived - day)
        new = (self._arrived >= story.drop.start) & (self._arrived < story.drop.stop)
        share = np.clip(by_class[self._true] - 0.0006 * unseen - 0.22 * new, 0.05, 0.95)
        draws = 0.95 * self._ease + np.sqrt(1 - 0.95**2) * self._random.normal(size=len(self._ease))
        wrong = np.clip(self._true + self._random.choice((-1, 1), len(draws)), 0, 4)
        wrong = np.where(wrong == self._true, (self._true + 2) % 5, wrong)
        return _Model(0, "", day, np.where(draws < ndtri(share), self._true, wrong))

    def _side(self, model: _Model, at: Labels, night: Night) -> Side:
        latency = 4.0 + float(self._random.normal(0, 0.1))
        return Side(
            model.predictions[at],
            night.data_until - timedelta(days=_day_of(night) - model.day),
            model.version,
            trained_on=np.zeros(len(at), dtype=np.bool_),
            calibration_error=0.05,
            serving=Serving(rows=64, logit_difference=1e-6, latency_ms=latency, size_bytes=470_000_000),
        )

    def _train(self, place: tuple[Database, str, int], model: _Model, day: int, resumed_from: int = 0) -> None:
        """Record the epochs of an attempt. That of a night that crashes ends after two."""
        attempt = place[2]
        dies = self._story.crashes(day) and attempt == 1
        at = self._tonight(day)[: max(100, self._size.test_rows // 10)]
        epochs, overfits = self._size.epochs, day in self._story.other_setting or day % 9 == 0
        best = epochs - 1 if overfits else epochs
        for epoch in range(resumed_from + 1, (2 if dies else epochs) + 1):
            self._pass(seconds=SECONDS_AN_EPOCH)
            worse = self._random.random(len(at)) < 0.04 * abs(epoch - best)
            predicted = np.where(worse, (self._true[at] + 1) % 5, model.predictions[at])
            report = EpochReport(
                attempt=attempt,
                epoch=epoch,
                step=250 * epoch,
                training_loss=1.25 * 0.85**epoch,
                validation_loss=1.05 + (0.04 if overfits else 0.01) * (epoch - best) ** 2,
                learning_rate=self._pipeline(day).training.learning_rate * (1 - epoch / (epochs + 1)),
                examples_per_second=410.0,
                tokens_per_second=17_000.0,
                predictions=Path("epoch.npz"),
                scores=score(self._true[at], predicted, len(LABELS)),
                precision="bf16",
                device=self._device,
                engine="packed",
                engine_reason="packed: the model takes an attention of our own",
                is_best=epoch == best,
                stopped_early=False,
            )
            counts = _counts(self._true[at], predicted)
            records.record_epoch(*place, report, report.scores, self._scored(at, predicted), counts)
        if dies:
            return
        result = TrainResult(
            best_epoch=best,
            best_model=Path("best"),
            epochs_run=epochs,
            stopped_early=False,
            resumed_from=resumed_from,
            device=self._device,
            precision="bf16",
            precision_reason="bf16: it is computed natively",
            threads=8,
            engine="packed",
            engine_reason="packed: the model takes an attention of our own",
            micro_batches=1,
            rows_trained=40 * self._rows_a_night,
        )
        records.record_training(*place, result)

    def _scored(self, at: Labels, predicted: Labels) -> list[SliceScore]:
        return slice_scores(self._columns.iloc[at], self._true[at], predicted, len(LABELS), LABELS)

    def _evaluated(self, champion: _Model, day: int, snapshot_id: str, run_id: str) -> Evaluation:
        at = np.flatnonzero((self._arrived > champion.day) & (self._arrived <= day))
        predicted = champion.predictions[at]
        scores = score(self._true[at], predicted, len(LABELS))
        f1, half = scores.f1_weighted, 1.96 * (0.25 / max(1, len(at))) ** 0.5
        found = Evaluation(
            self._name,
            snapshot_id,
            champion.version,
            "champion",
            datetime.now(UTC),
            _night(champion.day).data_until,
            _night(day).data_until,
            len(at),
            f"F1 {f1:.4f} on {len(at):,} rows that came since" if f1 is not None else "no row came since",
            f1=f1,
            f1_ci_low=None if f1 is None else f1 - half,
            f1_ci_high=None if f1 is None else f1 + half,
            accuracy=scores.accuracy,
            min_f1=0.4,
            alarms=("champion_dropped",) if day in self._story.drop else (),
            run_id=run_id,
        )
        policy = {"average": "weighted", "confidence": 0.95, "min_f1": 0.4}
        return evaluations.record(self._db, found, policy, self._scored(at, predicted) if len(at) else (), "weighted")

    def _refreshed(self, day: int, night: Night) -> Refreshed:
        # At weekends no row comes: the snapshot is Friday's.
        number = day - max(0, day % 7 - 2) if day % 7 in {3, 4} else day
        snapshot_id = f"s-{hashlib.md5(f'{self._name} {number}'.encode()).hexdigest()[:16]}"
        total = self._rows_a_night * (500 + number) + (8_000 if number >= self._story.drop.start else 0)
        new, test = 10 * self._rows_a_night if number == day else 0, self._size.test_rows
        bad = 1 + int(self._random.poisson(1)) if new else 0
        manifest = {
            "id": snapshot_id,
            "pipeline": self._name,
            "test_version": self._story.test_version(day),
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
            Snapshot(snapshot_id, self._db.home.snapshots / self._name / snapshot_id, manifest),
            quarantined,
            rows_new=new,
            rows_total=total,
            rows_duplicate=3,
            parts=(PartCounts(part, new + bad, taken=new, quarantined=bad, bytes=150 * new),),
            checks=(CheckResult("rows", "passed", 0.0, 0.1, f"{total:,} rows"),),
            relabelled=0,
        )

    def _drift(self, day: int) -> Iterable[tuple[str, DriftStatistic]]:
        drifts = self._story.drifts(day)
        for reference in ("champion", "last_week"):
            for statistic, name, limit in _STATISTICS:
                moved = drifts and statistic == "slice_shares"
                value = 0.31 if moved else limit * float(self._random.uniform(0.2, 0.6))
                yield (
                    reference,
                    DriftStatistic(
                        statistic,
                        "total_variation" if name or statistic == "label_shares" else "kolmogorov_smirnov",
                        value=value,
                        threshold=limit,
                        rows_used=10 * self._rows_a_night,
                        reference_rows=70 * self._rows_a_night,
                        reason=f"{name or statistic.replace('_', ' ')} moved by {value:.2f}",
                        slice_name=name,
                    ),
                )

    def _inputs(self, day: int, refreshed: Refreshed, pipeline: Pipeline) -> dict[str, str]:
        return {
            "snapshot": refreshed.snapshot.id,
            "configuration": pipeline.config_hash,
            "code": self._story.code(day),
            "base model": "c5a7f1d7a5f3",
            "Python": "3.11.9",
            "torch": self._story.torch(day),
            "transformers": "5.1.0",
        }

    def _why(self, refreshed: Refreshed) -> str:
        least = 10 * self._rows_a_night * self._size.every
        return f"{refreshed.rows_new:,} new rows since the last night (trains at {least:,})"

    def _name_code_versions(self, session: Session) -> None:
        """Runs have the version of this checkout; here they get that of the story."""
        for day in range(self._size.nights):
            of_night = sa.select(Run.run_id).where(Run.pipeline == self._name, Run.night == _night(day).date)
            for table in (Run, Attempt):
                statement = sa.update(table).where(table.run_id.in_(of_night))
                session.execute(statement.values(code_version=self._story.code(day)))


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


def _night(day: int) -> Night:
    chosen = FIRST_NIGHT + timedelta(days=day)
    instant = datetime(chosen.year, chosen.month, chosen.day, 2, 15, tzinfo=UTC)
    return Night(chosen, "schedule", instant, instant)


def _day_of(night: Night) -> int:
    return (night.date - FIRST_NIGHT).days


def _named(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    return (*names, *(f"{names[0]} {number}" for number in range(2, 2 + count)))[:count]


def _counts(true: Labels, predicted: Labels) -> Labels:
    return confusion_counts(true, predicted, len(LABELS))
