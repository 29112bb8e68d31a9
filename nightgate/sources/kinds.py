"""The source that a pipeline names, by its kind."""

from __future__ import annotations

from nightgate import config
from nightgate.schedule import Night
from nightgate.sources.files import Files
from nightgate.sources.hub import Hub
from nightgate.sources.sample import Sample
from nightgate.sources.source import Source


def open_source(data: config.Data, night: Night, *, split_column: str | None = None) -> Source:
    """The source of `data`, which reads the columns that the pipeline uses and `split_column`."""
    settings, columns = data.source, wanted_columns(data, split_column)
    if isinstance(settings, config.SampleSource):
        return Sample(settings, columns, night)
    if isinstance(settings, config.FilesSource):
        return Files(settings, columns)
    if isinstance(settings, config.SqlSource):
        # SQLAlchemy takes 0.2 s to import, and nights on files do without it.
        from nightgate.sources.sql import Sql

        return Sql(settings, data, columns, night)
    return Hub(settings, data, columns)


def wanted_columns(data: config.Data, split_column: str | None) -> tuple[str, ...]:
    """The columns that the pipeline uses, each once."""
    named = (data.id, *data.text_columns, data.label, data.time, data.updated, data.deleted, *data.slices, data.group)
    return tuple(dict.fromkeys(column for column in (*named, split_column, *data.checks.columns) if column))
