"""What a refresh counted: the rows of each part of the source, and the figures that nights are compared by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime
from typing import Any

from nightgate.errors import InternalError

NIGHTS_COMPARED = 7
"""A week, so that its quiet days are among them."""


@dataclass(frozen=True)
class PartCounts:
    """Where each row of a part of the source went: a file, a split, a day of the sample, a table."""

    part: str
    rows_seen: int
    taken: int = 0
    """In the snapshot."""
    merged: int = 0
    """With a text that another row of the snapshot has."""
    replaced: int = 0
    """Earlier versions of a row id."""
    deleted: int = 0
    """That the source marks as deleted."""
    quarantined: int = 0
    conflicting: int = 0
    """Left out because labels of one text, or known splits of one row, disagree."""
    future: int = 0
    """Of the night's `data_until` or later."""
    outside: int = 0
    """Older than `train_window` and in no other place."""
    vanished: int = 0
    """Rows of earlier nights that the part no longer has; not among `rows_seen`."""
    bytes: int | None = None
    modified: datetime | None = None
    unchanged: bool = False
    """Not read again: the counts are those of the night that read it."""
    complete: bool = True
    """False: only rows behind a mark were read."""

    def __post_init__(self) -> None:
        if self.rows_seen != self.accounted:
            counts = ", ".join(f"{name} {value:,}" for name, value in asdict(self).items() if type(value) is int)
            raise InternalError(
                f"the rows of {self.part} don't balance, {self.accounted:,} of {self.rows_seen:,} are accounted for: "
                f"{counts}",
                next_step="this is a bug in Nightgate: report it with the log",
            )

    @property
    def accounted(self) -> int:
        placed = self.taken + self.merged + self.replaced + self.deleted
        return placed + self.quarantined + self.conflicting + self.future + self.outside


@dataclass(frozen=True)
class LabelVotes:
    """The labels that rows with one text have."""

    fingerprint: str
    votes: Mapping[str, int]
    """Rows by label."""
    label: str | None
    """The one that the text has in the snapshot; None: the text was left out."""


@dataclass(frozen=True)
class Statistics:
    """Figures of one night that the checks compare with those of earlier nights."""

    night: date
    rows_total: int
    rows_new: int
    """Rows of the snapshot that the last one lacks."""
    rows_read: int
    """Rows that no earlier night saw, usable or not."""
    rows_quarantined: int
    """Of `rows_read`."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """`rows_new` by label."""
    splits: Mapping[str, int] = field(default_factory=dict)
    """`rows_total` by split."""
    commonest: int = 0
    """How many of `rows_read` have the text that most of them have."""
    commonest_text: str = ""
    """Its beginning."""
    missing: Mapping[str, int] = field(default_factory=dict)
    """How many of `rows_checked` have no value, for each column with rules."""
    rows_checked: int = 0
    """Rows of the parts that were read, known ones too."""
    is_first: bool = False
    """Whether there was nothing to compare with: all rows count as new."""

    def to_json(self) -> dict[str, Any]:
        return asdict(replace(self, commonest_text="")) | {"night": self.night.isoformat()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Statistics:
        return cls(**{**stored, "night": date.fromisoformat(stored["night"])})


def remember(recent: Sequence[Statistics], tonight: Statistics) -> tuple[Statistics, ...]:
    """The nights that the next one is compared with. A second refresh of a date adds to the first one's new rows."""
    *before, last = recent or (tonight,)
    if recent and last.night == tonight.night:
        labels = {name: last.labels.get(name, 0) + count for name, count in tonight.labels.items()}
        rows_new = last.rows_new + tonight.rows_new
        tonight = replace(tonight, rows_new=rows_new, labels=labels, is_first=last.is_first)
        return (*before, tonight)[-NIGHTS_COMPARED:]
    return (*recent, tonight)[-NIGHTS_COMPARED:]
