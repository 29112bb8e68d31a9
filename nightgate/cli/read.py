"""The commands that read: the fleet, nights, champions, versions, and the champion at work on texts."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nightgate.cli.options import OutputFormat, PipelineName, date_of, moment_of, name_of, nothing_yet, show
from nightgate.cli.tables_as_text import Format
from nightgate.errors import ConfigurationError

if TYPE_CHECKING:
    import pandas as pd

NIGHT_COLUMNS = (
    "night",
    "status",
    "rows_new",
    "best_epoch",
    "test_rows",
    "test_f1",
    "f1_ci_low",
    "f1_ci_high",
    "champion_version",
    "champion_f1",
    "f1_delta",
    "champion_fresh_f1",
    "champion_fresh_rows",
    "model_version",
    "duration_seconds",
    "reason",
)
VERSION_COLUMNS = (
    "version",
    "status",
    "night",
    "test_f1",
    "f1_ci_low",
    "f1_ci_high",
    "test_rows",
    "test_version",
    "run_id",
    "path",
)
"""What a table shows; JSON and CSV hold every column of the view."""


def status(output: OutputFormat = Format.table) -> None:
    """Show what runs, what waits, how the last nights ended, and when the next ones begin. Times are UTC."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from nightgate.home import home_for_reading

    home = home_for_reading()
    from flows.server_checks import deployed
    from nightgate.cli.status_table import as_text
    from nightgate.database.transactions import Database
    from nightgate.operations.status import status

    with Database.open(home, any_home=True) as db:
        frame = status(db, deployed())
    if output is Format.table:
        typer.echo(as_text(frame))
    else:
        show(frame, output)


def history(
    pipeline: PipelineName,
    run_id: Annotated[str | None, typer.Option("--run", metavar="ID|latest", help="One run.")] = None,
    epochs: Annotated[bool, typer.Option(help="The epochs of one run, in the published table's shape.")] = False,
    slices: Annotated[bool, typer.Option(help="Metrics per class and slice of the run's best epoch.")] = False,
    since: Annotated[str | None, typer.Option(metavar="DATE", help="Nights from this date on.")] = None,
    output: OutputFormat = Format.table,
) -> None:
    """Show the nights of a pipeline, or the epochs or slices of one run."""
    from nightgate.database import queries

    name = name_of(pipeline)
    frame = queries.history(name, run=run_id, epochs=epochs, slices=slices, since=date_of(since) if since else None)
    if epochs and not slices and output is Format.table and not frame.empty:
        typer.echo(queries.published_table(frame))
    else:
        nothing = nothing_yet(f"the database holds nothing of that for {name}", name)
        if epochs or slices or run_id:
            show(frame, output, (frame.empty and queries.why_no_epochs(name, run_id)) or nothing)
        else:
            show(frame, output, nothing, columns=NIGHT_COLUMNS, before="break_before")


def champion(
    pipeline: PipelineName,
    at: Annotated[str | None, typer.Option(metavar="TIME", help="Who reigned then; UTC unless it says so.")] = None,
    output: OutputFormat = Format.table,
) -> None:
    """Show the version that reigns, or reigned at a time: metrics, path, lineage."""
    from nightgate.database import queries

    name = name_of(pipeline)
    frame = queries.champion(name, moment_of(at) if at else None)
    nothing = nothing_yet(f"{name} has no champion yet", name)
    if at:
        nothing = f"{name} has no champion at {at}\n  next: see `nightgate versions {name}`, or leave --at out"
    show(_absolute(frame), output, nothing, vertical=True)


def versions(pipeline: PipelineName, output: OutputFormat = Format.table) -> None:
    """List every version: each completed candidate, held ones too."""
    from nightgate.database import queries

    name = name_of(pipeline)
    nothing = nothing_yet(f"{name} has no versions yet", name)
    show(_absolute(queries.versions(name)), output, nothing, columns=VERSION_COLUMNS)


def predict(
    pipeline: PipelineName,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT ...]", help="Else one a line from stdin.")] = None,
    output: OutputFormat = Format.table,
) -> None:
    """Classify texts with the champion, from arguments or standard input."""
    import pandas as pd

    from nightgate.registry.champions import load_champion

    given = texts or _lines_of_stdin()
    if not given:
        raise ConfigurationError(
            "there is no text to classify", next_step="give texts as arguments or one a line on standard input"
        )
    predictions = load_champion(name_of(pipeline)).predict(given)
    rows = [
        {"label": found.label, "probability": round(found.probability, 4), "text": text}
        for found, text in zip(predictions, given, strict=True)
    ]
    show(pd.DataFrame(rows), output)


def _absolute(frame: pd.DataFrame) -> pd.DataFrame:
    """Paths as they are on this machine, '' where retention removed the files; the database stores them relative to the
    home.
    """
    from nightgate.home import home_for_reading

    home = home_for_reading()
    kept = frame["files_removed_at"].isna()
    return frame.assign(
        path=[str(home.absolute(path)) if has else "" for path, has in zip(frame["path"], kept, strict=True)]
    )


def _lines_of_stdin() -> list[str]:
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"standard input is not UTF-8 text: {error}",
            next_step="convert it, such as with `iconv -f cp1252 -t utf-8`",
        ) from error
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]
