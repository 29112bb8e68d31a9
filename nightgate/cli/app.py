"""The command line: `nightgate --help`. Heavy imports stand inside the functions, so that help is quick.

Here: the app, and what runs nights and looks after the place; `cli_read` holds the commands that read, `cli_decide`
those that decide, `cli_seeds` the one that measures chance, `cli_options` what they share. COMMANDS is the order in
which help lists them.

Results go to stdout, progress and logs to stderr. Exit 0: promoted, held, skipped, superseded or waiting; 1: failed or
cancelled; 2: bad usage or configuration; 3: held, with --fail-on-held.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from nightgate import __version__
from nightgate.cli.decide import approve, freeze, promote, reconcile, reject, rollback, unfreeze
from nightgate.cli.gate import compare, export, gate_app, push
from nightgate.cli.options import OutputFormat, PipelineName, date_of, show
from nightgate.cli.read import champion, history, predict, status, versions
from nightgate.cli.seeds import seeds
from nightgate.cli.tables_as_text import Format
from nightgate.errors import NightgateError
from nightgate.logs import without_secrets

if TYPE_CHECKING:
    from nightgate.config import Pipeline
    from nightgate.operations.findings import Seen
    from nightgate.schedule import Night


class _InWords(TyperGroup):
    """Errors of ours in words, with the exit code that belongs to them. Typer would take some for its own."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except NightgateError as error:
            typer.echo(f"error: {without_secrets(str(error))}", err=True)
            code = error.exit_code
        except KeyboardInterrupt:
            # By force a run opens a new one.
            again = {"run": ", without --force,", "seeds": ""}.get(ctx.invoked_subcommand or "")
            told = "" if again is None else f": run the same command again{again} to go on from the last checkpoint"
            typer.echo(f"cancelled{told}", err=True)
            code = 1
        except BrokenPipeError:
            # The reader of a pipe (`| head`) has gone: no error of ours. Python would complain again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        raise typer.Exit(code)


