"""Commands before the first night: init and check."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from nightgate.cli.options import OutputFormat, PipelineName, say, show
from nightgate.cli.tables_as_text import Format

if TYPE_CHECKING:
    from nightgate.config.pipeline import Pipeline


def check(pipeline: PipelineName, output: OutputFormat = Format.table) -> None:
    """Say what a night would have: rows, splits, quarantine, data checks, F1 of simple models, what the gate could see.

    Trains none of the pipeline's models, claims no night and changes nothing. Ends with 1 where a data check would end
    the night.
    """
    from nightgate.pipeline_files import load_pipeline

    _show_check(load_pipeline(pipeline), output)


def _show_check(configuration: Pipeline, output: Format) -> None:
    import pandas as pd

    from nightgate.database.transactions import Database
    from nightgate.errors import RegistryError
    from nightgate.home import existing_home
    from nightgate.setup.check import FAILS, check

    try:
        home = existing_home(only_read=True)
    except RegistryError:
        facts = check(configuration)
    else:
        with Database.open(home) as db:
            facts = check(configuration, db)
    frame = pd.DataFrame([vars(fact) for fact in facts])
    if output is Format.table:
        frame["value"] = [f"{value:,}" if isinstance(value, int) else value for value in frame["value"]]
    show(frame, output)
    if failing := [fact.name for fact in facts if fact.value == FAILS]:
        allowed = " ".join(f"--allow-failed-check {name}" for name in failing)
        say(f"a night would end before it trains: {', '.join(failing)}", err=True)
        say(
            f"  next: mend the source, or set its limits in [data.checks]; if the data are right: "
            f"nightgate run {configuration.name} {allowed} --reason TEXT",
            err=True,
        )
        raise typer.Exit(1)
