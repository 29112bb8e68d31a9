"""What the commands of `nightgate` share: arguments and options, printing, and words of users as values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from nightgate.cli.tables_as_text import Format, formatted
from nightgate.errors import ConfigurationError

if TYPE_CHECKING:
    import pandas as pd

PipelineName = Annotated[str, typer.Argument(metavar="PIPELINE", help="Name of a pipeline or path of a TOML file.")]
VersionName = Annotated[str, typer.Argument(metavar="VERSION", help="A number, `champion` or `previous`.")]
OutputFormat = Annotated[Format, typer.Option("--format", help="How to print.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is stored with who and when.")]
RunId = Annotated[str | None, typer.Option("--run", metavar="ID", help="Which run; default: the only one that waits.")]


def show(
    frame: pd.DataFrame,
    output: Format,
    when_empty: str = "",
    *,
    columns: Sequence[str] = (),
    vertical: bool = False,
    before: str = "",
) -> None:
    """Print a frame to stdout as `formatted` has it; say `when_empty` on stderr where a table would have no rows."""
    text = formatted(frame, output, columns=columns, vertical=vertical, before=before)
    if text:
        typer.echo(text)
    else:
        typer.echo(when_empty, err=True)


def nothing_yet(told: str, pipeline: str) -> str:
    """What a table without rows says instead, and what to do; the pipeline may be one that nobody knows."""
    return f"{told}\n  next: run a night with `nightgate run {pipeline}`, or name another that `nightgate status` knows"


def name_of(pipeline: str) -> str:
    """The pipeline's name in the database: of its file if there is one, else as given (its file may be gone)."""
    from nightgate.pipeline_files import load_pipeline, pipeline_files

    if pipeline in pipeline_files() or pipeline.endswith(".toml"):
        return load_pipeline(pipeline).name
    return pipeline


def date_of(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(
            f"{text!r} is not a date", next_step="write it as YYYY-MM-DD, such as 2026-01-05"
        ) from error


def moment_of(text: str) -> datetime:
    """A time as a user writes it, in UTC; taken as UTC where it carries no timezone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(
            f"{text!r} is not a time", next_step="write it as 2026-01-05T03:15 or 2026-01-05T03:15+01:00"
        ) from error
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError as error:
        raise ConfigurationError(
            f"{text!r} lies outside the years 1 to 9999 in UTC", next_step="write a time that lies between them"
        ) from error


def person() -> str:
    """Who gives this command: the name that stands behind a decision."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
