"""Row validation and deduplication: each row is usable, quarantined with a reason, or ignored because it is
later than the night's cut-off.

Of rows with the same text one stays: where the source names splits, the one in test, then in validation; then the
newest by time, then the first by row id. With `group` it is the oldest by time, so that a late copy in another group
does not move a text to another split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd

from nightgate import config
from nightgate.config import Pipeline
from nightgate.config_types import canonical_label
from nightgate.data.normalization import fingerprint
from nightgate.data.snapshots import SPLITS
from nightgate.data.sources import RawRows
from nightgate.schedule import Night
from nightgate.sources.source_table import GIVEN_SPLIT, ORIGIN, Quarantined, is_missing
from nightgate.text_rules import join_texts

MISSING = "(missing)"
"""Slice value of rows without one."""

SLICE_LENGTH = 200
"""Longest slice value, in characters."""

GIVEN_NAMES = {split: split for split in SPLITS}
GIVEN_NAMES |= {"training": "train", "valid": "validation", "val": "validation", "dev": "validation"}
_PREFERENCE = {"test": 0, "validation": 1, "train": 2}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class _Unusable(Exception):  # noqa: N818 (never leaves this module)
    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Row:
    row_id: str
    fingerprint: str
    text: str
    label: int
    time: int | None
    """Microseconds since 1970, UTC."""
    group: str | None
    slices: tuple[str, ...]
    given: str | None


def validate(
    raw: RawRows, pipeline: Pipeline, night: Night, broken: Mapping[int, str] = MappingProxyType({})
) -> tuple[list[Row], list[Quarantined], int]:
    """Usable rows, quarantined rows, and the number of rows at or after `night.data_until`.

    Args:
        broken: why the row at a position breaks a rule of a column.
    """
    data, frame = pipeline.data, raw.frame
    quarantined = list(raw.rejected)
    usable: list[Row] = []
    unseen = 0
    empty = [None] * len(frame)
    given_column = GIVEN_SPLIT if GIVEN_SPLIT in frame else pipeline.split.column
    texts = zip(*(frame[name].tolist() for name in data.text_columns), strict=True)
    slices = zip(*(frame[name].tolist() for name in data.slices), strict=True) if data.slices else [()] * len(frame)
    columns = [
        frame[name].tolist() if name else empty for name in (data.id, data.label, data.time, data.group, given_column)
    ]
    until = _microseconds(night.data_until)
    read_time = _time_reader(data.timezone)
    rows = zip(frame[ORIGIN].tolist(), texts, slices, *columns, strict=True)
    for position, (origin, parts, sliced, row_id, label, when, group, given) in enumerate(rows):
        try:
            instant = None
            if data.time:
                instant = read_time(when)
                if instant >= until:
                    unseen += 1
                    continue
            text = _text(parts)
            if position in broken:
                raise _Unusable("bad_value", broken[position])
            mark = fingerprint(text)
            usable.append(
                Row(
                    row_id=_plain(row_id) or mark,
                    fingerprint=mark,
                    text=text,
                    label=_label(label, data),
                    time=instant,
                    # A row without a group forms its own group.
                    group=(_plain(group) or mark) if data.group else None,
                    slices=tuple(_slice(value) for value in sliced),
                    given=_given_side(given) if given_column else None,
                )
            )
        except _Unusable as problem:
            excerpt = " ".join(str(part) for part in parts if not is_missing(part))
            excerpt = excerpt.encode("utf-8", "replace").decode().replace("\0", " ")[:200]
            quarantined.append(Quarantined(origin, _plain(row_id), problem.reason, problem.detail, excerpt))
    return usable, quarantined, unseen


def _text(parts: Sequence[Any]) -> str:
    for part in parts:
        if isinstance(part, list | dict | bytes):
            raise _Unusable("bad_text", f"holds a {type(part).__name__}, not text")
    text = join_texts(part if isinstance(part, str) else str(part) for part in parts if not is_missing(part))
    if not text:
        raise _Unusable("empty_text", "no text besides white space and invisible characters")
    return text


def _label(value: Any, data: config.Data) -> int:
    label = canonical_label(value) if not isinstance(value, list | dict) else str(value)
    if label is None:
        raise _Unusable("missing_label", f"column {data.label!r} is empty")
    index = data.label_index.get(label)
    if index is None:
        raise _Unusable("unknown_label", f"{label[:80]!r} is not one of the labels {', '.join(data.label_index)}"[:300])
    return index


def _given_side(value: Any) -> str:
    name = _plain(value)
    side = GIVEN_NAMES.get((name or "").casefold())
    if side is None:
        raise _Unusable("bad_split", f"split {name[:80]!r} is not train, validation or test" if name else "no split")
    return side


def _plain(value: Any) -> str | None:
    """A value as text that does not depend on the file format: 7, 7.0 and "7" give "7"; "007" stays."""
    if is_missing(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = " ".join(str(value).split())
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def _slice(value: Any) -> str:
    """A slice value short enough for a database index: long values are cut and end in a hash, so they stay distinct."""
    text = _plain(value) or MISSING
    return text if len(text) <= SLICE_LENGTH else f"{text[: SLICE_LENGTH - 13]}...{fingerprint(text)[:10]}"


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _time_reader(timezone: str) -> Callable[[Any], int]:
    zone = ZoneInfo(timezone)

    def read(value: Any) -> int:
        if is_missing(value):
            raise _Unusable("missing_time", "no time")
        try:
            if isinstance(value, str):
                moment = datetime.fromisoformat(value.strip())
            elif isinstance(value, pd.Timestamp):
                moment = value.to_pydatetime(warn=False)
            elif isinstance(value, datetime):
                moment = value
            elif isinstance(value, date):
                moment = datetime(value.year, value.month, value.day)
            else:
                raise ValueError(value)
            # Converted to UTC first: a difference of two times in one zone ignores daylight saving.
            return _microseconds((moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC))
        except (ValueError, OverflowError) as error:
            shown = str(value)[:80]
            raise _Unusable("bad_time", f"{shown!r} is not an ISO 8601 time such as 2026-01-31T03:15:00Z") from error

    return read


def deduplicate(rows: Iterable[Row], *, keep_oldest: bool) -> list[Row]:
    """One row per fingerprint, sorted by fingerprint; the choice does not depend on the order of the rows."""

    def rank(row: Row) -> tuple[Any, ...]:
        when = row.time or 0
        split = _PREFERENCE[row.given] if row.given else 0
        # Label, text, group and slices break ties, so that the order of the files never decides.
        return split, when if keep_oldest else -when, row.row_id, row.label, row.text, row.group or "", row.slices

    best: dict[str, Row] = {}
    for row in rows:
        other = best.get(row.fingerprint)
        if other is None or rank(row) < rank(other):
            best[row.fingerprint] = row
    return [best[mark] for mark in sorted(best)]


def as_frame(rows: Sequence[Row], data: config.Data, sides: Sequence[str]) -> pd.DataFrame:
    """The rows, in order, with the columns of a snapshot and `split`."""
    columns: dict[str, Any] = {
        "split": list(sides),
        "row_id": [row.row_id for row in rows],
        "fingerprint": [row.fingerprint for row in rows],
        "text": [row.text for row in rows],
        "label": pd.Series([row.label for row in rows], dtype="int64"),
    }
    if data.time:
        times = pd.Series([row.time for row in rows], dtype="int64")
        columns["time"] = times.astype("datetime64[us]").dt.tz_localize("UTC")
    if data.group:
        columns["group"] = [row.group for row in rows]
    for place, name in enumerate(data.slices):
        columns[f"slice_{name}"] = [row.slices[place] for row in rows]
    return pd.DataFrame(columns)
