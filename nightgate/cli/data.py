"""Commands on data: snapshots, quarantine and forget."""

from __future__ import annotations

from typing import Annotated

import typer

from nightgate.cli.options import OutputFormat, PipelineName, name_of, nothing_yet, person, say, show
from nightgate.cli.tables_as_text import Format

# By importance: a table shows those that fit. JSON and CSV have every column.
SNAPSHOT_COLUMNS = ("snapshot_id", "night", "rows", "rows_new", "bytes", "runs", "kept", "rows_redacted", "data_until")
QUARANTINE_COLUMNS = ("reason", "origin", "detail", "first_night", "last_night", "row_id", "excerpt", "resolved_night")


def snapshots(pipeline: PipelineName, output: OutputFormat = Format.table) -> None:
    """List snapshots with rows, bytes, runs, and why they are kept."""
    from humanize import naturalsize

    from nightgate.frames.reader import open_reader
    from nightgate.pipeline_files import is_path, load_pipeline, pipeline_files
    from nightgate.registry.data_retention import listing

    name = name_of(pipeline)
    with open_reader() as db:
        has_file = pipeline in pipeline_files() or is_path(pipeline)
        frame = listing(db, name, load_pipeline(pipeline).retention if has_file else None)
    if output is Format.table and len(frame):
        frame["bytes"] = frame["bytes"].map(naturalsize)
    show(frame, output, nothing_yet(f"{name} has no snapshots yet", name), columns=SNAPSHOT_COLUMNS)


def quarantine(
    pipeline: PipelineName,
    reason: Annotated[str, typer.Option(metavar="NAME", help="Only rows with this reason.")] = "",
    resolved: Annotated[bool, typer.Option("--resolved", help="Resolved rows too.")] = False,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many rows, the newest first.")] = 100,
    output: OutputFormat = Format.table,
) -> None:
    """List source rows that cannot be used, and why."""
    from nightgate.frames import quarantine as quarantined

    name = name_of(pipeline)
    frame, counts = quarantined.quarantine(name, reason=reason, resolved=resolved, limit=limit)
    nothing = f"{name} has no quarantined rows{' of that kind' if reason or not resolved else ''}"
    show(frame, output, nothing, columns=QUARANTINE_COLUMNS)
    if counts:
        say(", ".join(f"{count:,} {reason}" for reason, count in counts.items()), err=True)


def forget(
    pipeline: PipelineName,
    ids: Annotated[list[str], typer.Option("--id", metavar="ID", help="Value of data.id; repeatable.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    output: OutputFormat = Format.table,
) -> None:
    """Take a person's rows out of all that is kept."""
    import pandas as pd

    from nightgate.database.transactions import Database
    from nightgate.home import existing_home
    from nightgate.registry import forgetting

    name = name_of(pipeline)
    with Database.open(existing_home()) as db:
        found = forgetting.find(db, name, ids) if dry_run else forgetting.forget(db, name, ids, by=person())
    places = pd.DataFrame([vars(place) for place in found.places], columns=["path", "what", "rows"])
    show(places.astype({"rows": "Int64"}), output, "nothing is left to forget")
    for version, how in found.versions.items():
        say(f"version {version}: {how}", err=True)
    if found.versions:
        say("a model keeps what it learnt: train another without the rows, and promote it:", err=True)
        say(f"nightgate run {pipeline} --force --set training.start_from=base", err=True)
    say("nothing was changed" if dry_run else forgetting.NOT_REACHED, err=True)
