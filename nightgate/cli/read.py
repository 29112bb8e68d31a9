"""Commands that read: status, history, champion and versions."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightgate.cli.options import OutputFormat, PipelineName, name_of, nothing_yet, say, show
from nightgate.cli.tables_as_text import Format
from nightgate.errors import ConfigurationError
from nightgate.frames.dates import date_of, moment_of

if TYPE_CHECKING:
    import pandas as pd

    from nightgate.operations.status import Deployed

# By importance: a table shows those that fit, Markdown all of these. Other formats have every column of the view.
NIGHT_COLUMNS = (
    *("pipeline", "night", "status", "run_id", "test_f1", "f1_ci_low", "f1_ci_high", "f1_delta", "model_version"),
    *("champion_version", "champion_f1", "test_rows", "rows_new", "reason", "alarm", "later_failure", "break_before"),
)
NARROW = 60
"""Columns of a terminal in which not even the changes of one setting fit a table."""
CHANGE_COLUMNS = ("pipeline", "night", "kind", "name", "before", "after")
EPOCH_COLUMNS = (
    *("night", "epoch", "step", "training_loss", "validation_loss", "f1", "accuracy", "precision", "recall"),
    *("attempt", "learning_rate", "examples_per_second", "nonfinite", "recorded_at"),
)
SLICE_COLUMNS = (
    *("slice_name", "slice_value", "split", "support", "f1", "accuracy", "precision", "recall"),
    *("night", "epoch", "attempt"),
)
VERSION_COLUMNS = (
    *("version", "status", "night", "test_f1", "training", "run_id", "test_rows"),
    *("f1_ci_low", "f1_ci_high", "test_version", "path"),
)


def status(output: OutputFormat = Format.table) -> None:
    """Show running, waiting, last and next nights of all pipelines.

    Times are UTC.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from nightgate.cli.status_table import as_text
    from nightgate.frames.reader import open_reader
    from nightgate.operations.status import status

    with open_reader() as db:
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
    pipeline: Annotated[
        str | None, typer.Argument(metavar="PIPELINE", help="Name or path of a TOML file. Default: all, a line each.")
    ] = None,
    run_id: Annotated[str | None, typer.Option("--run", metavar="ID|latest", help="One run.")] = None,
    epochs: Annotated[bool, typer.Option(help="The epochs of one run, in the published table's shape.")] = False,
    slices: Annotated[bool, typer.Option(help="Metrics per class and slice of the run's best epoch.")] = False,
    changes: Annotated[bool, typer.Option(help="What differs from the night before that was judged.")] = False,
    since: Annotated[str | None, typer.Option(metavar="DATE", help="Nights from this date on.")] = None,
    until: Annotated[str | None, typer.Option(metavar="DATE", help="Nights up to this date.")] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The newest so many nights. A table has a year of them.")
    ] = None,
    output: OutputFormat = Format.table,
) -> None:
    """Show nights at a glance, epochs, slices, or what changed.

    A table has what fits the terminal, other formats have every column.
    """
    from nightgate.frames import epochs as published
    from nightgate.frames import nights

    name = None if pipeline is None else name_of(pipeline)
    since_day, until_day = (date_of(day) if day else None for day in (since, until))
    which: dict[str, Any] = {"run": run_id, "since": since_day, "until": until_day, "limit": limit}
    if run_id == "latest" and name is None:
        raise ConfigurationError(
            "--run latest is the newest night of one pipeline",
            next_step="write `nightgate history PIPELINE --run latest`",
        )
    of = f" of {name}" if name else ""
    nothing = nothing_yet(f"the database has no such night{of}", name)
    if output is Format.table and not (run_id or epochs or slices or changes):
        text = _glance(name, which)
        say(text or nothing, err=not text)
        return
    frame = nights.history(name, epochs=epochs, slices=slices, changes=changes, **which)
    why, latest = "", run_id == "latest" or not any(which.values())
    if changes:
        if frame.empty and (run_id or not nights.history(name, **which | {"limit": 1}).empty):
            nothing = f"nothing changed{of}: compared are nights that trained, each with the one before"
    elif (latest or frame.empty) and (run_id or (name and (epochs or slices))):
        why = nights.why_no_epochs(name, run_id, since_day, until_day)
    if why and not frame.empty:
        say(f"shown: run {frame['run_id'].iloc[0]}, night {frame['night'].iloc[0]}; {why.splitlines()[0]}", err=True)
    if changes:
        _show_changes(frame, output, nothing, named=name is not None)
    elif epochs and output in {Format.table, Format.markdown} and not frame.empty:
        say(published.published_table(frame))
        for own in published.own_tables(frame["run_id"].unique()):
            say(f"\n{own}")
    elif epochs or slices or run_id:
        show(frame, output, why or nothing, columns=SLICE_COLUMNS if slices else EPOCH_COLUMNS)
    else:
        show(frame, output, nothing, columns=NIGHT_COLUMNS)


def _show_changes(frame: pd.DataFrame, output: Format, nothing: str, *, named: bool) -> None:
    """A table; a paragraph for each change where the terminal is narrow."""
    from nightgate.cli.glance import Page

    page = Page.of_terminal()
    if output is not Format.table or page.width >= NARROW or frame.empty:
        show(frame, output, nothing, columns=CHANGE_COLUMNS[named:])
        return
    for row in frame[list(CHANGE_COLUMNS)].fillna("").itertuples(index=False):
        of = "" if named else f"{row.pipeline} "
        for line in page.wrapped(f"{of}{row.night} {row.kind} {row.name}: {row.before} -> {row.after}", 4):
            say(line)


def _glance(pipeline: str | None, which: dict[str, Any]) -> str:
    """A line for each pipeline, or for each night of one, or of all where nights are chosen; '' without nights."""
    from nightgate.cli import glance
    from nightgate.frames.champions import read_timeline
    from nightgate.frames.fleet import read_fleet
    from nightgate.frames.nights import read_history
    from nightgate.frames.reader import open_reader

    page = glance.Page.of_terminal()
    with open_reader() as db:
        if pipeline is None and not any(which.values()):
            return "\n".join(glance.fleet(read_fleet(db), page))
        limit = which["limit"] or (None if which["since"] else glance.YEAR)
        # One more than are shown tells whether there are older ones.
        nights = read_history(db, pipeline, **which | {"limit": limit and limit + 1})
        timeline = read_timeline(db, pipeline)
    parts = []
    for name, of_one in nights.groupby("pipeline", sort=False):
        shown = of_one.tail(limit or len(of_one))
        champions = timeline[timeline["pipeline"] == name]
        parts.append("\n".join(glance.glance(shown, champions, page, older=len(shown) < len(of_one))))
    return "\n\n".join(parts)


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
    frame, columns = _absolute(champions.versions(name)), list(VERSION_COLUMNS)
    if frame["started_from"].isna().all():
        columns.remove("training")
    elif output in {Format.table, Format.markdown}:
        frame["training"] = ("from " + frame["started_from"].astype("string")).fillna("full")
    show(frame, output, nothing, columns=columns)


def _absolute(frame: pd.DataFrame) -> pd.DataFrame:
    """Replace paths relative to the home by absolute ones, or '' where retention removed the files."""
    from nightgate.home import home_for_reading

    home = home_for_reading()
    kept = frame["files_removed_at"].isna()
    return frame.assign(
        path=[str(home.absolute(path)) if has else "" for path, has in zip(frame["path"], kept, strict=True)]
    )
