"""The command `nightgate seeds`: train with several seeds and store the spread of their scores."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from nightgate.cli.options import OutputFormat, PipelineName, say, show
from nightgate.cli.tables_as_text import Format
from nightgate.errors import ConfigurationError
from nightgate.frames.dates import date_of

if TYPE_CHECKING:
    from nightgate.analysis.seed_study import Study
    from nightgate.config.gate import Gate
    from nightgate.database.gate_schema import SeedStudy
    from nightgate.database.transactions import Database

COLUMNS = ("seed", "best_epoch", "validation_f1", "test_f1", "test_accuracy", "duration_seconds", "error")


def seeds(
    pipeline: PipelineName,
    num_seeds: Annotated[int, typer.Option("-n", "--num-seeds", min=1, max=1000, help="Number of seeds.")] = 5,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=value", help="Any field of the file, for this study only.")
    ] = None,
    night: Annotated[
        str | None, typer.Option(metavar="DATE", help="Train on the snapshot of this night. Default: the newest.")
    ] = None,
    address: Annotated[
        str,
        typer.Option(metavar="tcp://...", help="Dask scheduler whose workers share the home. Default: a local one."),
    ] = "",
    workers: Annotated[int, typer.Option(min=0, help="Local seeds at a time; 0: one per GPU, or per core.")] = 0,
    no_prefect: Annotated[bool, typer.Option("--no-prefect", help="One after the other, without Dask.")] = False,
    output: OutputFormat = Format.table,
) -> None:
    """Train one snapshot with several seeds and store the spread.

    Seeds do not wait for a slot: start it while no night runs.
    """
    from nightgate.analysis import seed_study
    from nightgate.database.transactions import Database, prepare
    from nightgate.home import open_home
    from nightgate.operations import readiness
    from nightgate.pipeline_files import load_pipeline, parse_settings

    if (no_prefect and (address or workers)) or (address and workers):
        raise ConfigurationError(
            "--no-prefect, --address and --workers exclude each other", next_step="keep one of them"
        )
    configuration = load_pipeline(pipeline, parse_settings(settings or ()))
    readiness.check_base_model(configuration)
    home = open_home()
    prepare(home)
    with Database.open(home) as db:
        study = seed_study.open_study(db, configuration, num_seeds, date_of(night) if night else None)
        if study.missing:
            _train(db, study, address, workers, no_prefect)
        else:
            say(f"every seed of study {study.study_id} has a score already: nothing was trained", err=True)
        row = seed_study.finish_study(db, study.study_id)
        found = seed_study.read_study(db, study.study_id)
    show(found, output, columns=COLUMNS)
    # On stdout JSON and CSV are followed by nothing else.
    for line in _summary(row, configuration.gate):
        say(line, err=output is not Format.table)
    if found.loc[found["seed"].isin(study.seeds), "test_f1"].isna().any():
        raise typer.Exit(1)


def _train(db: Database, study: Study, address: str, workers: int, no_prefect: bool) -> None:
    say(f"study {study.study_id} on snapshot {study.snapshot_id}, {study} to train", err=True)
    # SIGTERM as Ctrl-C: its default would not stop the training processes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if no_prefect:
        from nightgate import logs
        from nightgate.analysis import seed_runs

        logs.to_stderr()
        seed_runs.run_study(db, study)
    else:
        _train_on_dask(study, address, workers)


def _train_on_dask(study: Study, address: str, workers: int) -> None:
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from flows.seeds import dask, run_study
    from flows.server.connection import prefect_server

    with (
        dask(len(study.missing), address=address, workers=workers) as runner,
        prefect_server(say=lambda which: say(which, err=True)),
    ):
        state = run_study(study, runner)
    if not state.is_completed():
        say(f"error: {state.message}", err=True)


def _summary(study: SeedStudy, gate: Gate) -> list[str]:
    from nightgate.analysis.seed_study import LEAST_SEEDS, describe_margin

    if study.f1_mean is None:
        return ["no seed has a score"]
    lines = [f"mean F1 {study.f1_mean:.4f} of {study.num_seeds} seeds on the test rows ({study.average})"]
    if study.f1_spread is None:
        return [*lines, "the spread needs at least two seeds"]
    lines.append(f"spread {study.f1_spread:.4f} (standard deviation): {describe_margin(gate, study.f1_spread)}")
    if study.num_seeds < LEAST_SEEDS:
        lines.append(f"the gate uses a spread of {LEAST_SEEDS} seeds or more")
    return lines
