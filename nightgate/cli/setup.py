"""Commands before the first night: init and check."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nightgate.cli.options import OutputFormat, PipelineName, say, show
from nightgate.cli.tables_as_text import Format
from nightgate.errors import NightgateError, RegistryError

if TYPE_CHECKING:
    from nightgate.config.pipeline import Pipeline


def init(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="CSV, TSV, JSON lines or Parquet; or a folder.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="Of the pipeline. Default: that of the file.")] = "",
    output: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Default: deployments/pipelines/NAME.toml, found by its name.")
    ] = None,
    text: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the text. Default: guessed.")] = "",
    label: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the label. Default: guessed.")] = "",
) -> None:
    """Write a pipeline file from data, and check it.

    Says what was guessed, and from what. Never overwrites a file.
    """
    from nightgate.engine.base_model_folder import local_folder
    from nightgate.operations import readiness
    from nightgate.operations.pipeline_checks import SECONDS
    from nightgate.pipeline_files import load_pipeline, pipeline_files
    from nightgate.setup.draft import PACKAGED_MODEL, draft, write

    drafted = draft(files, name=name, text=text, label=label)
    model = readiness.base_model(drafted.pipeline, readiness.Hub(SECONDS))
    if model.status == "problem":
        with suppress(NightgateError):
            local_folder(PACKAGED_MODEL)
            drafted = drafted.with_packaged_model(model.found)
    path = output or Path("deployments", "pipelines", f"{drafted.name}.toml")
    write(drafted, path)
    for note in drafted.notes:
        say(note)
    say(f"written: {path}\n")
    known = pipeline_files().get(drafted.name)
    reference = drafted.name if known and known.resolve() == path.resolve() else str(path)
    try:
        _show_check(load_pipeline(path), Format.table)
    except (NightgateError, typer.Exit):
        say(f"correct {path}, then: nightgate check {reference}", err=True)
        raise
    say(f"\n  next: read {path}, then: nightgate run {reference}")
    say(f"  without a GPU the first night may take hours; max_train_rows and epochs in {path} make it shorter")


def check(pipeline: PipelineName, output: OutputFormat = Format.table) -> None:
    """Say what a night would have, without training.

    Rows, splits, quarantine, data checks, F1 of simple models, and what the gate could see. Trains none of the
    pipeline's models, claims no night and changes nothing. Ends with 1 where a data check would end the night.
    """
    from nightgate.pipeline_files import load_pipeline

    _show_check(load_pipeline(pipeline), output)


def _show_check(configuration: Pipeline, output: Format) -> None:
    import pandas as pd

    from nightgate.database.transactions import Database
    from nightgate.home import existing_home
    from nightgate.operations import readiness
    from nightgate.operations.pipeline_checks import SECONDS
    from nightgate.setup.check import FAILS, Fact, check

    try:
        home = existing_home(only_read=True)
    except RegistryError:
        facts = check(configuration)
    else:
        with Database.open(home) as db:
            facts = check(configuration, db)
    hub = readiness.Hub(SECONDS)
    needs = [("base_model", readiness.base_model(configuration, hub))]
    needs += (("metrics", one) for one in readiness.own_metrics(configuration, hub))
    found = [Fact("model", name, one.status, one.found) for name, one in needs]
    frame = pd.DataFrame([vars(fact) for fact in (*facts, *found)])
    if output is Format.table:
        frame["value"] = [f"{value:,}" if isinstance(value, int) else value for value in frame["value"]]
    show(frame, output)
    for _, one in needs:
        if one.status == "problem":
            say(f"a night cannot start: {one.found}\n  next: {one.remedy}", err=True)
    if failing := [fact.name for fact in facts if fact.value == FAILS]:
        names = " --allow-failed-check ".join(failing)
        say(
            f"a night would end before it trains: {', '.join(failing)}\n  next: mend the source, or set the limits in "
            f"[data.checks]; if the data are right: nightgate run {configuration.name} --allow-failed-check {names} "
            "--reason TEXT",
            err=True,
        )
        raise typer.Exit(1)
