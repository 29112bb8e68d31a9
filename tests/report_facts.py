"""Facts of a night, put together by hand for the tests of its report."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from nightgate.config import Pipeline
from nightgate.diagnosis import MachineFacts, diagnose
from nightgate.reports.facts import Champion, ReportFacts, epoch_facts
from nightgate.reports.shares import SnapshotShares, length_edges
from tests.night_rows import PUBLISHED

STARTED = datetime(2026, 3, 2, 3, 15, tzinfo=UTC)

# The columns of `nightly_runs`; a run that was missed has hardly any of them.
COLUMNS = (
    "pipeline night run_id status reason error_type next_step verdict trigger attempts scheduled_for data_until "
    "snapshot_id rows_new rows_total best_epoch test_version test_rows test_f1 f1_ci_low f1_ci_high champion_version "
    "champion_f1 f1_delta model_version base_model config_hash code_version device precision started_at finished_at "
    "duration_seconds prefect_flow_run_id dry_run average min_f1 test_accuracy test_precision test_recall nonfinite "
    "engine micro_batches"
)


def run_row(**changes: Any) -> dict[str, Any]:
    """A run that came to nothing yet."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS.split())
    row |= {
        "pipeline": "reviews",
        "night": date(2026, 3, 2),
        "run_id": "reviews-20260302-0a1b2c",
        "status": "failed",
        "reason": "no file matches",
        "trigger": "schedule",
        "attempts": 1,
        "data_until": STARTED,
        "base_model": "microsoft/Multilingual-MiniLM-L12-H384",
        "config_hash": "0123456789ab",
        "code_version": "0.1.0",
        "started_at": STARTED,
        "dry_run": False,
        "average": "weighted",
        "min_f1": 0.54,
        "nonfinite": "",
    }
    return row | changes


def epoch_row(
    epoch: int, training: float | None, validation: float | None, f1: float | None, **more: Any
) -> dict[str, Any]:
    """A row of `epoch_results`."""
    return {
        "training_loss": training,
        "epoch": epoch,
        "step": 2500 * epoch,
        "validation_loss": validation,
        "accuracy": f1,
        "f1": f1,
        "precision": f1,
        "recall": f1,
        "examples_per_second": 50.0 + epoch,
        **more,
    }


def published_rows() -> tuple[dict[str, Any], ...]:
    names = ("training_loss", "epoch", "step", "validation_loss", "accuracy", "f1", "precision", "recall")
    return tuple(dict(zip(names, row, strict=True)) | {"examples_per_second": 50.0} for row in PUBLISHED)


def check_row(name: str, outcome: str, reason: str, **more: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("slice_name", "slice_value"), "") | dict.fromkeys(("ci_low", "ci_high"))
    return {**empty, "check_name": name, "outcome": outcome, "reason": reason, **more}


def slice_row(name: str, value: str, support: int, f1: float | None) -> dict[str, Any]:
    return {"slice_name": name, "slice_value": value, "support": support, "f1": f1, "precision": f1, "recall": f1}


def attempt_row(number: int, **more: Any) -> dict[str, Any]:
    """A row of the table `attempt`."""
    return {
        "attempt": number,
        "status": "running",
        "started_at": STARTED,
        "resumed_from_epoch": None,
        "restarts": 0,
        "host": "night-1",
        "reason": None,
        "precision_reason": None,
        "engine_reason": None,
        "threads": None,
        **more,
    }


def shares(snapshot_id: str, labels: dict[str, int], slices: dict[str, dict[str, int]]) -> SnapshotShares:
    rows = sum(labels.values())
    bins = len(length_edges()) - 1
    lengths = [0] * bins
    lengths[20], lengths[24] = rows // 2, rows - rows // 2
    return SnapshotShares(snapshot_id, rows, labels, slices, tuple(lengths), 60, 130)


def pipeline() -> Pipeline:
    return Pipeline.model_validate(
        {"name": "reviews", "data": {"source": {"kind": "sample"}, "labels": [1, 2]}, "gate": {"min_f1": 0.54}}
    )


def published_night(
    labels: tuple[str, ...] = ("1", "2", "3", "4", "5"), value: str = "kettle", **changes: Any
) -> ReportFacts:
    """A whole night with the numbers of the published run, promoted over version 1."""
    home = Path("/srv/nightgate")
    epochs = published_rows()
    size = len(labels)
    confusion = tuple(tuple(80 if row == column else 5 for column in range(size)) for row in range(size))
    counts = {label: 100 + place for place, label in enumerate(labels)}
    run = run_row(
        status="promoted",
        reason="F1 0.5435 on 5,000 test rows, +0.0031 against the champion (version 1)",
        verdict="promote",
        snapshot_id="s-0011223344556677",
        rows_new=40,
        rows_total=50_000,
        best_epoch=5,
        test_rows=5000,
        test_f1=0.5435,
        f1_ci_low=0.5301,
        f1_ci_high=0.5570,
        champion_version=1,
        champion_f1=0.5404,
        f1_delta=0.0031,
        model_version=2,
        device="NVIDIA H200",
        precision="bf16",
        engine="packed",
        micro_batches=1,
        finished_at=STARTED,
        duration_seconds=3725.0,
        test_accuracy=0.5422,
        slot="gpu1",
        slot_wait_seconds=65.2,
    )
    values: dict[str, Any] = {
        "run": run | changes.pop("run", {}),
        "pipeline": pipeline(),
        "label_names": labels,
        "epochs": epochs,
        "checks": (
            check_row("min_f1", "passed", "F1 0.5435 on 5,000 test rows reaches min_f1 0.5400"),
            check_row("beats_champion", "passed", "F1 0.5435 is above 0.5404", ci_low=-0.004, ci_high=0.0102),
        ),
        "confusion": confusion,
        "slices": (
            *(slice_row("label", label, 100, 0.5) for label in labels),
            slice_row("product", value, 3000, 0.55),
            slice_row("product", "toaster", 2000, None),
        ),
        "attempts": (attempt_row(1, status="promoted", precision_reason="bf16 natively", threads=8),),
        "quarantined": {"empty_text": 3},
        "champion": Champion(1, home / "models/reviews/v0001", "reviews-20260301-ff", date(2026, 3, 1), "s-1", STARTED),
        "reigning": Champion(2, home / "models/reviews/v0002", run["run_id"], date(2026, 3, 2), "s-0", STARTED),
        "tonight": shares("s-0011223344556677", counts, {"product": {value: 30, "toaster": 20}}),
        "before": shares("s-1", dict.fromkeys(labels, 100), {"product": {value: 10, "kettle of old": 40}}),
        "findings": tuple(diagnose(epoch_facts(epochs), 0.54, machine=MachineFacts(restarts=1, slot="gpu1"))),
        "model_path": home / "models/reviews/v0002",
        "report_path": home / "runs" / run["run_id"] / "report.html",
    }
    return ReportFacts(**values | changes)
