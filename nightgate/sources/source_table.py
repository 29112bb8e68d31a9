"""Shared by all source readers: names of columns, rejected rows, and the check for missing columns."""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from nightgate.errors import DataError

GIVEN_SPLIT = "__given_split"
"""Column with the split of a row, where `source.splits` names the splits of the source."""


@dataclass(frozen=True)
class Quarantined:
    """A row that cannot be used, and why."""

    origin: str
    row_id: str | None
    reason: str
    """Short code: empty_text, bad_text, missing_label, unknown_label, missing_time, bad_time, bad_split, bad_row,
    bad_value."""
    detail: str
    excerpt: str
    """At most 200 characters."""
    part: str = ""
    """The part of the source that holds it, as in `nightgate.data.refresh_counts.PartCounts`."""


class Problem(NamedTuple):
    """Why a value cannot be used."""

    reason: str
    """As in `Quarantined`."""
    detail: str


_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}


COLUMNS_OF_DATA = "name the columns in [data] (id, text, label, time and so on) or [split] as the source does"


def check_columns(wanted: Iterable[str], found: Sequence[str], place: str) -> None:
    """Check that each wanted column is found once.

    Raises:
        DataError: it is missing, or there twice.
    """
    wanted = tuple(wanted)
    twice = sorted(name for name in wanted if found.count(name) > 1)
    if twice:
        raise DataError(f"{place}: the header names {twice[0]!r} twice", next_step="rename one of the two columns")
    missing = [name for name in wanted if name not in found]
    if not missing:
        return
    near = difflib.get_close_matches(missing[0], found, n=1, cutoff=0.5) or [
        name for name in found if name.strip().casefold() == missing[0].strip().casefold()
    ]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    next_step = COLUMNS_OF_DATA
    if len(found) == 1 and (signs := [sign for sign in _DELIMITERS if sign in found[0]]):
        hint = f"; it looks separated by {_DELIMITERS[signs[0]]}"
        next_step = f"name the delimiter in data.source: delimiter = {json.dumps(signs[0])}"
    raise DataError(
        f"{place} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, found)) or 'none'}{hint}",
        next_step=next_step,
    )


def is_missing(value: Any) -> bool:
    """None, NaN, NaT and blank text."""
    if value is None or value is pd.NaT or value is pd.NA:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, str) and not value.strip()


def quarantine_summary(quarantined: Sequence[Quarantined]) -> str:
    """Such as `; quarantined: 3 unknown_label (reviews.csv:2: '6' is not one of the labels 1, 2)`."""
    parts = []
    for reason, count in Counter(row.reason for row in quarantined).most_common(4):
        first = next(row for row in quarantined if row.reason == reason)
        parts.append(f"{count:,} {reason} ({first.origin}: {first.detail})")
    return f"; quarantined: {', '.join(parts)}" if parts else ""
