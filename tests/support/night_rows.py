"""Made-up rows for database tests: a pipeline, its nights and the results of training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from nightgate.config.pipeline import Pipeline
from nightgate.data.checks import CheckResult
from nightgate.data.refresh import Refreshed
from nightgate.data.refresh_counts import LabelVotes, PartCounts
from nightgate.data.snapshots import Snapshot
from nightgate.database.schema import ModelVersion, Promotion
from nightgate.database.transactions import Database
from nightgate.gate.decision import Check, Decision, Measured, Score, Verdict
from nightgate.gate.evidence import Evidence, Rows, Side
from nightgate.metrics.bootstrap import Interval
from nightgate.metrics.classification import SliceScore
from nightgate.metrics.confusion import Scores
from nightgate.models import version_folder
from nightgate.registry import approvals, promotion, versions
from nightgate.registry.versions import VersionRow
from nightgate.runs import claim, lifecycle, records
from nightgate.runs.liveness import Owner
from nightgate.runs.run_row import RunRow
from nightgate.schedule import Night
from nightgate.sources.source_table import Quarantined
from nightgate.training.protocol import EpochReport, TrainResult

FIRST_NIGHT = date(2026, 3, 1)

# Training Loss, Epoch, Step, Validation Loss, Accuracy, F1, Precision, Recall: the published run.
PUBLISHED = (
    (1.0049, 1, 2500, 1.0616, 0.5352, 0.5268, 0.5347, 0.5352),
    (0.9172, 2, 5000, 1.0763, 0.5432, 0.5412, 0.5444, 0.5432),
    (0.8285, 3, 7500, 1.1077, 0.5408, 0.5428, 0.5494, 0.5408),
    (0.7361, 4, 10000, 1.1743, 0.5342, 0.5399, 0.5531, 0.5342),
    (0.6538, 5, 12500, 1.2436, 0.5422, 0.5435, 0.5452, 0.5422),
)


def pipeline(name: str = "reviews", average: str = "weighted", learning_rate: float = 5e-5) -> Pipeline:
    return Pipeline.model_validate(
        {
            "name": name,
            "data": {"source": {"kind": "sample"}, "labels": ["bad", "good"]},
            "gate": {"average": average, "min_f1": 0.54},
            "training": {"learning_rate": learning_rate},
        }
    )


def night(day: int = 0) -> Night:
    """The scheduled night `day` days after the first."""
    chosen = FIRST_NIGHT + timedelta(days=day)
    instant = datetime(chosen.year, chosen.month, chosen.day, 3, 15, tzinfo=UTC)
    return Night(chosen, "schedule", instant, instant)


def dead_owner() -> Owner:
    """A process of this machine with a pid that the kernel never assigns."""
    return replace(Owner.here(), pid=2**22 + 1)


def open_run(db: Database, pipeline: Pipeline, night: Night, **options: Any) -> RunRow:
    """Open a run of a dead process, which the next run fails; `owner` names another process."""
    options.setdefault("owner", dead_owner())
    return claim.open_run(db, pipeline, night, **options)


def superseded(db: Database, pipeline: Pipeline, night: Night) -> RunRow:
    """A run that ended at once as superseded."""
    return open_run(db, pipeline, night, overtaken="another is at work")


def opened(database: Database, day: int = 0, trigger: str = "schedule", **options: Any) -> RunRow:
    """The run of the pipeline `reviews` that night."""
    return open_run(database, pipeline(), replace(night(day), trigger=trigger), **options)


def one(database: Database, run_id: str) -> dict[str, Any]:
    """A run's row of the view `nightly_runs`."""
    [row] = database.frame("SELECT * FROM nightly_runs WHERE run_id = :id", {"id": run_id}).to_dict("records")
    return {str(key): value for key, value in row.items()}


