"""Commands on data: snapshots and forget."""

from __future__ import annotations

from nightgate.cli.options import OutputFormat, PipelineName, name_of, nothing_yet, show
from nightgate.cli.tables_as_text import Format

# By importance: a table shows those that fit. JSON and CSV have every column.
SNAPSHOT_COLUMNS = ("snapshot_id", "night", "rows", "rows_new", "bytes", "runs", "kept", "rows_redacted", "data_until")


def snapshots(pipeline: PipelineName, output: OutputFormat = Format.table) -> None:
    """List the snapshots: night, rows, bytes, runs that used them, and why they are kept."""
    from humanize import naturalsize

    from nightgate.database.transactions import Database
    from nightgate.home import home_for_reading
    from nightgate.pipeline_files import is_path, load_pipeline, pipeline_files
    from nightgate.registry.data_retention import listing

    name = name_of(pipeline)
    with Database.open(home_for_reading(), any_home=True) as db:
        has_file = pipeline in pipeline_files() or is_path(pipeline)
        frame = listing(db, name, load_pipeline(pipeline).retention if has_file else None)
    if output is Format.table and len(frame):
        frame["bytes"] = frame["bytes"].map(naturalsize)
    show(frame, output, nothing_yet(f"{name} has no snapshots yet", name), columns=SNAPSHOT_COLUMNS)
