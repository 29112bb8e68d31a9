"""The command `run`: nights in this process, with Prefect or without it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightgate.cli.options import PipelineName, person, say
from nightgate.frames.dates import date_of

if TYPE_CHECKING:
    from nightgate.config.pipeline import Pipeline
    from nightgate.schedule import Night

BROKEN = {"failed", "cancelled"}
STATED_ELSEWHERE = ("verdict: ", "Beginning flow run", "Finished in state")


def run(
    pipeline: PipelineName,
    nights: Annotated[
        list[str] | None, typer.Option("--night", metavar="DATE", help="A past night; repeatable. Default: tonight.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=value", help="Any field of the file, for this run only.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Open a new run for a night that has ended.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but promote.")] = False,
    fail_on_held: Annotated[bool, typer.Option("--fail-on-held", help="Exit 3 when a candidate is held.")] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow-failed-check", metavar="NAME", help="Let this data check fail tonight; repeatable."),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why a check may fail; stored with user and time.")] = "",
    no_prefect: Annotated[bool, typer.Option("--no-prefect", help="The same steps without Prefect.")] = False,
) -> None:
    """Run a night now: refresh, fine-tune, evaluate, promote or hold."""
    from nightgate.config.checks import Allowed
    from nightgate.database.transactions import prepare
    from nightgate.home import find_home, open_home
    from nightgate.operations import readiness
    from nightgate.pipeline_files import load_pipeline, parse_settings
    from nightgate.schedule import chosen_night, tonight

    configuration = load_pipeline(pipeline, parse_settings(settings or ()))
    allowed = Allowed.named(allow or (), person(), reason)
    schedule = configuration.schedule
    chosen = [chosen_night(schedule, day) for day in dict.fromkeys(map(date_of, nights or ()))] or [tonight(schedule)]
    if find_home() is None:
        readiness.examine(configuration, None).check()  # before there is a home
    prepare(open_home())
    summary = partial(_print_summary, reference=pipeline)
    ended = {}
    if not (force or dry_run):
        ended = {night: _ended_before(configuration, night, no_prefect, summary) for night in chosen}
    statuses = [status for status in ended.values() if status]
    if left := [night for night in chosen if not ended.get(night)]:
        # SIGTERM as Ctrl-C: its default would end the process without recording it in the run's row.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        options = {"force": force, "dry_run": dry_run, "allowed": allowed}
        statuses += (_run_bare if no_prefect else _run_in_prefect)(configuration, left, options, summary)
    if not BROKEN.isdisjoint(statuses):
        raise typer.Exit(1)
    if fail_on_held and "held" in statuses:
        raise typer.Exit(3)


def _ended_before(
    configuration: Pipeline, night: Night, no_prefect: bool, summary: Callable[[str], None]
) -> str | None:
    """Print the result of a night that has ended and return its status; None if there is work to do.

    What a killed process left undone after the end is done first.
    """
    from nightgate.database.transactions import Database
    from nightgate.home import open_home
    from nightgate.night.closing import close_ended
    from nightgate.operations.reconciliation import unannounced
    from nightgate.prediction.predict import is_left, predict_configured
    from nightgate.runs.claim import ended_run

    with Database.open(open_home()) as db:
        found = ended_run(db, configuration.name, night.date)
        if found is None:
            return None
        close_ended(db, configuration.name, configuration)
        is_unannounced = found.prefect_flow_run_id and found.run_id in [one.run_id for one in unannounced(db)]
    if is_unannounced and not no_prefect:
        from flows.reconcile import end_flow_runs
        from flows.server.connection import usual_server

        with usual_server():
            end_flow_runs()
    summary(found.run_id)
    output = configuration.predict.output
    if configuration.predicts_after_nights and is_left(open_home(), configuration.name, output):
        say(f"Its prediction had been stopped: {predict_configured(configuration)}", err=True)
    if found.status == "waiting":
        say(f"This night waits for an approval, in run {found.run_id}; nothing was done.", err=True)
    else:
        hint = "nothing was done. --force opens a new run."
        say(f"This night had ended before, in run {found.run_id}; {hint}", err=True)
    return found.status


def _print_summary(run_id: str, reference: str) -> None:
    from nightgate.home import open_home
    from nightgate.reports import terminal_summary

    say(terminal_summary.as_text(open_home(), run_id, reference))


def _run_bare(
    configuration: Pipeline, nights: list[Night], options: dict[str, Any], summary: Callable[[str], None]
) -> list[str]:
    from nightgate import logs
    from nightgate.night.night import run_night

    def run_one(night: Night) -> str:
        finished = run_night(configuration, night, **options)
        summary(finished.run_id)
        return finished.status

    logs.to_stderr()
    _quiet_terminal()
    return _until_broken(run_one, nights)


def _run_in_prefect(
    configuration: Pipeline, nights: list[Night], options: dict[str, Any], summary: Callable[[str], None]
) -> list[str]:
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from flows.homes import tagged
    from flows.nightly import nightly_from_file
    from flows.server.connection import prefect_server
    from nightgate.reports import terminal_summary

    def run_one(night: Night) -> str:
        with tagged(configuration.name):
            state = nightly_from_file(configuration, night, **options, return_state=True)
        if state.is_cancelled():
            stop = KeyboardInterrupt()
            stop.add_note(state.message or "")
            raise stop
        if not state.is_completed():
            say(f"error: {state.message}", err=True)
            return "failed"
        status, run_id = terminal_summary.run_of_flow_message(state.message or "")
        summary(run_id)
        return status

    _check_ready(configuration, nights, options["force"], options["dry_run"])
    _quiet_terminal()
    with prefect_server(say=lambda which: say(which, err=True)):
        return _until_broken(run_one, nights)


def _check_ready(configuration: Pipeline, nights: list[Night], force: bool, dry_run: bool) -> None:
    """Raise where a night could only fail, before a server is started for it; its claim checks again."""
    from nightgate.database.transactions import Database
    from nightgate.home import open_home
    from nightgate.operations import readiness
    from nightgate.runs.claim import goes_on_with_snapshot

    with Database.open(open_home()) as db:
        ready = readiness.examine(configuration, db)
        for night in nights:
            ready.check(not force and goes_on_with_snapshot(db, configuration, night, dry_run=dry_run))


def _quiet_terminal() -> None:
    """Keep what the summary or the error states, and Prefect's lines about states, off the terminal."""
    from nightgate import logs

    for handler in logs.all_handlers():
        if isinstance(handler, logging.StreamHandler):
            handler.addFilter(lambda record: not record.getMessage().startswith(STATED_ELSEWHERE))


def _until_broken(run_one: Callable[[Night], str], nights: list[Night]) -> list[str]:
    """Run nights in order and return their statuses, up to the first that failed or was cancelled."""
    statuses = []
    for night in nights:
        statuses.append(run_one(night))
        if statuses[-1] in BROKEN:
            break
    return statuses
