"""Facts of a night for the tests of its report, without a database."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from nightgate.config.pipeline import Pipeline
from nightgate.reports.facts import Champion, ReportFacts, epoch_facts
from nightgate.reports.shares import SnapshotShares, length_edges
from nightgate.reports.training_diagnosis import MachineFacts, diagnose
from tests.support.night_rows import PUBLISHED

STARTED = datetime(2026, 3, 2, 3, 15, tzinfo=UTC)

# The columns of `nightly_runs`; a run that was missed has hardly any of them.
COLUMNS = (
    "pipeline night run_id status reason error_type next_step verdict trigger attempts scheduled_for data_until "
    "snapshot_id rows_new rows_total best_epoch test_version test_rows test_f1 f1_ci_low f1_ci_high champion_version "
    "champion_f1 f1_delta model_version base_model config_hash code_version device precision started_at finished_at "
    "duration_seconds prefect_flow_run_id dry_run average min_f1 test_accuracy test_precision test_recall nonfinite "
    "engine micro_batches window_start test_rows_all test_f1_all rows_left_out detectable_gain champion_fresh_f1 "
    "champion_fresh_rows fresh_ci_low fresh_ci_high anchor_version anchor_f1 metric_key rows_trained "
    "training started_from training_reason"
)

EPOCH_COLUMNS = ("training_loss", "epoch", "step", "validation_loss", "accuracy", "f1", "precision", "recall")


def run_row(**changes: Any) -> dict[str, Any]:
    """A run that came to nothing yet."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS.split())
    row |= {
        "reasons": None,
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


def epoch_row(epoch: int, training: float | None, validation: float | None, f1: float | None) -> dict[str, Any]:
    """A row of `epoch_results`."""
    row = (training, epoch, 2500 * epoch, validation, f1, f1, f1, f1)
    return dict(zip(EPOCH_COLUMNS, row, strict=True)) | {"examples_per_second": 50.0 + epoch}


def published_rows() -> tuple[dict[str, Any], ...]:
    return tuple(dict(zip(EPOCH_COLUMNS, row, strict=True)) | {"examples_per_second": 50.0} for row in PUBLISHED)


def check_row(name: str, outcome: str, reason: str, **more: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("slice_name", "slice_value"), "")
    empty |= dict.fromkeys(("candidate_value", "champion_value", "threshold", "ci_low", "ci_high", "rows_used"))
    return {**empty, "check_name": name, "outcome": outcome, "reason": reason, **more}


def difference_row(
    name: str, outcome: str, f1: tuple[float, float], interval: tuple[float, float], threshold: float, **more: Any
) -> dict[str, Any]:
    """A check of the candidate's F1 against another's."""
    values = dict(zip(("candidate_value", "champion_value", "ci_low", "ci_high"), (*f1, *interval), strict=True))
    reason = f"F1 {f1[0]:.4f} against {f1[1]:.4f}"
    return check_row(name, outcome, reason, threshold=threshold, rows_used=300, **values, **more)


def product_slice(product: str) -> dict[str, str]:
    """The slice of a check."""
    return {"slice_name": "product", "slice_value": product}


def slice_row(name: str, value: str, support: int, f1: float | None) -> dict[str, Any]:
    return {"slice_name": name, "slice_value": value, "support": support, "f1": f1, "precision": f1, "recall": f1}


def attempt_row(number: int, **more: Any) -> dict[str, Any]:
    """A row of the table `attempt`."""
    empty = dict.fromkeys(("resumed_from_epoch", "reason", "precision_reason", "engine_reason", "threads"))
    known = {"attempt": number, "status": "running", "started_at": STARTED, "restarts": 0, "host": "night-1"}
    return {**empty, **known, **more}


def shares(snapshot_id: str, labels: dict[str, int], slices: dict[str, dict[str, int]]) -> SnapshotShares:
    rows = sum(labels.values())
    lengths = [0] * (len(length_edges()) - 1)
    lengths[20], lengths[24] = rows // 2, rows - rows // 2
    return SnapshotShares(snapshot_id, rows, labels, slices, tuple(lengths), 60, 130)


def pipeline() -> Pipeline:
    return Pipeline.model_validate(
        {"name": "reviews", "data": {"source": {"kind": "sample"}, "labels": [1, 2]}, "gate": {"min_f1": 0.54}}
    )


def drift_row(statistic: str, reference: str, value: float, threshold: float, reason: str) -> dict[str, Any]:
    """A row of `data_drift`."""
    row = {"statistic": statistic, "slice_name": "product" if statistic == "slice_shares" else "", "reason": reason}
    outcome = "warning" if value > threshold else "passed"
    return row | {"reference": reference, "value": value, "threshold": threshold, "outcome": outcome, "rows_used": 40}


DRIFT = (
    drift_row("label_shares", "champion", 0.412, 0.251, "label 1: 57.5% of the rows, was 16.2%"),
    drift_row("label_shares", "last_week", 0.204, 0.258, "label 1: 57.5% of the rows, was 37.1%"),
    drift_row("new_words", "champion", -0.004, 0.05, "1.20% of the words are new, was 1.60%"),
    drift_row("slice_shares", "champion", 0.081, 0.264, "product kettle: 52.5% of the rows, was 44.4%"),
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
        reasons="212 new rows (trains at 1)",
        device="NVIDIA H200",
        precision="bf16",
        engine="packed",
        micro_batches=1,
        finished_at=STARTED,
        duration_seconds=3725.0,
        test_accuracy=0.5422,
        slot="gpu1",
        slot_wait_seconds=65.2,
        window_start=datetime(2025, 12, 2, 9, 30, tzinfo=UTC),
        test_rows_all=7310,
        test_f1_all=0.5402,
        rows_left_out=2,
        detectable_gain=0.0161,
        champion_fresh_f1=0.5312,
        champion_fresh_rows=812,
        fresh_ci_low=0.4980,
        fresh_ci_high=0.5641,
        anchor_version=1,
        anchor_f1=0.5404,
    )
    values: dict[str, Any] = {
        "run": run | changes.pop("run", {}),
        "pipeline": pipeline(),
        "label_names": labels,
        "epochs": epochs,
        "checks": (
            check_row("min_f1", "passed", "F1 0.5435 on 5,000 test rows reaches min_f1 0.5400"),
            difference_row("beats_champion", "passed", (0.5435, 0.5404), (-0.004, 0.0102), 0.0),
            check_row("slices", "passed", "none of 2 tests of classes and slices failed"),
            difference_row("slice_margin", "passed", (0.55, 0.54), (-0.02, 0.04), -0.05, **product_slice(value)),
            check_row("slice_margin", "underpowered", "too few rows", **product_slice("toaster")),
        ),
        "confusion": confusion,
        "slices": (
            *(slice_row("label", label, 100, 0.5) for label in labels),
            slice_row("product", value, 3000, 0.55),
            slice_row("product", "toaster", 2000, None),
        ),
        "attempts": (attempt_row(1, status="promoted", precision_reason="bf16 natively", threads=8),),
        "quarantined": {"empty_text": 3},
        "drift": DRIFT,
        "champion": Champion(1, home / "models/reviews/v0001", "reviews-20260301-ff", "s-1", STARTED),
        "current_champion": Champion(2, home / "models/reviews/v0002", run["run_id"], "s-0", STARTED),
        "tonight": shares("s-0011223344556677", counts, {"product": {value: 30, "toaster": 20}}),
        "before": shares("s-1", dict.fromkeys(labels, 100), {"product": {value: 10, "kettle of old": 40}}),
        "findings": tuple(diagnose(epoch_facts(epochs), 0.54, machine=MachineFacts(restarts=1, slot="gpu1"))),
        "model_path": home / "models/reviews/v0002",
        "report_path": home / "runs" / run["run_id"] / "report.html",
        "page_path": home / "reports" / run["pipeline"] / "history.html",
    }
    return ReportFacts(**values | changes)


def judged_night(num_slices: int = 300, failed: int = 2, **changes: Any) -> ReportFacts:
    """The same night, held: against champion and anchor, on golden rows, and in many slices, of which some failed."""
    slices = []
    for place in range(num_slices):
        outcome, loss = "failed" if place < failed else "passed", 0.2 / (1 + place)
        f1, interval = (0.54 - loss, 0.54), (-loss - 0.04, -loss + 0.04)
        slices.append(difference_row("slice_margin", outcome, f1, interval, -0.05, **product_slice(f"product {place}")))
    checks = (
        check_row("clean_test", "passed", "2 rows are left out", rows_used=5000),
        check_row("min_f1", "passed", "F1 0.5435 reaches min_f1 0.5400", candidate_value=0.5435, threshold=0.54),
        difference_row("beats_champion", "underpowered", (0.5435, 0.5404), (-0.004, 0.0102), 0.0),
        difference_row("anchor", "passed", (0.5435, 0.5388), (-0.003, 0.0125), -0.01),
        difference_row("golden", "warning", (0.52, 0.58), (-0.11, -0.01), -0.05),
        check_row("slices", "failed", f"{failed} of {num_slices} tests of classes and slices failed"),
        *slices,
    )
    run = {"status": "held", "verdict": "hold", "champion_version": 4, "anchor_version": 3, "anchor_f1": 0.5388}
    run |= {"model_version": 6, **changes.pop("run", {})}
    study = {"f1_spread": 0.0059, "num_seeds": 5, "f1_mean": 0.5411}
    return published_night(checks=checks, run=run, seed_study=study, **changes)
