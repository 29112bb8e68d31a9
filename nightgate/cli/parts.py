"""Commands that run one part of a night on its own, without Prefect: it takes seconds, and a server's start longer."""

from __future__ import annotations

from typing import Annotated

import typer

from nightgate.cli.options import PipelineName, person, say


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
    from nightgate.pipeline_files import load_pipeline

    configuration = load_pipeline(pipeline)
    allowed = Allowed.named(allow or (), person(), reason)
    prepare(open_home())
    logs.to_stderr()
    found = take_in(configuration, allowed=allowed)
    quarantined = sum(part.quarantined for part in found.parts)
    say(
        f"{configuration.name}: {found.rows_new:,} new rows, {found.rows_total:,} in all, {quarantined:,} quarantined; "
        f"snapshot {found.snapshot.id}"
    )
