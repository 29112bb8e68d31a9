"""Commands on the metrics database: db upgrade, backup, export and grant-reader."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nightgate.cli.options import say
from nightgate.durable_files import user_path

database_app = typer.Typer(help="The metrics database.", no_args_is_help=True)


@database_app.command("upgrade")
def upgrade_database() -> None:
    """Create the metrics database, or migrate it to this version."""
    from nightgate.database.backup import earlier_copy
    from nightgate.database.connection import database_url
    from nightgate.database.earlier import REVISION
    from nightgate.database.transactions import upgrade
    from nightgate.database_urls import safe_url
    from nightgate.home import open_home

    url = database_url(open_home())
    before, after = upgrade(url)
    if before == REVISION and (copy := earlier_copy(url)):
        say(f"{copy}: the database as it was")
    change = f"already at revision {after}" if before == after else f"from {before or 'blank'} to revision {after}"
    say(f"{safe_url(url)}: {change}")


@database_app.command("backup")
def back_up_database(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that does not exist yet.")],
) -> None:
    """Copy the metrics database to a file; nights may run.

    For PostgreSQL it prints the command that does, and exits with 1.
    """
    from humanize import naturalsize

    from nightgate.database.backup import back_up, dump_command
    from nightgate.database.connection import database_url
    from nightgate.database_urls import safe_url
    from nightgate.home import home_for_reading

    url, target = database_url(home_for_reading()), user_path(file).absolute()
    if command := dump_command(url, target):
        say(command)
        say(f"nothing was copied: the command above copies {safe_url(url)}", err=True)
        raise typer.Exit(1)
    back_up(url, target)
    say(f"{target}: {naturalsize(target.stat().st_size)}, verified")


@database_app.command("export")
def export_database(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that does not exist yet.")],
    pipeline: Annotated[str | None, typer.Option(metavar="NAME", help="Only the rows of this pipeline.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write every view to a Parquet file.

    With types, for pandas, DuckDB and Polars.
    """
    from humanize import naturalsize

    from nightgate.cli.options import name_of
    from nightgate.frames.export import export
    from nightgate.frames.reader import open_reader

    target = user_path(folder).absolute()
    with open_reader() as db:
        rows = export(db, target, name_of(pipeline) if pipeline else None, force=force)
    size = sum(path.stat().st_size for path in target.iterdir())
    say(f"{target}: {len(rows)} views, {sum(rows.values()):,} rows, {naturalsize(size)}")


@database_app.command("grant-reader")
def let_read(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="A role of PostgreSQL, such as that of the analysts.")],
) -> None:
    """Let a role of PostgreSQL read the views, and no table.

    All commands that read work with it, and views of later versions are added by `db upgrade`.
    """
    from nightgate.database.readers import grant_reader
    from nightgate.database.views import VIEWS
    from nightgate.frames.reader import open_reader

    with open_reader() as db:
        grant_reader(db, role)
        say(f"{role} may read the {len(VIEWS)} views of {db.name}, and no table")
