"""Commands that read: status, history, champion and versions."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nightgate.cli.options import OutputFormat, PipelineName, date_of, moment_of, name_of, nothing_yet, say, show
from nightgate.cli.tables_as_text import Format

if TYPE_CHECKING:
    import pandas as pd

    from nightgate.operations.status import Deployed

# By importance: a table shows those that fit. JSON and CSV have every column of the view.
NIGHT_COLUMNS = (
    *("night", "status", "run_id", "test_f1", "f1_delta", "model_version", "reason"),
    *("champion_version", "champion_f1", "f1_ci_low", "f1_ci_high", "test_rows", "best_epoch", "rows_new"),
    *("duration_seconds", "champion_fresh_f1", "champion_fresh_rows"),
)
EPOCH_COLUMNS = (
    *("night", "epoch", "step", "training_loss", "validation_loss", "f1", "accuracy", "precision", "recall"),
    *("attempt", "learning_rate", "examples_per_second", "nonfinite", "recorded_at"),
)
SLICE_COLUMNS = (
    *("slice_name", "slice_value", "split", "support", "f1", "accuracy", "precision", "recall"),
    *("night", "epoch", "attempt"),
)
VERSION_COLUMNS = (
    *("version", "status", "night", "test_f1", "test_rows", "run_id"),
    *("f1_ci_low", "f1_ci_high", "test_version", "path"),
)


def status(output: OutputFormat = Format.table) -> None:
    """Show running, waiting, last and next nights of all pipelines.

    Times are UTC.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from nightgate.home import home_for_reading

    home = home_for_reading()
    from nightgate.cli.status_table import as_text
    from nightgate.database.transactions import Database
    from nightgate.operations.status import status

    with Database.open(home, any_home=True) as db:
        frame = status(db, _deployed())
    if output is Format.table:
        say(as_text(frame))
    else:
        show(frame, output)


def _deployed() -> Mapping[str, Deployed] | None:
    """Schedules of the Prefect server; Prefect, whose import takes 0.7 s, only where there may be one."""
    if not may_have_server():
        return None
    from flows.server.checks import deployed

    return deployed()


def may_have_server() -> bool:
    """Whether Prefect has settings, in any place where it looks for them, or something listens on its usual port."""
    files = (Path("~/.prefect/profiles.toml").expanduser(), *map(Path, (".env", "prefect.toml", "pyproject.toml")))
    if any(name.upper().startswith("PREFECT_") for name in os.environ) or any(file.exists() for file in files):
        return True
    try:
        socket.create_connection(("127.0.0.1", 4200), timeout=1).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True


def history(
    pipeline: PipelineName,
    run_id: Annotated[str | None, typer.Option("--run", metavar="ID|latest", help="One run.")] = None,
    epochs: Annotated[bool, typer.Option(help="The epochs of one run, in the published table's shape.")] = False,
    slices: Annotated[bool, typer.Option(help="Metrics per class and slice of the run's best epoch.")] = False,
    since: Annotated[str | None, typer.Option(metavar="DATE", help="Nights from this date on.")] = None,
    output: OutputFormat = Format.table,
) -> None:
    """Show the nights of a pipeline, or one run's epochs or slices."""
    from nightgate.frames import epochs as published
    from nightgate.frames import nights

    name = name_of(pipeline)
    frame = nights.history(name, run=run_id, epochs=epochs, slices=slices, since=date_of(since) if since else None)
    if epochs and not slices and output is Format.table and not frame.empty:
        say(published.published_table(frame))
        for own in published.own_tables(frame["run_id"].unique()):
            say(f"\n{own}")
    else:
        nothing = nothing_yet(f"the database has nothing like that of {name}", name)
        if epochs or slices or run_id:
            nothing = (frame.empty and nights.why_no_epochs(name, run_id)) or nothing
            show(frame, output, nothing, columns=SLICE_COLUMNS if slices else EPOCH_COLUMNS)
        else:
            if output is Format.table:
                frame["break_before"] = _notes(frame)
                alarms = frame["alarm"].where(frame["alarm"].notna(), None)
                frame["reason"] = [
                    "; ".join(part for part in (reason, failure, f"alarm: {alarm}" if alarm else "") if part)
                    for reason, failure, alarm in zip(frame["reason"], frame["later_failure"], alarms, strict=True)
                ]
            show(frame, output, nothing, columns=NIGHT_COLUMNS, before="break_before")


def _notes(nights: pd.DataFrame) -> list[str | None]:
    """The line above each night: a break in the history, or how many labels of test rows were corrected."""
    return [
        broken or (f"labels of {corrected:,} test rows were corrected since the night before" if corrected else None)
        for broken, corrected in zip(nights["break_before"], nights["labels_corrected"].fillna(0), strict=True)
    ]


def champion(
    pipeline: PipelineName,
    at: Annotated[str | None, typer.Option(metavar="TIME", help="The champion at that time, UTC by default.")] = None,
    output: OutputFormat = Format.table,
) -> None:
    """Show the champion, now or at a time: metrics, path, lineage."""
    from nightgate.frames import champions

    name = name_of(pipeline)
    frame = champions.champion(name, moment_of(at) if at else None)
    nothing = nothing_yet(f"{name} has no champion yet", name)
    if at:
        nothing = f"{name} has no champion at {at}\n  next: see `nightgate versions {name}`, or omit --at"
    show(_absolute(frame), output, nothing, vertical=True)


def versions(pipeline: PipelineName, output: OutputFormat = Format.table) -> None:
    """List every version, including those that were held."""
    from nightgate.frames import champions

    name = name_of(pipeline)
    nothing = nothing_yet(f"{name} has no versions yet", name)
    show(_absolute(champions.versions(name)), output, nothing, columns=VERSION_COLUMNS)


def _absolute(frame: pd.DataFrame) -> pd.DataFrame:
    """Replace paths relative to the home by absolute ones, or '' where retention removed the files."""
    from nightgate.home import home_for_reading

    home = home_for_reading()
    kept = frame["files_removed_at"].isna()
    return frame.assign(
        path=[str(home.absolute(path)) if has else "" for path, has in zip(frame["path"], kept, strict=True)]
    )
