"""A registered version on disk without a database, for push and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nightgate.data.snapshots import Snapshot
from nightgate.metrics.bootstrap import Interval
from nightgate.metrics.confusion import Scores
from nightgate.models.version_folder import Staging
from nightgate.pipeline_files import check_pipeline
from nightgate.registry import register

LABELS = ("bad", "fine", "good")


def write_version(home: Path, best_model: Path, base_model: str = "someone/base") -> Path:
    """Write `home/models/reviews/v0003` with card and manifest as registration does; returns its path."""
    source = {"kind": "files", "paths": ["/srv/secret-rows/*.parquet"]}
    document = {
        "name": "reviews",
        "data": {"source": source, "labels": list(LABELS)},
        "training": {"max_length": 32, "base_model": base_model},
    }
    manifest: dict[str, Any] = {
        "id": "s-0011223344556677",
        "test_version": "t-0123456789",
        "rows": {"train": 80, "validation": 10, "test": 10},
        "data_until": "2026-03-01T03:15:00+00:00",
    }
    candidate = register.Candidate(
        pipeline=check_pipeline(document, "test"),
        run_id="reviews-20260301-ab12",
        attempt=1,
        snapshot=Snapshot(manifest["id"], home / "snapshots", manifest),
        best_model=best_model,
        best_epoch=2,
        test=Scores(10, 0.61, 0.6, 0.6, 0.6, 0.6, 0.61, 0.61),
        test_interval=Interval(0.5, 0.7),
    )
    table = "| Epoch | F1 |\n|:-:|:-:|\n| 1.0 | 0.6 |"
    run = register._RunFacts(
        night="2026-03-01",
        code_version="0.1.0",
        device="cpu",
        precision="fp32",
        data_until=manifest["data_until"],
        rows_trained=80,
        epochs=[],
        own_metrics={},
        results_table=table,
    )
    staging = Staging(home / "models" / "reviews", best_model, LABELS)
    return staging.place(3, register._card(candidate, run, 3), register._manifest(candidate, run))
