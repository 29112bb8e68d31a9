"""Made-up nights of a pipeline, written by the functions that record real ones; the gate judges what was predicted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import sqlalchemy as sa
import time_machine
from sqlalchemy.orm import Session

from benchmarks.fleet_facts import LABELS, Facts, Model, Size, counts_of, night_of
from nightgate.config.pipeline import Pipeline
from nightgate.data.checks import CheckResult
from nightgate.data.refresh_counts import PartCounts
from nightgate.database.schema import Attempt, Run
from nightgate.database.transactions import Database
from nightgate.errors import DataCheckError
from nightgate.gate.decide import decide
from nightgate.gate.evidence import Evidence
from nightgate.metrics import bootstrap
from nightgate.metrics.classification import score
from nightgate.operations.reconciliation import mark_announced, mark_closed
from nightgate.registry import freezes, promotion
from nightgate.runs import claim, evaluations, lifecycle, records
from nightgate.runs.evaluations import Evaluation
from nightgate.runs.liveness import Owner
from nightgate.runs.run_row import RunRow, read_run
from nightgate.schedule import Night
from nightgate.training.protocol import EpochReport, TrainResult

SECONDS_AN_EPOCH = 240


@contextmanager
def few_resamples() -> Iterator[None]:
    """The gate's intervals of 100 resamples: its 10,000 to 50,000 take a quarter of a second a night."""
    real = bootstrap._estimate

    def estimate(*labels: Any, resamples: int, **options: Any) -> bootstrap.Estimate:
        return real(*labels, resamples=min(resamples, 100), **options)

    with patch.object(bootstrap, "_estimate", estimate):
        yield


