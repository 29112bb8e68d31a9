"""The source that a pipeline names, and all of its rows as one frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from nightgate import config
from nightgate.data.files_source import Files
from nightgate.data.hub_source import Hub
from nightgate.data.sample_source import Sample
from nightgate.data.source import Source
from nightgate.data.source_table import ORIGIN, Quarantined
from nightgate.schedule import Night


def open_source(data: config.Data, night: Night, *, split_column: str | None = None) -> Source:
    """The source of `data`, which reads the columns that the pipeline uses and `split_column`."""
    settings, columns = data.source, wanted_columns(data, split_column)
    if isinstance(settings, config.SampleSource):
        return Sample(settings, columns, night)
    if isinstance(settings, config.FilesSource):
        return Files(settings, columns)
    return Hub(settings, data, columns)


def wanted_columns(data: config.Data, split_column: str | None) -> tuple[str, ...]:
    """The columns that the pipeline uses, each once."""
    named = (
        data.id,
        *data.text_columns,
        data.label,
        data.time,
        *data.slices,
        data.group,
        split_column,
        *data.checks.columns,
    )
    return tuple(dict.fromkeys(column for column in named if column is not None))


@dataclass(frozen=True)
class RawRows:
    """Rows of a source: `frame` has the pipeline's columns, unconverted, and `ORIGIN`."""

    frame: pd.DataFrame
    rejected: tuple[Quarantined, ...] = ()
    classes: tuple[str, ...] = ()
    """As in `RawBatch`."""


def read_source(data: config.Data, night: Night, *, split_column: str | None = None) -> RawRows:
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
    return list(column.to_pylist())
