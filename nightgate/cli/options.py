"""Arguments and options that commands share, and what parses and prints them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from nightgate.cli.tables_as_text import Format, as_parquet, formatted
from nightgate.errors import ConfigurationError, RegistryError
from nightgate.plain_text import legible

if TYPE_CHECKING:
    import pandas as pd

PipelineName = Annotated[str, typer.Argument(metavar="PIPELINE", help="Name of a pipeline or path of a TOML file.")]
VersionName = Annotated[str, typer.Argument(metavar="VERSION", help="A number, `champion` or `previous`.")]
OutputFormat = Annotated[Format, typer.Option("--format", help="Output format.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; stored with user and time.")]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Let this home have deployments of another one on the server.")
]
RunId = Annotated[str | None, typer.Option("--run", metavar="ID", help="Run id. Default: the only run that waits.")]


def say(text: str, *, err: bool = False) -> None:
    """Print text for people: without control characters, with long lines cut, as far as the stream's encoding goes."""
    encoding = (sys.stderr if err else sys.stdout).encoding or "utf-8"
    typer.echo(legible(text).encode(encoding, "replace").decode(encoding), err=err)


def show(
    frame: pd.DataFrame,
    output: Format,
    when_empty: str = "",
    *,
    columns: Sequence[str] = (),
    vertical: bool = False,
    before: str = "",
) -> None:
    """Print a frame to stdout in a format, or `when_empty` to stderr in place of a table without rows."""
    if output is Format.parquet:
        if sys.stdout.isatty():
            raise ConfigurationError(
                "Parquet is not text, and standard output is a terminal", next_step="add `> FILE.parquet`"
            )
        typer.echo(as_parquet(frame), nl=False)
        return
    text = formatted(frame, output, columns=columns, vertical=vertical, before=before)
    if text:
        # Tables are legible cell by cell. Without `color`, click takes escape sequences out of the values of CSV.
        typer.echo(text, color=True)
    else:
        say(when_empty, err=True)


def nothing_yet(message: str, pipeline: str | None) -> str:
    """The message in place of a table without rows, with the next step."""
    run = f"nightgate run {pipeline or 'PIPELINE'}"
    return f"{message}\n  next: run a night with `{run}`, or name one of `nightgate status`"


def name_of(pipeline: str) -> str:
    """The pipeline's name in the database: from its file if there is one, else as given.

    Raises:
        ConfigurationError: there is neither a file nor a run of it; the nearest name is suggested.
    """
    from nightgate.frames.reader import open_reader
    from nightgate.pipeline_files import is_path, load_pipeline, pipeline_files, unknown_pipeline
    from nightgate.registry.versions import known_pipelines

    files = pipeline_files()
    if pipeline in files or is_path(pipeline):
        return load_pipeline(pipeline).name
    try:
        with open_reader() as db:
            known = known_pipelines(db)
    except RegistryError:  # there is no home yet
        known = []
    if pipeline not in known:
        raise unknown_pipeline(pipeline, {*files, *known})
    return pipeline


def person() -> str:
    """The user of this command, for the audit trail."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