class Writer:
    """Writes the nights of one pipeline."""

    def __init__(self, db: Database, name: str, size: Size) -> None:
        self._db, self._facts = db, Facts(name, size)
        self._champion: Model | None = None
        self._promotions = 0

    def write(self) -> None:
        for day in range(self._facts.size.nights):
            self.write_night(day)
        self._db.write(self._name_code_versions)

    def write_night(self, day: int) -> None:
        night = night_of(day)
        with time_machine.travel(night.data_until, tick=False) as self._clock:
            self._write_night(day, night)
        self._db.disconnect()

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
        if day % 30 == 12 and freezes.frozen(self._db, self._facts.name):
            freezes.unfreeze(self._db, self._facts.name, by="ada", reason="the labels of that week are corrected")

    def _night(self, day: int, night: Night, *, force: bool = False) -> RunRow:
        """One run of a night."""
        story, pipeline = self._facts.story, self._facts.pipeline(day)
        run = self._open(pipeline, night, force=force)
        # Where the first of two attempts dies, the second is opened here.
        place = (self._db, run.run_id, run.attempt)
        lifecycle.record_attempt(*place, slot="gpu", slot_wait_seconds=float(self._facts.random.integers(0, 90)))
        self._pass(minutes=1)
        if story.fails(day):
            return self._fail(place)
        refreshed = self._facts.refreshed(day, night, self._db.home.snapshots)
        records.record_snapshot(*place, refreshed, drift=list(self._facts.drift(day)))
        quiet = story.is_quiet(day) and not force
        champion = None
        if self._champion is not None:
            self._db.disconnect()  # the champion is scored for longer than a connection is kept
            champion = self._evaluated(self._champion, day, refreshed.snapshot.id, run.run_id)
            self._clock.shift(timedelta(seconds=20))
        records.record_reasons(
            *place, self._facts.inputs(day, refreshed, pipeline), self._facts.why(refreshed), champion
        )
        if quiet:
            return self._end(place, "skipped", reason="too few rows are new since the last training")
        candidate = self._facts.model(day)
        self._train(place, candidate, day)
        if story.crashes(day) and run.attempt == 1:
            lifecycle.record_attempt(*place, heartbeat_at=datetime.now(UTC))
            self._pass(hours=1)
            resumed = self._open(pipeline, night)
            place = (self._db, resumed.run_id, resumed.attempt)
            lifecycle.record_attempt(*place, slot="gpu", slot_wait_seconds=0.0)
            self._train(place, candidate, day, resumed_from=1)
        self._pass(minutes=3)
        return self._judge(place, day, night, pipeline, candidate)

    def _open(self, pipeline: Pipeline, night: Night, *, force: bool = False) -> RunRow:
        host = f"worker-{1 + len(self._facts.name) % 2}"
        owner = Owner(host, 4711, datetime.now(UTC), space="boot/1", ticks=1)
        return claim.open_run(self._db, pipeline, night, owner=owner, force=force)

    def _judge(
        self, place: tuple[Database, str, int], day: int, night: Night, pipeline: Pipeline, candidate: Model
    ) -> RunRow:
        (db, run_id, _), champion = place, self._champion
        candidate = replace(candidate, run_id=run_id)
        at = self._facts.tonight(day)
        rows = self._facts.rows(at)
        of_champion = None if champion is None else self._facts.side(champion, at, night)
        evidence = Evidence(
            LABELS,
            self._facts.story.test_version(day),
            night.data_until,
            rows,
            replace(self._facts.side(candidate, at, night), version=None),
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
        details = (self._facts.scored(at[window], predicted), counts_of(right, predicted))
        records.record_decision(*place, decision, evidence, made_by, scores, *details)
        libraries = {"torch": self._facts.story.torch(day), "transformers": "5.1.0"}
        version = promotion.add_version(
            *place,
            lambda number: f"models/{self._facts.name}/v{number:04}",
            base_model_revision="c5a7f1d7a5f3",
            environment={"python": "3.11.9", "device": self._facts.device, "precision": "bf16", "libraries": libraries},
            size_bytes=470_000_000,
        )
        frozen = freezes.frozen(db, self._facts.name)
        if decision.verdict != "promote" or frozen:
            else_ = f"{frozen}; else it would have been promoted: " if frozen else ""
            return self._end(place, "held", reason=f"{else_}{decision.reason}")
        promotion.promote_candidate(
            db,
            self._facts.name,
            version,
            run_id=run_id,
            attempt=place[2],
            expected=None if champion is None else champion.version,
            reason=decision.reason,
            moves_anchor=True,
        )
        self._champion = replace(candidate, version=version)
        return self._ended(run_id)

    def _roll_back(self, before: Model) -> None:
        assert self._champion is not None
        bad, reason = self._champion.version, "complaints about returns that were read as praise"
        promotion.roll_back(self._db, self._facts.name, before.version, expected=bad, by="ada", reason=reason)
        self._champion = before

    def _fail(self, place: tuple[Database, str, int]) -> RunRow:
        seen = 40 * self._facts.rows_a_night
        found = CheckResult("rows", "failed", 0.52, 0.1, "52 % of the rows that the last night had are gone")
        error = DataCheckError(
            f"the data of {self._facts.name} failed a check: {found.reason}",
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
        """Let a time go by that is longer than a connection is kept."""
        self._db.disconnect()
        self._clock.shift(timedelta(**time))

    def _train(self, place: tuple[Database, str, int], model: Model, day: int, resumed_from: int = 0) -> None:
        """Record the epochs of an attempt. That of a night that crashes ends after two."""
        attempt = place[2]
        dies = self._facts.story.crashes(day) and attempt == 1
        at = self._facts.tonight(day)[: max(100, self._facts.size.test_rows // 10)]
        epochs, overfits = self._facts.size.epochs, day in self._facts.story.other_setting or day % 9 == 0
        best = epochs - 1 if overfits else epochs
        for epoch in range(resumed_from + 1, (2 if dies else epochs) + 1):
            self._pass(seconds=SECONDS_AN_EPOCH)
            worse = self._facts.random.random(len(at)) < 0.04 * abs(epoch - best)
            predicted = np.where(worse, (self._facts.true[at] + 1) % 5, model.predictions[at])
            report = EpochReport(
                attempt=attempt,
                epoch=epoch,
                step=250 * epoch,
                training_loss=1.25 * 0.85**epoch,
                validation_loss=1.05 + (0.04 if overfits else 0.01) * (epoch - best) ** 2,
                learning_rate=self._facts.pipeline(day).training.learning_rate * (1 - epoch / (epochs + 1)),
                examples_per_second=410.0,
                tokens_per_second=17_000.0,
                predictions=Path("epoch.npz"),
                scores=score(self._facts.true[at], predicted, len(LABELS)),
                precision="bf16",
                device=self._facts.device,
                engine="packed",
                engine_reason="packed: the model takes an attention of our own",
                is_best=epoch == best,
                stopped_early=False,
            )
            counts = counts_of(self._facts.true[at], predicted)
            records.record_epoch(*place, report, report.scores, self._facts.scored(at, predicted), counts)
        if dies:
            return
        result = TrainResult(
            best_epoch=best,
            best_model=Path("best"),
            epochs_run=epochs,
            stopped_early=False,
            resumed_from=resumed_from,
            device=self._facts.device,
            precision="bf16",
            precision_reason="bf16: it is computed natively",
            threads=8,
            engine="packed",
            engine_reason="packed: the model takes an attention of our own",
            micro_batches=1,
            rows_trained=40 * self._facts.rows_a_night,
        )
        records.record_training(*place, result)

    def _evaluated(self, champion: Model, day: int, snapshot_id: str, run_id: str) -> Evaluation:
        at = np.flatnonzero((self._facts.arrived > champion.day) & (self._facts.arrived <= day))
        predicted = champion.predictions[at]
        scores = score(self._facts.true[at], predicted, len(LABELS))
        f1, half = scores.f1_weighted, 1.96 * (0.25 / max(1, len(at))) ** 0.5
        found = Evaluation(
            self._facts.name,
            snapshot_id,
            champion.version,
            "champion",
            datetime.now(UTC),
            night_of(champion.day).data_until,
            night_of(day).data_until,
            len(at),
            f"F1 {f1:.4f} on {len(at):,} rows that came since" if f1 is not None else "no row came since",
            f1=f1,
            f1_ci_low=None if f1 is None else f1 - half,
            f1_ci_high=None if f1 is None else f1 + half,
            accuracy=scores.accuracy,
            min_f1=0.4,
            alarms=("champion_dropped",) if day in self._facts.story.drop else (),
            run_id=run_id,
        )
        policy = {"average": "weighted", "confidence": 0.95, "min_f1": 0.4}
        return evaluations.record(
            self._db, found, policy, self._facts.scored(at, predicted) if len(at) else (), "weighted"
        )

    def _name_code_versions(self, session: Session) -> None:
        """Runs have the version of this checkout; here they get that of the story."""
        for day in range(self._facts.size.nights):
            of_night = sa.select(Run.run_id).where(Run.pipeline == self._facts.name, Run.night == night_of(day).date)
            for table in (Run, Attempt):
                statement = sa.update(table).where(table.run_id.in_(of_night))
                session.execute(statement.values(code_version=self._facts.story.code(day)))
