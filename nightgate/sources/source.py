"""The protocol of a source: parts, such as files or days, that are read as Arrow batches when they have changed.

A source of your own is a class with this protocol in an installed package, which names it as an entry point:

    [project.entry-points."nightgate.sources"]
    tickets = "acme.tickets:Tickets"

A pipeline file then has `source = { kind = "tickets", queue = "billing" }`, and the class is called as

    Tickets({"queue": "billing"}, data, columns, night)

with the other fields of that table, the section `[data]` (`nightgate.config.data.Data`), the columns that the pipeline
uses, and the night (`nightgate.schedule.Night`). Problems that a user can correct are raised as
`nightgate.errors.DataError` with a next step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import pyarrow as pa

from nightgate.sources.source_table import Quarantined

BATCH_ROWS = 8192
"""Most rows of a batch."""


@dataclass(frozen=True)
class Part:
    """A piece of a source that is read as a whole: a file, a split of a data set, a day, a table."""

    name: str
    """Stable from night to night, and shown to users."""
    version: str
    """Equal versions have equal content. '': unknown, so the part is always read."""
    complete: bool = True
    """False: the rows that are read are those behind a mark. They add to what is known of the part, or replace rows
    with the same id."""
    bytes: int | None = None
    modified: datetime | None = None
    """Aware."""


@dataclass(frozen=True)
class Plan:
    """What to read tonight. Rows of known parts that are in neither leave the data."""

    unchanged: tuple[Part, ...]
    """Parts whose rows stay as they were."""
    read: tuple[Part, ...]

    @classmethod
    def of(cls, parts: Iterable[Part], before: Mapping[str, Any] | None) -> Plan:
        """Read the parts whose version is unknown, or not that of `before`."""
        known = before["parts"] if before else {}
        unchanged: list[Part] = []
        read: list[Part] = []
        for part in parts:
            is_known = part.version and known.get(part.name) == part.version
            (unchanged if is_known else read).append(part)
        return cls(tuple(unchanged), tuple(read))


@dataclass(frozen=True)
class RawBatch:
    """Rows as the source has them, at most some `BATCH_ROWS`."""

    table: pa.Table
    """The pipeline's columns in types of the source, all of them strings in CSV; `GIVEN_SPLIT` where the source names
    splits."""
    place: str
    """File, or data set and split."""
    numbers: pa.Array
    """Line or row number of each row, so that its origin is `{place}:{number}`."""
    rejected: tuple[Quarantined, ...] = ()
    """Rows that could not be divided into columns."""
    classes: tuple[str, ...] = ()
    """The source's names of the class numbers that are labels; () if the labels are names, or it has none."""


def origin_without_id(origin: str, row_id: str | None) -> str:
    """The origin of a row whose id is forgotten: that of a row of a table ends with it."""
    return origin.removesuffix(f":{row_id}")


class Source(Protocol):
    """Where rows come from; opened anew for each night, and used in this order: `plan`, `read` per part, `after`."""

    def plan(self, before: Mapping[str, Any] | None) -> Plan:
        """The parts as they are now. Reads no rows.

        Args:
            before: `{"parts": {name: version}, "after": what after() returned}` of the newest snapshot; None at first,
                and when everything is to be read.
        """

    def read(self, part: Part) -> Iterator[RawBatch]:
        """The rows of a part in a stable order, in memory that does not grow with the part.

        Raises:
            DataError: the part is damaged, or lacks a column. Nothing of tonight is used then.
        """

    def after(self) -> dict[str, Any]:
        """What the next night gets in `before["after"]`, such as a high-water mark: JSON.

        Called once all parts are read; stored in the same step as the snapshot that holds their rows.
        """
