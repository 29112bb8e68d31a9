"""The command line: `nightgate --help`. Heavy imports stand inside the functions, so that help is quick.

Results go to stdout, progress and logs to stderr. Exit 0: promoted, held, skipped, superseded or waiting; 1: failed or
cancelled; 2: bad usage or configuration; 3: held, with --fail-on-held.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from nightgate import __version__
from nightgate.errors import ConfigurationError, NightgateError
from nightgate.output import Format, formatted

if TYPE_CHECKING:
    import pandas as pd

    from nightgate.config import Pipeline
    from nightgate.nights import Night


class _InWords(TyperGroup):
    """Errors of ours in words, with the exit code that belongs to them. Typer would take some for its own."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except NightgateError as error:
            typer.echo(f"error: {error}", err=True)
            code = error.exit_code
        except KeyboardInterrupt:
            again = ": run the same command again to go on from the last checkpoint"
            typer.echo(f"cancelled{again if ctx.invoked_subcommand == 'run' else ''}", err=True)
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
app.add_typer(database_app, name="db")


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
    "f1_delta",
    "model_version",
    "duration_seconds",
    "reason",
)
VERSION_COLUMNS = ("version", "status", "night", "test_f1", "f1_ci_low", "f1_ci_high", "test_rows", "run_id", "path")
"""What a table shows; JSON and CSV hold every column of the view."""

PipelineName = Annotated[str, typer.Argument(metavar="PIPELINE", help="Name of a pipeline or path of a TOML file.")]
VersionName = Annotated[str, typer.Argument(metavar="VERSION", help="A number, `champion` or `previous`.")]
OutputFormat = Annotated[Format, typer.Option("--format", help="How to print.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is stored with who and when.")]


@app.command()
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
    from nightgate.nights import chosen_night, tonight
    from nightgate.pipelines import load_pipeline, parse_settings

    configuration = load_pipeline(pipeline, parse_settings(settings or ()))
    schedule = configuration.schedule
    chosen = tonight(schedule) if night is None else chosen_night(schedule, _date(night))
    _prepare_database()
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
    from nightgate import query, summary
    from nightgate.home import open_home
    from nightgate.runs import ENDED

    nights = query.history(configuration.name, since=chosen.date)
    found = nights[(nights["night"] == chosen.date) & nights["status"].isin(ENDED) & ~nights["dry_run"]]
    if found.empty:
        return None
    run_id, status = str(found["run_id"].iloc[0]), str(found["status"].iloc[0])
    typer.echo(summary.as_text(open_home(), run_id))
    typer.echo(f"This night had ended before, in run {run_id}; nothing was done. --force opens a new run.", err=True)
    return status


def _run_bare(configuration: Pipeline, chosen: Night, force: bool, dry_run: bool) -> str:
    from nightgate import summary
    from nightgate.steps import run_night

    _log_to_stderr()
    finished = run_night(configuration, chosen, force=force, dry_run=dry_run)
    typer.echo(summary.as_text(finished.home, finished.run_id))
    return finished.status


def _run_in_prefect(configuration: Pipeline, chosen: Night, force: bool, dry_run: bool) -> str:
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from flows.nightly import nightly_by_hand
    from flows.server import prefect_server
    from nightgate import summary
    from nightgate.home import open_home

    with prefect_server() as told:
        typer.echo(told, err=True)
        state = nightly_by_hand(configuration, chosen, force, dry_run, return_state=True)
    if state.is_completed():
        status, run_id = summary.run_of_flow_message(state.message or "")
        typer.echo(summary.as_text(open_home(), run_id))
        return status
    typer.echo(f"error: {state.message}", err=True)
    return "cancelled" if state.is_cancelled() else "failed"


@app.command()
def history(
    pipeline: PipelineName,
    run_id: Annotated[str | None, typer.Option("--run", metavar="ID|latest", help="One run.")] = None,
    epochs: Annotated[bool, typer.Option(help="The epochs of one run, in the published table's shape.")] = False,
    slices: Annotated[bool, typer.Option(help="Metrics per class and slice of the run's best epoch.")] = False,
    since: Annotated[str | None, typer.Option(metavar="DATE", help="Nights from this date on.")] = None,
    output: OutputFormat = Format.table,
) -> None:
    """Show the nights of a pipeline, or the epochs or slices of one run."""
    from nightgate import query

    name = _name(pipeline)
    frame = query.history(name, run=run_id, epochs=epochs, slices=slices, since=_date(since) if since else None)
    if epochs and not slices and output is Format.table and not frame.empty:
        typer.echo(query.published_table(frame))
    else:
        columns = () if epochs or slices or run_id else NIGHT_COLUMNS
        _show(frame, output, f"the database holds nothing of that for {name}", columns=columns)


@app.command()
def champion(
    pipeline: PipelineName,
    at: Annotated[str | None, typer.Option(metavar="TIME", help="Who reigned then; UTC unless it says so.")] = None,
    output: OutputFormat = Format.table,
) -> None:
    """Show the version that reigns, or reigned at a time: metrics, path, lineage."""
    from nightgate import query

    name = _name(pipeline)
    frame = query.champion(name, _moment(at) if at else None)
    _show(_absolute(frame), output, f"{name} has no champion{f' at {at}' if at else ' yet'}", vertical=True)


@app.command()
def versions(pipeline: PipelineName, output: OutputFormat = Format.table) -> None:
    """List every version: each completed candidate, held ones too."""
    from nightgate import query

    name = _name(pipeline)
    _show(_absolute(query.versions(name)), output, f"{name} has no versions yet", columns=VERSION_COLUMNS)