def within(seconds: float, what: Callable[[], Any]) -> Any:
    """Poll `what` until it is true; returns its value."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)
    return found


def scores(f1: float | None = 0.6, macro: float | None = None, support: int = 10, **other: Any) -> Scores:
    """Weighted metrics of `f1`; macro metrics of `macro`, by default 0.1 below."""
    macro = macro if macro is not None or f1 is None else f1 - 0.1
    return replace(Scores(support, f1, f1, macro, f1, macro, f1, macro), **other)


def report(epoch: int, attempt: int = 1, **other: Any) -> EpochReport:
    values: dict[str, Any] = {
        "step": 100 * epoch,
        "training_loss": 1.0 / epoch,
        "validation_loss": 1.1,
        "learning_rate": 1e-5,
        "examples_per_second": 50.0,
        "tokens_per_second": 2000.0,
        "predictions": Path("epoch.npz"),
        "scores": scores(),
        "precision": "fp32",
        "device": "cpu",
        "engine": "packed",
        "engine_reason": "bert takes packed texts",
        "is_best": True,
        "stopped_early": False,
    }
    return EpochReport(attempt=attempt, epoch=epoch, **(values | other))


def trained(best_epoch: int = 1, resumed_from: int = 0) -> TrainResult:
    return TrainResult(
        best_epoch=best_epoch,
        best_model=Path("best"),
        epochs_run=best_epoch,
        stopped_early=False,
        resumed_from=resumed_from,
        device="cpu",
        precision="fp32",
        precision_reason="there is no GPU",
        threads=2,
        engine="packed",
        engine_reason="packed: the model takes an attention of our own",
        micro_batches=1,
    )


def refreshed(db: Database, snapshot_id: str = "s-0011223344556677", bad_rows: int = 2) -> Refreshed:
    folder = db.home.snapshots / "reviews" / snapshot_id
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "id": snapshot_id,
        "pipeline": "reviews",
        "test_version": "t-0011223344",
        "rows": {"train": 80, "validation": 10, "test": 10},
        "rows_total": 100,
        "rows_duplicate": 3,
        "rows_quarantined": bad_rows,
        "data_until": "2026-03-01T03:15:00+00:00",
        "first_time": None,
        "last_time": None,
    }
    if not (folder / "manifest.json").exists():
        (folder / "manifest.json").write_text("{}", encoding="utf-8")
    quarantined = tuple(
        Quarantined(f"reviews.csv:{line}", None, "empty_text", "the text is blank", "a\0b \ud83d")
        for line in range(1, bad_rows + 1)
    )
    return Refreshed(
        Snapshot(snapshot_id, folder, manifest),
        quarantined,
        rows_new=40,
        rows_total=100,
        rows_duplicate=3,
        parts=(PartCounts("reviews.csv", 103 + bad_rows, taken=100, merged=3, quarantined=bad_rows, bytes=9000),),
        checks=(
            CheckResult("rows", "passed", 0.0, 0.1, "100 rows became 100"),
            CheckResult("labels", "allowed", 0.4, 0.25, "labels of new rows moved by 0.40"),
        ),
        votes=(LabelVotes("ab" * 16, {"bad": 1, "good": 2}, "good"),),
        relabelled=1,
    )


def slices(f1: float = 0.6) -> list[SliceScore]:
    return [SliceScore("label", "bad", scores(f1)), SliceScore("label", "good", scores(f1, support=0))]


def confusion() -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([[4, 1], [2, 3]], dtype=np.int64)


def decision(verdict: Verdict = "promote", f1: float | None = 0.6, champion_f1: float | None = None) -> Decision:
    passed = verdict == "promote"
    check = Check(
        name="min_f1",
        outcome="passed" if passed else "failed",
        reason="F1 0.6000 reaches min_f1 0.5400" if passed else "F1 0.5000 is below min_f1 0.5400",
        candidate_value=0.6 if passed else 0.5,
        threshold=0.54,
        ci_low=0.5,
        ci_high=0.7,
        rows_used=10,
    )
    first = Check(name="beats_champion", outcome="not_run", reason="there is no champion yet")
    measured = Measured(
        window=np.ones(10, dtype=np.bool_),
        window_start=None,
        left_out=0,
        candidate=Score(10, f1, Interval(0.5, 0.7)),
        candidate_all=Score(10, f1),
        champion=None if champion_f1 is None else Score(10, champion_f1),
    )
    return Decision(verdict, check.reason, (check, first), measured)


def evidence(champion: int | None = None) -> Evidence:
    """Ten test rows, on which the candidate and, if there is one, the champion were scored."""
    true = np.array([0] * 5 + [1] * 5)
    guesses = np.array([0, 0, 0, 0, 1, 0, 0, 1, 1, 1])
    of_champion = Side(guesses, night().data_until, version=champion) if champion is not None else None
    return Evidence(
        label_names=pipeline().data.label_names,
        test_version="t-0011223344",
        data_until=night().data_until,
        test=Rows(true, np.arange(10), tuple(f"{number:032x}" for number in range(10))),
        candidate=Side(guesses, night().data_until),
        champion=of_champion,
    )


def judged_version(
    db: Database, day: int = 0, verdict: Verdict = "promote", name: str = "reviews", **options: Any
) -> tuple[RunRow, int]:
    """A judged run of that night, still running, and the number of its version, which has no folder."""
    # As a backfill: tests open nights in any order.
    opened = open_run(db, pipeline(name), replace(night(day), trigger="backfill"), **options)
    records.record_decision(db, opened.run_id, opened.attempt, decision(verdict), evidence(), scores=scores())
    version = promotion.add_version(
        db, opened.run_id, opened.attempt, lambda number: f"models/{name}/v{number:04d}", size_bytes=1_000_000
    )
    return opened, version


def promotions(db: Database, name: str = "reviews") -> list[Promotion]:
    """Every promotion and rollback of the pipeline, oldest first."""
    query = sa.select(Promotion).where(Promotion.pipeline == name).order_by(Promotion.valid_from)
    return db.read(lambda session: list(session.scalars(query)))


def held_version(db: Database, day: int = 0, name: str = "reviews") -> int:
    """A version of an ended run."""
    opened, version = judged_version(db, day, name=name)
    lifecycle.finish_run(db, opened.run_id, opened.attempt, "held")
    return version


def write_files(db: Database, run_id: str) -> None:
    """Give the version of the run a folder, unless it has one."""
    row = db.read(lambda session: session.scalar(sa.select(ModelVersion).where(ModelVersion.run_id == run_id)))
    assert row is not None
    if (target := db.home.absolute(row.path)).exists():
        return
    labels = pipeline().data.label_names
    made = db.home.runs / run_id / "made-up"
    made.mkdir(parents=True)
    (made / "config.json").write_text(json.dumps({"id2label": dict(enumerate(labels))}))
    for name in ("model.safetensors", "tokenizer.json"):
        (made / name).write_text("made up")
    version_folder.Staging(target.parent, made, labels).place(row.version, "A card", {})


def await_approval(db: Database, run: RunRow, expected: int | None = None) -> None:
    """Let the run wait for an approval, with files of its version."""
    write_files(db, run.run_id)
    patience, asks = timedelta(hours=18), {"reason": "waits for approval: better", "next_step": "approve it"}
    approvals.request(db, run.run_id, run.attempt, expected=expected, patience=patience, **asks)


def promote(db: Database, version: int, expected: int | None = None, name: str = "reviews", **options: Any) -> None:
    """Promote the version manually, as ada."""
    values: dict[str, Any] = {"expected": expected, "by": "ada", "reason": "fit"} | options
    promotion.promote(db, name, version, **values)


def promote_itself(db: Database, run: RunRow, version: int, expected: int | None = None, **options: Any) -> None:
    """Promote the version of the run, as the gate."""
    own = {"run_id": run.run_id, "attempt": run.attempt, "expected": expected, "reason": "fit"}
    promotion.promote_candidate(db, run.pipeline, version, **(own | options))


def roll_back(db: Database, version: int, expected: int) -> None:
    promotion.roll_back(db, "reviews", version, expected=expected, by="ada", reason="worse")


def champion(db: Database, name: str = "reviews") -> VersionRow:
    """The champion of the pipeline, which has one."""
    row = versions.champion(db, name)
    assert row is not None
    return row


def anchor(db: Database, name: str = "reviews") -> VersionRow:
    """The anchor of the pipeline, which has one."""
    row = versions.anchor(db, name)
    assert row is not None
    return row
