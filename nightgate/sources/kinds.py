"""The source that a pipeline names, by its kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import cast

from nightgate.config.data import Data
from nightgate.config.sources import SOURCES, FilesSource, HubSource, SampleSource, SqlSource
from nightgate.errors import ConfigurationError, first_line
from nightgate.schedule import Night
from nightgate.sources.files import Files
from nightgate.sources.hub import Hub
from nightgate.sources.sample import Sample
from nightgate.sources.source import Source


def open_source(
    data: Data, night: Night, *, split_column: str | None = None, columns: Sequence[str] | None = None
) -> Source:
    """The source of `data`, which reads `columns`; by default those that the pipeline uses, and `split_column`."""
    settings, columns = data.source, columns or wanted_columns(data, split_column)
    if isinstance(settings, SampleSource):
        return Sample(settings, columns, night)
    if isinstance(settings, FilesSource):
        return Files(settings, data, columns)
    if isinstance(settings, SqlSource):
        # SQLAlchemy takes 0.2 s to import, and nights on files do without it.
        from nightgate.sources.sql import Sql

        return Sql(settings, data, columns, night)
    if isinstance(settings, HubSource):
        return Hub(settings, data, columns)
    return _own(settings.kind)(settings.fields, data, columns, night)


def _own(kind: str) -> Callable[..., Source]:
    """The class of another package's source.

    Raises:
        ConfigurationError: it cannot be imported.
    """
    entry = next(iter(entry_points(group=SOURCES, name=kind)))
    try:
        return cast("Callable[..., Source]", entry.load())
    except Exception as error:
        raise ConfigurationError(
            f"source {kind!r}: {entry.value} cannot be imported: {first_line(error)}",
            next_step=f"correct the package that names it as an entry point of {SOURCES}",
        ) from error


def wanted_columns(data: Data, split_column: str | None) -> tuple[str, ...]:
    """The columns that the pipeline uses, each once."""
    named = (data.id, *data.text_columns, data.label, data.time, data.updated, data.deleted, *data.slices, data.group)
    return tuple(dict.fromkeys(column for column in (*named, split_column, *data.checks.columns) if column))