@app.command()
def promote(pipeline: PipelineName, version: VersionName, reason: Reason) -> None:
    """Make a version the champion by hand."""
    from nightgate import registry
    from nightgate.database import Database
    from nightgate.home import open_home

    home = open_home()
    with Database.open(home) as db:
        typer.echo(registry.promote_by_hand(db, home, _name(pipeline), version, reason=reason, by=_person()))


@app.command()
def rollback(pipeline: PipelineName, reason: Reason) -> None:
    """Bring back the champion before the current one."""
    from nightgate import registry
    from nightgate.database import Database
    from nightgate.home import open_home

    home = open_home()
    with Database.open(home) as db:
        typer.echo(registry.rollback(db, home, _name(pipeline), reason=reason, by=_person()))


@app.command()
def predict(
    pipeline: PipelineName,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT ...]", help="Else one a line from stdin.")] = None,
    output: OutputFormat = Format.table,
) -> None:
    """Classify texts with the champion, from arguments or standard input."""
    import pandas as pd

    from nightgate.registry import load_champion

    given = texts or _lines_of_stdin()
    if not given:
        raise ConfigurationError(
            "there is no text to classify", next_step="give texts as arguments or one a line on standard input"
        )
    predictions = load_champion(_name(pipeline)).predict(given)
    rows = [
        {"label": found.label, "probability": round(found.probability, 4), "text": text}
        for found, text in zip(predictions, given, strict=True)
    ]
    _show(pd.DataFrame(rows), output)


@app.command()
def serve(
    pipelines: Annotated[list[str] | None, typer.Argument(metavar="[PIPELINE ...]", help="Default: `sample`.")] = None,
) -> None:
    """Serve pipelines on their schedules, with a local Prefect server and its UI if none runs."""
    os.environ.setdefault("PREFECT_RUNNER_POLL_FREQUENCY", "2")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from nightgate.pipelines import find_pipeline, load_pipeline

    paths = [find_pipeline(reference).resolve() for reference in pipelines or ["sample"]]
    loaded = [load_pipeline(path) for path in paths]
    # A run is started by name, in a process of its own: this is where it looks names up first.
    os.environ["NIGHTGATE_PIPELINES"] = os.pathsep.join(str(path) for path in paths)
    _prepare_database()
    from deployments.serve import serve_pipelines

    def tell(url: str) -> None:
        names = ", ".join(f"{one.name} ({one.schedule.cron} {one.schedule.timezone})" for one in loaded)
        typer.echo(
            f"UI at {url}\nserving {names}\n"
            f"Start a night: Deployments > {loaded[0].name} > Run > Custom run. Ctrl-C ends."
        )

    serve_pipelines(loaded, tell)


@app.command()
def doctor(output: OutputFormat = Format.table) -> None:
    """Check versions, home, database, server, disk and device; say how to mend what is wrong."""
    import pandas as pd

    from nightgate.doctor import examine

    findings = examine()
    _show(pd.DataFrame([vars(finding) for finding in findings]), output)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


@database_app.command("upgrade")
def upgrade_database() -> None:
    """Create the metrics database or bring it to this version's revision."""
    from nightgate.database import database_url, safe_url, upgrade
    from nightgate.home import open_home

    url = database_url(open_home())
    before, after = upgrade(url)
    change = f"already at revision {after}" if before == after else f"from {before or 'blank'} to revision {after}"
    typer.echo(f"{safe_url(url)}: {change}")


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"nightgate {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point."""
    app()


def _name(pipeline: str) -> str:
    """The pipeline's name in the database: of its file if there is one, else as given (its file may be gone)."""
    from nightgate.pipelines import load_pipeline, pipeline_files

    if pipeline in pipeline_files() or pipeline.endswith(".toml"):
        return load_pipeline(pipeline).name
    return pipeline


def _absolute(frame: pd.DataFrame) -> pd.DataFrame:
    """Paths as they are on this machine; the database stores them relative to the home."""
    from nightgate.home import open_home

    home = open_home()
    return frame.assign(path=[str(home.absolute(path)) for path in frame["path"]])


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(
            f"{text!r} is not a date", next_step="write it as YYYY-MM-DD, such as 2026-01-05"
        ) from error


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(
            f"{text!r} is not a time", next_step="write it as 2026-01-05T03:15 or 2026-01-05T03:15+01:00"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _lines_of_stdin() -> list[str]:
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"standard input is not UTF-8 text: {error}",
            next_step="convert it, such as with `iconv -f cp1252 -t utf-8`",
        ) from error
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def _person() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _prepare_database() -> None:
    """The embedded SQLite database is made on first use; one on a server is migrated by its owner, on purpose."""
    from nightgate.database import database_url, upgrade
    from nightgate.home import open_home

    url = database_url(open_home())
    path = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite") and not path.exists():
        upgrade(url)


def _log_to_stderr() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("nightgate").setLevel(logging.INFO)


def _show(
    frame: pd.DataFrame, output: Format, when_empty: str = "", *, columns: Sequence[str] = (), vertical: bool = False
) -> None:
    """Print a frame to stdout; say `when_empty` on stderr where a table would have no rows."""
    text = formatted(frame, output, columns=columns, vertical=vertical)
    if text:
        typer.echo(text)
    else:
        typer.echo(when_empty, err=True)


if __name__ == "__main__":
    main()
