"""A registered version on disk without a database, for push and export."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nightgate.config import Pipeline
from nightgate.metrics.bootstrap import Interval
from nightgate.models.model_card import CardFacts, model_card
from nightgate.models.version_folder import Staging
from nightgate.pipeline_files import check_pipeline

LABELS = ("bad", "fine", "good")


def pipeline_of(base_model: str) -> Pipeline:
    source = {"kind": "files", "paths": ["/srv/secret-rows/*.parquet"]}
    document: dict[str, Any] = {
        "name": "reviews",
        "data": {"source": source, "labels": list(LABELS)},
        "training": {"max_length": 32, "base_model": base_model},
    }
    return check_pipeline(document, "test")


def write_version(home: Path, best_model: Path, base_model: str = "someone/base") -> Path:
    """Write `home/models/reviews/v0003` with card and manifest as registration does; returns its path."""
    pipeline = pipeline_of(base_model)
    snapshot = {
        "id": "s-0011223344556677",
        "test_version": "t-0123456789",
        "rows": {"train": 80, "validation": 10, "test": 10},
        "data_until": "2026-03-01T03:15:00+00:00",
    }
    test = {"accuracy": 0.61, "f1": 0.6, "precision": 0.6, "recall": 0.61}
    card = model_card(
        CardFacts(
            pipeline=pipeline,
            version=3,
            run_id="reviews-20260301-ab12",
            night="2026-03-01",
            best_epoch=2,
            results_table="| Epoch | F1 |\n|:-:|:-:|\n| 1.0 | 0.6 |",
            test=test,
            test_rows=10,
            test_interval=Interval(0.5, 0.7),
            snapshot=snapshot,
            decision=None,
            started_from=None,
            code_version="0.1.0",
            libraries={"torch": "2"},
        )
    )
    facts = {
        "pipeline": pipeline.name,
        "run_id": "reviews-20260301-ab12",
        "attempt": 1,
        "night": "2026-03-01",
        "created_at": datetime(2026, 3, 1, 4, tzinfo=UTC).isoformat(),
        "label_names": list(LABELS),
        "base_model": {"name": base_model, "revision": "", "started_from_version": None},
        "snapshot": snapshot,
        "metrics": {"average": "weighted", "test": test},
        "verdict": None,
        "configuration": pipeline.record(),
        "config_hash": pipeline.config_hash,
        "code_version": "0.1.0",
        "device": "cpu",
        "precision": "fp32",
        "libraries": {"torch": "2"},
    }
    return Staging(home / "models" / "reviews", best_model, LABELS).place(3, card, facts)