app = typer.Typer(
    name="nightgate",
    cls=_InWords,
    help="Nightly retraining of text classifiers behind a promotion gate that can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
database_app = typer.Typer(help="The metrics database.", no_args_is_help=True)


def run(
    pipeline: PipelineName,
    night: Annotated[str | None, typer.Option(metavar="DATE", help="A past night, such as 2026-01-05.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=value", help="Any field of the file, for this run only.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Open a new run for a night that has ended.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but promote.")] = False,
    fail_on_held: Annotated[bool, typer.Option("--fail-on-held", help="Exit 3 when the candidate is held.")] = False,
    no_prefect: Annotated[bool, typer.Option("--no-prefect", help="The same steps without Prefect.")] = False,
) -> None:
    """Run one night, now: refresh, fine-tune, evaluate, judge, promote or hold."""
    from nightgate import cpu_threads

    # While the rest is imported: how busy the machine is decides how the training process waits.
    cpu_threads.look()
    from nightgate.database.transactions import prepare
    from nightgate.home import open_home
    from nightgate.pipeline_files import load_pipeline, parse_settings
    from nightgate.schedule import chosen_night, tonight

    configuration = load_pipeline(pipeline, parse_settings(settings or ()))
    schedule = configuration.schedule
    chosen = tonight(schedule) if night is None else chosen_night(schedule, date_of(night))
    prepare(open_home())
    status = None if force or dry_run else _tell_ended(configuration, chosen)
    if status is None:
        # A plain SIGTERM would end us without settling the run's row: treat it like Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        status = (_run_bare if no_prefect else _run_in_prefect)(configuration, chosen, force, dry_run)
    if status in {"failed", "cancelled"}:
        raise typer.Exit(1)
    if status == "held" and fail_on_held:
        raise typer.Exit(3)


def _tell_ended(configuration: Pipeline, chosen: Night) -> str | None:
    """The status of a night that has ended before, told with all there is; None when there is work to do."""
    from nightgate.database import queries
    from nightgate.home import open_home
    from nightgate.runs.claim import ENDED

    nights = queries.history(configuration.name, since=chosen.date)
    found = nights[(nights["night"] == chosen.date) & nights["status"].isin(ENDED) & ~nights["dry_run"]]
    if found.empty:
        return None
    from nightgate.reports import terminal_summary

    run_id, status = str(found["run_id"].iloc[0]), str(found["status"].iloc[0])
    typer.echo(terminal_summary.as_text(open_home(), run_id))
    if status == "waiting":
        told = f"This night waits for an approval, in run {run_id}; nothing was done."
    else:
        told = f"This night had ended before, in run {run_id}; nothing was done. --force opens a new run."
    typer.echo(told, err=True)
    return status


def _run_bare(configuration: Pipeline, chosen: Night, force: bool, dry_run: bool) -> str:
    from nightgate import logs
    from nightgate.home import open_home
    from nightgate.night.night import run_night

    logs.to_stderr()
    finished = run_night(configuration, chosen, force=force, dry_run=dry_run)
    from nightgate.reports import terminal_summary

    typer.echo(terminal_summary.as_text(open_home(), finished.run_id))
    return finished.status


def _run_in_prefect(configuration: Pipeline, chosen: Night, force: bool, dry_run: bool) -> str:
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from flows.nightly import nightly_from_file
    from flows.server_connection import prefect_server
    from nightgate.home import open_home
    from nightgate.reports import terminal_summary

    with prefect_server(say=lambda told: typer.echo(told, err=True)):
        state = nightly_from_file(configuration, chosen, force, dry_run, return_state=True)
    if state.is_completed():
        status, run_id = terminal_summary.run_of_flow_message(state.message or "")
        typer.echo(terminal_summary.as_text(open_home(), run_id))
        return status
    typer.echo(f"error: {state.message}", err=True)
    return "cancelled" if state.is_cancelled() else "failed"


def serve(
    pipelines: Annotated[list[str] | None, typer.Argument(metavar="[PIPELINE ...]", help="Default: `sample`.")] = None,
) -> None:
    """Serve pipelines on their schedules, with a local Prefect server and its UI if none runs."""
    os.environ.setdefault("PREFECT_RUNNER_POLL_FREQUENCY", "2")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from nightgate.database.transactions import prepare
    from nightgate.home import open_home
    from nightgate.pipeline_files import find_pipeline, load_pipeline

    paths = [find_pipeline(reference).resolve() for reference in pipelines or ["sample"]]
    loaded = [load_pipeline(path) for path in paths]
    # A run is started by name, in a process of its own: this is where it looks names up first.
    os.environ["NIGHTGATE_PIPELINES"] = os.pathsep.join(str(path) for path in paths)
    prepare(open_home())
    from deployments.serve import serve_pipelines

    def tell(url: str) -> None:
        names = ", ".join(f"{one.name} ({one.schedule.cron} {one.schedule.timezone})" for one in loaded)
        typer.echo(
            f"UI at {url}\nserving {names}\n"
            f"Start a night: Deployments > {loaded[0].name} > Run > Custom run. Ctrl-C ends."
        )

    serve_pipelines(loaded, tell)


def deploy(
    pipelines: Annotated[
        list[str] | None, typer.Argument(metavar="[PIPELINE ...]", help="Names. Default: all of this place.")
    ] = None,
    pool: Annotated[str, typer.Option(metavar="NAME", help="Work pool; one of processes is made if missing.")] = "",
    prune: Annotated[bool, typer.Option("--prune", help="Remove deployments of pipelines that are gone.")] = False,
    work_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where runs work. Default: here, for a pool of processes.")
    ] = None,
    output: OutputFormat = Format.table,
) -> None:
    """Register pipelines at a Prefect server, for the workers of a work pool; repeat it at any time."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    import pandas as pd

    from deployments.catalog import POOL
    from deployments.deploy import deploy, problems

    outcomes = deploy(pipelines or (), pool=pool or POOL, prune=prune, work_dir=work_dir)
    show(pd.DataFrame([vars(outcome) for outcome in outcomes]), output)
    if broken := problems(outcomes):
        raise broken


def doctor(output: OutputFormat = Format.table) -> None:
    """Check this place and all that its nights need; say how to mend what is wrong."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    import pandas as pd

    from nightgate.operations.doctor import examine

    findings = examine(_server_check())
    show(pd.DataFrame([vars(finding) for finding in findings]), output)
    counts = {status: sum(finding.status == status for finding in findings) for status in ("problem", "warning")}
    told = (f"{count} {status}{'' if count == 1 else 's'}" for status, count in counts.items())
    typer.echo(", ".join(told), err=True)
    if counts["problem"]:
        raise typer.Exit(1)


def _server_check() -> Callable[[], Seen]:
    """What asks the Prefect server. Imported first: a Prefect that cannot be is among what a doctor finds."""
    try:
        from flows.server_checks import examine
    except Exception as error:  # noqa: BLE001 - a wrong version fails in any way
        told = f"Prefect cannot be imported: {type(error).__name__}: {error}".splitlines()[0]
        return lambda: _nothing_but(told)
    return examine


def _nothing_but(told: str) -> Seen:
    from nightgate.operations.findings import Finding, Seen

    return Seen([Finding("problem", "prefect server", told, "install with the versions of constraints.txt")])


@database_app.command("upgrade")
def upgrade_database() -> None:
    """Create the metrics database or bring it to this version's revision."""
    from nightgate.database.connection import database_url, safe_url
    from nightgate.database.transactions import upgrade
    from nightgate.home import open_home

    url = database_url(open_home())
    before, after = upgrade(url)
    change = f"already at revision {after}" if before == after else f"from {before or 'blank'} to revision {after}"
    typer.echo(f"{safe_url(url)}: {change}")


@app.callback(invoke_without_command=True)
def _top(
    ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        typer.echo(f"nightgate {__version__}")
        raise typer.Exit
    from nightgate.settings import unknown_settings

    # `doctor` has a line for each.
    for told in unknown_settings() if ctx.invoked_subcommand != "doctor" else ():
        typer.echo(f"warning: {told}", err=True)


COMMANDS = (
    run,
    status,
    history,
    champion,
    versions,
    compare,
    predict,
    promote,
    rollback,
    freeze,
    unfreeze,
    approve,
    reject,
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
