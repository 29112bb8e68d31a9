"""Nights with stored evidence of constructed models on rows that grow every night."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightgate.config.pipeline import Pipeline
from nightgate.database.transactions import Database
from nightgate.gate.decide import decide
from nightgate.gate.evidence import Evidence, Rows, Serving, Side
from nightgate.gate.test_window import microseconds
from nightgate.registry import promotion
from nightgate.runs import records
from nightgate.runs.lifecycle import finish_run
from tests.support import night_rows

LABELS = ("bad", "good")
ROWS_A_NIGHT = 400


@dataclass(frozen=True)
class Model:
    """A model that is right on a share `skill` of the rows, always on the same rows."""

    name: str
    skill: float
    day: int = 0
    version: int | None = None
    run_id: str = ""
    trained_on: int | None = 0
    """It was trained on this many of the first rows; None: unknown."""

    def predictions(self, rows: Rows) -> NDArray[np.int64]:
        draws = np.array([_draw(self.name, one) for one in rows.fingerprints])
        return np.where(draws < self.skill, rows.true, 1 - rows.true)

    def side(self, rows: Rows, golden: Rows) -> Side:
        return Side(
            predictions=self.predictions(rows),
            data_until=night_rows.night(self.day).data_until,
            version=self.version,
            golden=self.predictions(golden),
            trained_on=None if self.trained_on is None else np.arange(len(rows)) < self.trained_on,
            calibration_error=0.05,
            serving=Serving(rows=64, logit_difference=1e-6, latency_ms=5.0, size_bytes=1_000_000),
        )


def rows_of(day: int, num_rows: int | None = None) -> Rows:
    """All test rows up to the night of `day`, or the first `num_rows`, oldest first."""
    numbers = range(num_rows or (day + 1) * ROWS_A_NIGHT)
    fingerprints = tuple(hashlib.md5(str(number).encode()).hexdigest() for number in numbers)
    nights = [night_rows.night(min(number // ROWS_A_NIGHT, day)).data_until for number in numbers]
    return Rows(
        true=np.array([_draw("true", one) < 0.5 for one in fingerprints], dtype=np.int64),
        seen_at=np.array([microseconds(night - timedelta(hours=1)) for night in nights]),
        fingerprints=fingerprints,
    )


def judged_night(
    db: Database,
    day: int,
    candidate: Model,
    champion: Model | None = None,
    *,
    anchor: Model | None = None,
    pipeline: Pipeline | None = None,
    num_rows: int | None = None,
    golden: Rows | None = None,
    **changes: Any,
) -> Model:
    """Store, decide and finish the night of `day`; returns the candidate as the version that it became.

    The champion is the anchor unless another one is given. The golden rows are those of the first night unless given;
    `changes` are made to the evidence.
    """
    pipeline = pipeline or night_rows.pipeline()
    opened = night_rows.open_run(db, pipeline, replace(night_rows.night(day), trigger="backfill"))
    rows, golden = rows_of(day, num_rows), golden or rows_of(0)
    made = replace(candidate, day=day, run_id=opened.run_id)
    of_champion = champion.side(rows, golden) if champion else None
    evidence = Evidence(
        label_names=LABELS,
        test_version="t-0011223344",
        data_until=night_rows.night(day).data_until,
        test=rows,
        candidate=replace(made.side(rows, golden), version=None),
        champion=of_champion,
        anchor=anchor.side(rows, golden) if anchor else of_champion,
        golden=golden,
        champion_nights=day - champion.day if champion else None,
    )
    evidence = replace(evidence, **changes)
    runs = {"candidate": opened.run_id}
    runs |= {name: one.run_id for name, one in (("champion", champion), ("anchor", anchor or champion)) if one}
    decision = decide(evidence, pipeline.gate)
    records.record_decision(db, opened.run_id, opened.attempt, decision, evidence, runs, night_rows.scores())
    version = promotion.add_version(db, opened.run_id, opened.attempt, lambda number: f"models/reviews/v{number:04d}")
    if decision.verdict == "promote":
        own = {"run_id": opened.run_id, "attempt": opened.attempt}
        expected = champion.version if champion else None
        promotion.promote_candidate(db, "reviews", version, expected=expected, reason=decision.reason, **own)
    else:
        finish_run(db, opened.run_id, opened.attempt, "held", reason=decision.reason)
    return replace(made, version=version)


def _draw(name: str, fingerprint: str) -> float:
    """A number in [0, 1), uniform over fingerprints and fixed for each pair."""
    return int(hashlib.md5(f"{name}/{fingerprint}".encode()).hexdigest()[:8], 16) / 2**32
