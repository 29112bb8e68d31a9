"""`nightgate report`: the history of a pipeline, or of all, in pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nightgate.cli.options import name_of, say
from nightgate.frames.dates import date_of


def report(
    pipeline: Annotated[
        str | None, typer.Argument(metavar="PIPELINE", help="Name of a pipeline or path of a TOML file.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="One page of all pipelines.")] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: in the folder reports of the home.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="DATE", help="Nights from this date on. Default: a year.")
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, max=500, help="Show the texts of so many misclassified test rows of the last night.")
    ] = 0,
) -> None:
    """Write the history of a pipeline as a page for a browser.

    One file, which needs no server and has no text of any row unless --examples asks for it.
    """
    from nightgate.durable_files import user_path
    from nightgate.errors import ConfigurationError
    from nightgate.frames.reader import open_reader
    from nightgate.pages.page import write_page, write_page_of_all

    if (pipeline is None) != every:
        raise ConfigurationError(
            "a page is of one pipeline or of all",
            next_step="name a pipeline, or write `nightgate report --all`",
        )
    name = name_of(pipeline) if pipeline else None
    if examples and (name is None or output is None):
        raise ConfigurationError(
            "--examples writes texts of rows into the page",
            next_step="name the pipeline, and with --output a file that only its readers can open",
        )
    first = date_of(since) if since else None
    with open_reader() as db:
        path = user_path(output) if output else db.home.page(name)
        if name is None:
            write_page_of_all(db, path, first)
        else:
            write_page(db, path, name, first, examples=examples)
    say(str(path))
