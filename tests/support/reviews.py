"""Small invented rows and pipelines for the data tests."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pandas as pd

from nightgate.config.pipeline import Pipeline
from nightgate.data.rules import SPLITS
from nightgate.data.snapshots import Snapshot
from nightgate.pipeline_files import check_pipeline
from nightgate.schedule import Night

NIGHT = Night(date(2026, 3, 1), "backfill", datetime(2026, 3, 1, 3, 15, tzinfo=UTC))


def night(number: int) -> Night:
    """The night so many days after `NIGHT`."""
    later = timedelta(days=number)
    return replace(NIGHT, date=NIGHT.date + later, data_until=NIGHT.data_until + later)


def all_rows(snapshot: Snapshot) -> pd.DataFrame:
    """The rows of all splits, with `split`."""
    return pd.concat([snapshot.rows(split).assign(split=split) for split in SPLITS], ignore_index=True)


def rows(number: int = 120) -> list[dict[str, Any]]:
    """Distinct reviews with ids that look like numbers, two labels, a time before `NIGHT`, a product and a shop."""
    return [
        {
            "id": f"{index:05d}",
            "title": f"Title {index}",
            "text": f"Kettle number {index} is {'fine, and quiet' if index % 3 else 'broken'}.",
            "stars": 5 if index % 3 else 1,
            "created_at": f"2026-02-{1 + index % 28:02d}T{index % 24:02d}:00:00Z",
            "product": f"kettle {index % 40}",
            "shop": "north" if index % 2 else "south",
        }
        for index in range(number)
    ]


def pipeline(source: dict[str, Any], **changes: Any) -> Pipeline:
    """A pipeline over the columns of `rows`; `changes` are dotted fields, with __ for the dot."""
    document: dict[str, Any] = {
        "name": "kettles",
        "data": {
            "source": source,
            "id": "id",
            "text": "text",
            "label": "stars",
            "labels": [1, 5],
            "near_duplicates": False,  # which the texts of `rows` are
        },
        "split": {"validation": 0.2, "test": 0.2},
    }
    return check_pipeline(document, "kettles.toml", {key.replace("__", "."): value for key, value in changes.items()})


def files(*paths: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "files", "paths": [str(path) for path in paths], **more}
