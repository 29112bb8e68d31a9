"""The command `predict`: the champion at work."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nightgate.cli.options import OutputFormat, PipelineName, name_of, say, show
from nightgate.cli.tables_as_text import Format, formatted
from nightgate.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from nightgate.config.pipeline import Pipeline
    from nightgate.config.predict import Output
    from nightgate.prediction.predict import Rows

TEXT_FILES = (".txt", ".txt.gz", ".txt.zst")
"""One text a line; other files have columns."""
SHOWN = ("label", "probability", "text")


def predict(
    pipeline: PipelineName,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Default: one per line from stdin.")] = None,
    input_from: Annotated[
        str,
        typer.Option("--input", metavar="FILE|source", help="File of rows, or the source in the pipeline's [predict]."),
    ] = "",
    output_to: Annotated[
        str,
        typer.Option(
            "--output",
            metavar="FILE|ENV:TABLE",
            help=".parquet, .csv, .jsonl; or a table, behind the variable with its database's URL. "
            "Default: stdout; with --input source as in [predict].",
        ),
    ] = "",
    new_rows: Annotated[
        bool | None,
        typer.Option("--new-rows/--all-rows", help="Only rows that the output does not have, added to it; or all."),
    ] = None,
    version: Annotated[
        str, typer.Option("--version", metavar="VERSION", help="A number, `champion` or `previous`.")
    ] = "champion",
    output: OutputFormat = Format.table,
) -> None:
    """Classify texts with the champion.

    A run into a file or a table that was killed goes on when it is repeated.
    """
    if texts and input_from:
        raise ConfigurationError("both TEXT and --input say what to classify", next_step="give one of them")
    configured = _configured(pipeline) if input_from else None
    name = configured.name if configured else name_of(pipeline)
    target = _output(output_to, configured, is_default=input_from == "source")
    only_new = configured.predict.new_rows_only if configured and new_rows is None and target else bool(new_rows)
    if only_new and target is None:
        raise ConfigurationError(
            "--new-rows needs an output that tells which rows are new", next_step="name it by --output"
        )
    if configured:
        with_text = configured.predict.rows(configured.data).id is None or input_from.endswith(TEXT_FILES)
        rows = _rows(input_from, configured, target)
    else:
        with_text, rows = True, _given(texts)
    if target is None:
        _print(name, rows, version, output, with_text)
        return
    from nightgate import logs
    from nightgate.prediction.predict import predict

    logs.to_stderr()
    say(str(predict(name, rows, target, with_text=with_text, new_rows_only=only_new, version=version)))


def _configured(pipeline: str) -> Pipeline:
    from nightgate.pipeline_files import load_pipeline

    return load_pipeline(pipeline)


def _output(given: str, configured: Pipeline | None, *, is_default: bool) -> Output | None:
    from nightgate.config.predict import FORMATS, SqlTable

    if not given:
        return configured.predict.output if configured and is_default else None
    if given.endswith(FORMATS):
        return given
    if found := re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*):([^:/]+)", given):
        return SqlTable(kind="sql", url_env=found[1], table=found[2])
    raise ConfigurationError(
        f"--output {given}: neither a file of predictions nor a table",
        next_step=f"name a file that ends in {', '.join(FORMATS)}, or a table as VARIABLE:TABLE, where the environment "
        "variable holds the database's URL",
    )


def _rows(given: str, configured: Pipeline, target: Output | None) -> Rows:
    from nightgate.config.sources import FilesSource
    from nightgate.prediction.predict import configured_rows
    from nightgate.prediction.rows import rows_of_text_file

    if given == "source":
        return configured_rows(configured, target)
    if given.endswith(TEXT_FILES):
        return rows_of_text_file(Path(given))
    return configured_rows(configured, target, FilesSource(kind="files", paths=(given,)))


def _given(texts: list[str] | None) -> Rows:
    """The arguments, else the lines of standard input.

    Raises:
        ConfigurationError: there are none.
    """
    from nightgate.prediction.rows import decoded, rows_of_lines

    lines: Iterator[str] = iter(texts) if texts else decoded(sys.stdin.buffer)
    first = next(lines, None)
    if first is None:
        raise ConfigurationError(
            "there is no text to classify",
            next_step="give texts as arguments, one per line on standard input, or rows by --input",
        )

    def all_lines() -> Iterable[str]:
        yield first
        yield from lines

    return rows_of_lines(all_lines(), "argument" if texts else "stdin")


def _print(name: str, rows: Rows, version: str, output: Format, with_text: bool) -> None:
    """Predict in this process. CSV is printed a window at a time, other formats when all is known."""
    import pandas as pd

    from nightgate.database.transactions import Database
    from nightgate.home import existing_home
    from nightgate.models.classifier import Classifier
    from nightgate.prediction.predict import predictions_of
    from nightgate.prediction.rows import windows
    from nightgate.registry.champions import resolve_version

    home = existing_home(only_read=True)
    with Database.open(home) as db:
        classifier = Classifier.open(resolve_version(db, name, version).folder(home))

    def probabilities(texts: Sequence[str]) -> tuple[NDArray[np.float64], str]:
        return classifier.probabilities(texts), classifier.precision

    frames: list[pd.DataFrame] = []
    for window in windows(rows):
        found = predictions_of(window, probabilities, classifier.manifest, with_text=with_text)
        frame = found.select(sorted(found.column_names, key=lambda name: (*SHOWN, name).index(name))).to_pandas()
        if output is Format.csv:
            text = formatted(frame, output)
            typer.echo(text.partition("\n")[2] if frames else text, color=True)
            frames = [frame]
        else:
            frames.append(frame)
    if output is not Format.csv and frames:
        frame = pd.concat(frames)
        shown = [*SHOWN, *(() if with_text else ("id",)), *(("reason",) if frame["reason"].notna().any() else ())]
        show(frame, output, columns=[name for name in shown if name in frame])
