"""Commands that run one part of a night on its own, without Prefect: it takes seconds, and a server's start longer."""

from __future__ import annotations

from typing import Annotated

import typer

from nightgate.cli.options import OutputFormat, PipelineName, person, say, show
from nightgate.cli.tables_as_text import Format

# By importance: a table shows those that fit. JSON and CSV have every column.
EVALUATION_COLUMNS = (
    *("model_version", "role", "rows", "f1", "alarm", "reason", "f1_ci_low", "f1_ci_high"),
    *("promotion_f1", "min_f1", "accuracy", "rows_from", "rows_to"),
)


def refresh(
    pipeline: PipelineName,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow-failed-check", metavar="NAME", help="Let this data check fail; repeatable."),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why a check may fail; stored with user and time.")] = "",
) -> None:
    """Take in what is new in the source, without training."""
    from nightgate import logs
    from nightgate.config.checks import Allowed
    from nightgate.database.transactions import prepare
    from nightgate.home import open_home
    from nightgate.night.refresh import refresh as take_in
    from nightgate.operations import readiness
    from nightgate.pipeline_files import load_pipeline

    configuration = load_pipeline(pipeline)
    allowed = Allowed.named(allow or (), person(), reason)
    readiness.check_source(configuration)  # before there is a home
    prepare(open_home())
    logs.to_stderr()
    found = take_in(configuration, allowed=allowed)
    quarantined = sum(part.quarantined for part in found.parts)
    say(
        f"{configuration.name}: {found.rows_new:,} new rows, {found.rows_total:,} in all, {quarantined:,} quarantined; "
        f"snapshot {found.snapshot.id}"
    )


def evaluate(pipeline: PipelineName, output: OutputFormat = Format.table) -> None:
    """Evaluate the champion on newer labelled rows.

    Those of the newest snapshot that came since it was chosen: `nightgate refresh` takes in rows.
    """
    from nightgate import logs
    from nightgate.database.transactions import Database
    from nightgate.frames.champions import evaluations
    from nightgate.home import existing_home
    from nightgate.night.champion_evaluation import evaluate_newest
    from nightgate.pipeline_files import load_pipeline

    configuration = load_pipeline(pipeline)
    name = configuration.name
    logs.to_stderr()
    with Database.open(existing_home()) as db:
        found = evaluate_newest(db, configuration)
    frame = evaluations(name, found[0].snapshot_id if found else "")
    frame = frame[frame["model_version"].isin([one.model_version for one in found])]
    nothing = f"{name} has no champion yet\n  next: nightgate run {name}"
    show(frame, output, nothing, columns=EVALUATION_COLUMNS)
