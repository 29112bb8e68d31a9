"""All rows of a source as one frame, for tests of the readers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from nightgate.config.data import Data
from nightgate.schedule import Night
from nightgate.sources.kinds import open_source, wanted_columns
from nightgate.sources.source_table import Quarantined

ORIGIN = "__origin"
"""Column with a row's place in its source, such as `reviews.csv:17`."""


@dataclass(frozen=True)
class RawRows:
    """Rows of a source: `frame` has the pipeline's columns, unconverted, and `ORIGIN`."""

    frame: pd.DataFrame
    rejected: tuple[Quarantined, ...] = ()
    classes: tuple[str, ...] = ()
    """As in `RawBatch`."""


def read_source(data: Data, night: Night, *, split_column: str | None = None) -> RawRows:
    """All rows of the source of `data`, with the columns that the pipeline uses and `split_column`.

    Raises:
        DataError: a file or data set is missing, empty, damaged, in another encoding or lacks a column.
    """
    source = open_source(data, night, split_column=split_column)
    batches = [batch for part in source.plan(None).read for batch in source.read(part)]
    source.after()
    names = batches[0].table.column_names if batches else wanted_columns(data, split_column)
    columns = {name: [value for batch in batches for value in _values(batch.table.column(name))] for name in names}
    columns[ORIGIN] = [f"{batch.place}:{number}" for batch in batches for number in batch.numbers.to_pylist()]
    # As objects: pandas would turn integers beside a missing value into floats.
    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    rejected = tuple(row for batch in batches for row in batch.rejected)
    return RawRows(frame, rejected, batches[0].classes if batches else ())


def _values(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        # Nanoseconds would become pandas Timestamps, microseconds become datetimes.
        column = column.cast(pa.timestamp("us", tz=column.type.tz), safe=False)
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):  # times outside of the years 1 to 9999
        return list(column.cast(pa.string()).to_pylist())
