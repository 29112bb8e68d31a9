"""The command line application: `nightgate --help`.

This module has the commands that operate the machine. Heavy imports are inside the functions, to keep
help fast. Results go to stdout, progress and logs to stderr. Exit codes: 0 promoted, held, skipped, superseded or
waiting; 1 failed or cancelled; 2 wrong usage or configuration; 3 held, with --fail-on-held.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from nightgate import __version__
from nightgate.cli.data import forget, quarantine, snapshots
from nightgate.cli.database import database_app
from nightgate.cli.decide import approve, freeze, promote, reconcile, reject, rollback, unfreeze
from nightgate.cli.gate import compare, export, gate_app, push
from nightgate.cli.options import OutputFormat, TakeOver, say, show
from nightgate.cli.parts import evaluate, refresh
from nightgate.cli.predict import predict
from nightgate.cli.read import champion, history, status, versions
from nightgate.cli.report import report
from nightgate.cli.run import run
from nightgate.cli.seeds import seeds
from nightgate.cli.setup import check, init
from nightgate.cli.tables_as_text import Format
from nightgate.errors import NightgateError
from nightgate.logs import without_secrets

if TYPE_CHECKING:
    from nightgate.operations.findings import Seen

AGAIN = dict.fromkeys(("run", "seeds"), "run the same command again")
"""What to do after Ctrl-C, by command, where the exception has no note of it."""


class _ReportErrors(TyperGroup):
    """Prints a NightgateError as a message and ends with its exit code."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except NightgateError as error:
            say(f"error: {without_secrets(str(error))}", err=True)
            code = error.exit_code
        except UnicodeEncodeError as error:
            # Python has each byte of an argument that is not UTF-8 as a surrogate.
            say(
                f"error: {error.object!r} is not UTF-8\n  next: write it in UTF-8, as names and ids are stored",
                err=True,
            )
            code = 2
        except KeyboardInterrupt as stop:
            hint = getattr(stop, "__notes__", [AGAIN.get(ctx.invoked_subcommand or "", "")])[-1]
            say(f"cancelled{': ' if hint else ''}{hint}", err=True)
            code = 1
        except BrokenPipeError:
            # The reader of a pipe (`| head`) has ended. Python would report that again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        raise typer.Exit(code)


app = typer.Typer(
    name="nightgate",
    cls=_ReportErrors,
    help="Nightly retraining of text classifiers behind a promotion gate that can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def serve(
    pipelines: Annotated[list[str] | None, typer.Argument(metavar="PIPELINE", help="Default: `sample`.")] = None,
    port: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=65535, help="Port of the local server. Default: 4200.")
    ] = None,
    auth: Annotated[
        bool, typer.Option("--auth", help="Start the server with a password, which is made and kept in the home.")
    ] = False,
    take_over: TakeOver = False,
) -> None:
    """Serve pipelines on their schedules, with Prefect's UI.

    A local Prefect server is started if none runs.
    """
    os.environ.setdefault("PREFECT_RUNNER_POLL_FREQUENCY", "2")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from nightgate.database.transactions import prepare
    from nightgate.home import open_home
    from nightgate.pipeline_files import find_pipeline, load_pipeline

    paths = [find_pipeline(reference).resolve() for reference in pipelines or ["sample"]]
    loaded = [load_pipeline(path) for path in paths]
    # Runs are started by name in their own processes, which look names up here first.
    os.environ["NIGHTGATE_PIPELINES"] = os.pathsep.join(str(path) for path in paths)
    prepare(open_home())
    from deployments.serve import serve_pipelines
    from nightgate.settings import read_settings

    asks = auth or read_settings().serve_auth
    serve_pipelines(loaded, port=port, auth=asks, take_over=take_over, say=say)


def deploy(
    pipelines: Annotated[
        list[str] | None, typer.Argument(metavar="PIPELINE", help="Names. Default: all that are found here.")
    ] = None,
    pool: Annotated[str, typer.Option(metavar="NAME", help="Work pool; created for processes if missing.")] = "",
    prune: Annotated[bool, typer.Option("--prune", help="Remove deployments of pipelines that are gone.")] = False,
    work_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Working folder of runs. Default of process pools: this."),
    ] = None,
    take_over: TakeOver = False,
    output: OutputFormat = Format.table,
) -> None:
    """Register pipelines at a Prefect server, for a work pool.

    It may be repeated at any time.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    import pandas as pd

    from nightgate.pipeline_files import find_by_name

    for name in pipelines or ():
        find_by_name(name)
    from deployments.deploy import deploy, problems

    notes: list[str] = []
    outcomes = deploy(pipelines or (), pool=pool, prune=prune, work_dir=work_dir, take_over=take_over, say=notes.append)
    show(pd.DataFrame([vars(outcome) for outcome in outcomes]), output)
    for note in notes:
        say(f"note: {note}", err=True)
    if broken := problems(outcomes):
        raise broken


def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Read the whole database and every champion, also where they are large.")
    ] = False,
    output: OutputFormat = Format.table,
) -> None:
    """Check this machine, database, server and pipelines."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    import pandas as pd

    from nightgate.operations.doctor import examine

    findings = [replace(one, found=without_secrets(one.found)) for one in examine(_server_check(), deep=deep)]
    show(pd.DataFrame([vars(finding) for finding in findings]), output)
    counts = {status: sum(finding.status == status for finding in findings) for status in ("problem", "warning")}
    say(", ".join(f"{count} {status}{'' if count == 1 else 's'}" for status, count in counts.items()), err=True)
    if counts["problem"]:
        raise typer.Exit(1)


def _server_check() -> Callable[[], Seen]:
    """The check of the Prefect server; if Prefect cannot be imported, that is its finding."""
    try:
        from flows.server.checks import examine
    except Exception as error:  # noqa: BLE001 - a wrong version can fail in any way
        problem = f"Prefect cannot be imported: {type(error).__name__}: {error}".splitlines()[0]
        return lambda: _cannot_import(problem)
    return examine


def _cannot_import(problem: str) -> Seen:
    from nightgate.operations.doctor import KNOWN_BAD
    from nightgate.operations.findings import Finding, Seen

    wanted = " ".join(f"'{package}{KNOWN_BAD[package][0]}'" for package in ("prefect", "fastapi", "sqlalchemy"))
    return Seen([Finding("problem", "prefect server", problem, f"pip install --force-reinstall {wanted}")])


@app.callback(invoke_without_command=True)
def _top(
    ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        say(f"nightgate {__version__}")
        raise typer.Exit
    from nightgate.settings import unknown_settings

    # `doctor` lists them itself.
    for problem in unknown_settings() if ctx.invoked_subcommand != "doctor" else ():
        say(f"warning: {problem}", err=True)


COMMANDS = (
    init,
    check,
    run,
    refresh,
    status,
    history,
    champion,
    versions,
    compare,
    report,
    evaluate,
    predict,
    snapshots,
    quarantine,
    promote,
    rollback,
    freeze,
    unfreeze,
    approve,
    reject,
    forget,
    push,
    export,
    seeds,
    reconcile,
    serve,
    deploy,
    doctor,
)
for _command in COMMANDS:
    app.command()(_command)
app.add_typer(gate_app, name="gate")
app.add_typer(database_app, name="db")


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
