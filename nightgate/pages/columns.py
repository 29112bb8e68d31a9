"""Frames as JSON by column: repeated texts are stored once, empty columns not at all, numbers with four decimals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Any

import pandas as pd

from nightgate.plain_text import LONGEST_ON_PAGE, legible


def by_column(frame: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """`{"rows": 2, "columns": {"f1": [0.5, None], "status": {"of": ["held"], "at": [0, 0]}}}`."""
    found = {name: plain(frame[name]) for name in names if name in frame}
    columns = {name: _shared(values) for name, values in found.items() if any(value is not None for value in values)}
    return {"rows": len(frame), "columns": columns}


def plain(values: Iterable[Any]) -> list[Any]:
    """Values as JSON has them; None for what is missing or not finite."""
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return legible(value, LONGEST_ON_PAGE)
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%MZ}"
    if isinstance(value, date):
        return value.isoformat()
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() else round(value, 4)
    return value


def _shared(values: list[Any]) -> list[Any] | dict[str, Any]:
    texts = {value: None for value in values if isinstance(value, str)}
    if not texts or len(texts) > len(values) // 2:
        return values
    places = {text: place for place, text in enumerate(texts)}
    return {"of": list(texts), "at": [None if value is None else places[value] for value in values]}
