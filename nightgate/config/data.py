"""`[data]` and `[split]`: where rows come from, what they mean, how they are divided."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, model_validator

from nightgate.config.checks import DataChecks
from nightgate.config.sources import SampleSource, Source, SqlSource
from nightgate.config.values import Column, Duration, Label, Section, TimeFormat, Timezone, label_name, labels_by_value


class Data(Section):
    """Where rows come from and what their columns mean."""

    source: Source
    """Where rows come from."""
    id: Column | None = None
    """Column of the row's id. Default: the fingerprint of the normalised text."""
    text: Column | Annotated[tuple[Column, ...], Field(min_length=1)] = "text"
    """Column of the text, or several to join with line breaks."""
    label: Column = "label"
    """Column of the label."""
    labels: Annotated[tuple[Label, ...], Field(min_length=2)] | Annotated[dict[str, Label], Field(min_length=2)]
    """Labels in order, or a table from source values to labels. Rows with other values are quarantined."""
    time: Column | None = None
    """Column of the row's time: a night reads rows from before its `data_until`."""
    time_format: TimeFormat = ""
    """Format of times as `strptime` has it, such as '%d-%m-%Y %H:%M', or 'epoch_s' or 'epoch_ms' for seconds or
    milliseconds since 1970. '': ISO 8601."""
    timezone: Timezone = "UTC"
    """Timezone of times without one."""
    updated: Column | Literal[""] = ""
    """Column with the time of the row's last change: the newest version of an id holds."""
    deleted: Column | Literal[""] = ""
    """Column that marks deleted rows: true, a number but 0, or a time."""
    lag: Duration = "2d"
    """How far behind the newest row that was read a night looks again for rows that were written late; `sql` only."""
    sweep: int = Field(default=1, ge=0, le=10_000)
    """Every how many nights the whole table is read again, for edits and deletions that no column tells; `sql` only.
    0: never."""
    slices: tuple[Column, ...] = ()
    """Columns by whose values metrics are broken down."""
    group: Column | None = None
    """Column whose equal values stay on one side of the split; intervals resample these groups."""
    near_duplicates: bool = True
    """Whether near-copies of a text, in other case or punctuation or with a few words changed, share its split."""
    conflicts: Literal["majority", "newest", "drop"] = "majority"
    """Which label a text has that rows give several: the one of most rows (of equally many that of the newest row),
    the one of the newest row, or none, which leaves the text out."""
    train_window: Duration = ""
    """Rows older than this before the night are not trained on, such as '365d'; '' for all."""
    golden: str = ""
    """File with the source's columns: rows that every candidate should get right. '': test rows of the first night."""
    golden_rows: int = Field(default=500, ge=64, le=100_000)
    """The most golden rows that are frozen, or read from the file."""
    checks: DataChecks = DataChecks()
    """What ends a night before training because its data look broken."""

    @property
    def text_columns(self) -> tuple[str, ...]:
        return (self.text,) if isinstance(self.text, str) else self.text

    @property
    def has_times(self) -> bool:
        """Whether a night leaves out rows of after its `data_until`; else it sees them as they are when it runs."""
        return self.time is not None or isinstance(self.source, SampleSource)

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """The labels in order; the model's class k is `label_names[k]`."""
        values = self.labels.values() if isinstance(self.labels, dict) else self.labels
        return tuple(dict.fromkeys(map(label_name, values)))

    @cached_property
    def label_index(self) -> dict[str, int]:
        """Class index by canonical source value."""
        return {value: self.label_names.index(label) for value, label in labels_by_value(self.labels).items()}

    @model_validator(mode="after")
    def _labels_make_sense(self) -> Data:
        if len(self.label_index) != len(self.labels):
            raise ValueError(f"labels: {[label_name(label) for label in self.labels]} names a label twice")
        if any(not name for name in self.label_names):
            raise ValueError("labels: a label is blank")
        if len(self.label_names) < 2:
            raise ValueError(f"labels: only one label ({self.label_names[0]!r}); a classifier needs at least two")
        if self.train_window and not self.time:
            raise ValueError("train_window needs `time`: name the column that holds each row's time")
        if (self.updated or self.deleted) and not self.id:
            raise ValueError("updated and deleted need `id`: name the column by which a row is found again")
        self._check_marks()
        if "label" in self.slices:
            raise ValueError("slices: 'label' is taken, classes are reported as slices of that name already")
        return self

    def _check_marks(self) -> None:
        """Refuse `lag` and `sweep` where they would do nothing."""
        sql = isinstance(self.source, SqlSource)
        for name in ("lag", "sweep"):
            if not sql and getattr(self, name) != Data.model_fields[name].default:
                raise ValueError(f"{name} is for sources of kind 'sql'; files and data sets are compared as a whole")
        if self.sweep != 1 and self.updated and self.deleted:
            raise ValueError("sweep: `updated` and `deleted` tell every change already; remove it")
        if self.sweep != 1 and not (self.updated or self.time):
            raise ValueError("sweep needs `updated` or `time`: without them only a whole read shows what is new")


class Split(Section):
    """How rows are divided: by hash of the text at first; a split once given stays, whatever is edited or arrives."""

    validation: float = Field(default=0.1, gt=0, le=0.5)
    """Share of rows on which the best epoch is chosen."""
    test: float = Field(default=0.1, gt=0, le=0.5)
    """Share of rows on which the gate decides."""
    seed: int = Field(default=42, ge=0, le=2**32 - 1)
    """Changing the split makes a new test version."""
    column: Column | None = None
    """Column with the source's own split (train, validation or test) instead of the hash."""
