"""Predict rows with one version: read, predict in windows, write. What `nightgate predict` and nights call.

    predict(pipeline, rows, output)      # -> "4,210 rows by version 3 to predictions.parquet"

A run is resumed by the same call. Its windows are kept in home/predictions/ by their content until all are written
out, at once: a file is renamed when it is whole, a table is written in one transaction. So a killed run leaves the
output as it was, and repeats at most one window.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nightgate import locks
from nightgate.config.pipeline import Pipeline
from nightgate.config.predict import Output, SqlTable, reads
from nightgate.config.sources import Source
from nightgate.data.split_memory import hashes_of
from nightgate.data.tip import kept_out
from nightgate.database.transactions import Database
from nightgate.durable_files import replacing, user_path
from nightgate.errors import ConfigurationError, storage_errors
from nightgate.home import Home, existing_home
from nightgate.models.version_folder import read_manifest
from nightgate.prediction.files import PredictionFile
from nightgate.prediction.rows import KEYS, PRECISION, keys_of, rows_of_source, windows
from nightgate.registry import versions
from nightgate.registry.champions import resolve_version
from nightgate.schedule import tonight
from nightgate.training.predicting import Probabilities, predictor
from nightgate.training.protocol import PredictJob, Progress

log = logging.getLogger(__name__)

LARGEST = np.uint64(2**64 - 1)
Rows = Iterable[pa.Table]
"""As `nightgate.prediction.rows` makes them."""


@dataclass(frozen=True)
class Predicted:
    """What a run has written."""

    version: int
    rows: int
    without_text: int
    """Of these rows: they have a reason and no prediction."""
    known: int
    """Rows that the output had already; they were not predicted again."""
    output: str

    def __str__(self) -> str:
        text = f"{self.rows:,} rows by version {self.version} to {self.output}"
        text += f", {self.without_text:,} of them without a prediction" if self.without_text else ""
        return text + (f"; {self.known:,} were there already" if self.known else "")


def predict_configured(pipeline: Pipeline, *, all_rows: bool = False) -> Predicted | None:
    """The rows of `[predict] source`, as the night does it; None, and nothing is read, while there is no champion.

    Args:
        all_rows: also where the file asks for new ones only.

    Raises:
        ConfigurationError: the pipeline file has no `[predict]`.
        NightgateError: as `predict`.
    """
    section = pipeline.predict
    if section.source is None or section.output is None:
        raise ConfigurationError(
            f"the file of {pipeline.name} does not say what to predict",
            next_step="write source and output in its section [predict]",
        )
    with Database.open(existing_home()) as db:
        if versions.champion(db, pipeline.name) is None:
            log.info("nothing is predicted: %s has no champion yet", pipeline.name)
            return None
    return predict(
        pipeline.name,
        configured_rows(pipeline, section.output),
        section.output,
        with_text=section.rows(pipeline.data).id is None,
        new_rows_only=section.new_rows_only and not all_rows,
    )


def configured_rows(pipeline: Pipeline, output: Output | None = None, source: Source | None = None) -> Rows:
    """The rows of a source, by default that of `[predict]`, else of `[data]`; nothing is read yet.

    Args:
        output: where their predictions go, if they are kept.

    Raises:
        ConfigurationError: one of the sources reads the output too, whose predictions would become rows.
    """
    sources = {"what is predicted": pipeline.predict.rows(pipeline.data, source).source, "[data]": pipeline.data.source}
    for name, one in sources.items():
        if output is not None and reads(one, output):
            raise ConfigurationError(
                f"{getattr(output, 'table', output)} is to hold predictions, and the source of {name} reads it: they "
                "would become rows",
                next_step="name another output, or a source without it; a path with * passes over names that begin "
                "with _",
            )
    forgotten = kept_out(existing_home(only_read=True).snapshots / pipeline.name)
    return rows_of_source(pipeline.predict.rows(pipeline.data, source), tonight(pipeline.schedule), forgotten)


def predict(
    pipeline: str,
    rows: Rows,
    output: Output,
    *,
    with_text: bool = False,
    new_rows_only: bool = False,
    version: str = "champion",
    on_progress: Callable[[Progress], None] | None = None,
) -> Predicted:
    """Predict rows with one version in a child process, and write all predictions or, on failure, none.

    Args:
        with_text: whether the output has the texts, as is needed where rows have no ids.
        new_rows_only: leave out rows that the output has, whichever version predicted them, and add the others. They
            are found by 8 bytes of memory for each row that it has; without this, memory does not grow with rows.
        version: as for `resolve_version`; a promotion meanwhile changes nothing.

    Raises:
        RegistryError, ModelError: no such version, or it is damaged.
        DataError: rows cannot be read, or the output cannot be used.
        TrainingError: the process that predicts died or hangs.
        StorageError: the disk is full, read-only or forbidden.
    """
    home = existing_home()
    scratch, who = _scratch(home, pipeline, output), f"a prediction of {pipeline}"
    with locks.hold(home, _lock(scratch), holder=who, on_wait=log.info), ExitStack() as stack:
        with Database.open(home) as db:
            folder = resolve_version(db, pipeline, version).folder(home)
        manifest = read_manifest(folder)
        target = _open(output, schema_of(manifest["label_names"], with_text=with_text), pipeline)
        target.check(adds=new_rows_only)
        with storage_errors(scratch):
            try:
                known = _spool(rows, target, scratch, new_rows_only)
                parts = _parts(scratch, manifest, target.schema)
                left = {rows: part for rows, part in parts.items() if not part.exists()}
                texts = sum(pq.read_metadata(rows).num_rows for rows in left)
                batch_size = int(manifest["configuration"]["training"]["eval_batch_size"])
                if left:
                    job = PredictJob(folder, scratch, batch_size, texts)
                    score = stack.enter_context(predictor(job, on_progress=on_progress))
                while left:
                    for window, part in left.items():
                        predicted = predictions_of(pq.read_table(window), score, manifest, with_text=with_text)
                        with replacing(part) as draft:
                            pq.write_table(predicted, draft)
                    # Of a killed run, which another machine may have had.
                    left = _in_another_precision(parts, of=set(left))
                written = Counts()
                if parts or not known:
                    target.write(written.counted(map(pq.read_table, parts.values())), adds=new_rows_only)
            finally:
                for window in scratch.glob("*.rows"):
                    window.unlink()
            shutil.rmtree(scratch)
    return Predicted(manifest["version"], written.rows, written.without_text, known, target.name)


def is_left(home: Home, pipeline: str, output: Output | None = None) -> bool:
    """Whether a prediction to this output, by default to any, has ended without it: killed, or by an error."""
    of_output = "*" if output is None else _scratch(home, pipeline, output).name
    begun = (home.predictions / pipeline).glob(of_output)
    return any(not locks.queue(home, _lock(scratch)) for scratch in begun)


def _scratch(home: Home, pipeline: str, output: Output) -> Path:
    """Where the windows of a prediction are until its output is written."""
    place = repr(output) if isinstance(output, SqlTable) else str(user_path(output).absolute())
    return home.predictions / pipeline / hashlib.sha256(place.encode()).hexdigest()[:16]


def _lock(scratch: Path) -> str:
    """Of the output, whichever pipeline writes it: one that takes hours, or has endless input, holds up no other."""
    return f"predict-{scratch.name}"


class Counts:
    """Counts the rows of tables that pass."""

    rows = without_text = 0

    def counted(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            self.rows += table.num_rows
            self.without_text += table.column("label").null_count
            yield table


def schema_of(label_names: Sequence[str], *, with_text: bool) -> pa.Schema:
    """The columns of predictions. origin: file and line, or the like. reason: why there is no prediction."""
    text = [("text", pa.string())] if with_text else []
    return pa.schema(
        [
            *(
                ("origin", pa.string()),
                ("id", pa.string()),
                *text,
                ("label", pa.string()),
                ("probability", pa.float64()),
            ),
            *(("reason", pa.string()), ("pipeline", pa.string()), ("model_version", pa.int64())),
            (PRECISION, pa.string()),
            ("predicted_at", pa.timestamp("us", "UTC")),
            *((f"probability_{name}", pa.float64()) for name in label_names),
        ]
    )


def predictions_of(
    window: pa.Table, probabilities: Probabilities, manifest: dict[str, Any], *, with_text: bool
) -> pa.Table:
    """A prediction for each row of a window, all by one version; those without a text are null."""
    texts = window.column("text").to_pylist()
    unique = list(dict.fromkeys(text for text in texts if text))
    place = {text: number for number, text in enumerate(unique)}
    # A row without a text takes the last one, which is no number.
    found, precision = np.full((len(unique) + 1, len(manifest["label_names"])), np.nan), ""
    if unique:
        found[:-1], precision = probabilities(unique)
    shares = found[[place.get(text, -1) for text in texts]]
    schema = schema_of(manifest["label_names"], with_text=with_text)
    has_text = pa.array([text is not None for text in texts])
    best = pa.array(np.nan_to_num(shares).argmax(axis=1))
    columns = {
        **{name: window.column(name) for name in ("origin", "id", "text", "reason")},
        "label": pa.compute.if_else(has_text, pa.array(manifest["label_names"], pa.string()).take(best), None),
        "probability": _or_null(shares.max(axis=1)),
        "pipeline": pa.array([manifest["pipeline"]] * len(texts), pa.string()),
        "model_version": pa.array([manifest["version"]] * len(texts), pa.int64()),
        PRECISION: pa.compute.if_else(has_text, precision, None),
        "predicted_at": pa.array([datetime.now(UTC)] * len(texts), pa.timestamp("us", "UTC")),
        **{f"probability_{name}": _or_null(shares[:, at]) for at, name in enumerate(manifest["label_names"])},
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _or_null(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values, from_pandas=True)


def _open(output: Output, schema: pa.Schema, pipeline: str) -> Any:
    if isinstance(output, SqlTable):
        # SQLAlchemy's dialects are not needed for files.
        from nightgate.prediction.sql import PredictionTable

        return PredictionTable(output, schema, pipeline)
    return PredictionFile(output, schema, pipeline)


def _spool(rows: Rows, target: Any, scratch: Path, new_rows_only: bool) -> int:
    """Write the rows to predict to disk: a database is not kept waiting, and all can be read before work starts.

    Returns how many rows the output has already.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    for left in [*scratch.glob("*.rows"), *scratch.glob(".*.tmp")]:
        left.unlink()
    # Never empty, so that every key has a place in it.
    held = np.unique(np.concatenate([[LARGEST], *(map(hashes_of, target.held()) if new_rows_only else ())]))
    known = 0

    def is_held(rows: Iterable[Sequence[str | None]]) -> NDArray[np.bool_]:
        keys = hashes_of(keys_of(rows))
        return np.asarray(held[np.searchsorted(held, keys)] == keys)

    def new_rows() -> Iterator[pa.Table]:
        nonlocal known
        for table in rows:
            found = list(zip(*(table.column(name).to_pylist() for name in KEYS), strict=True))
            # A text that was emptied since keeps its prediction.
            had_text = is_held((origin, row_id, None) for origin, row_id, _ in found)
            is_known = is_held(found) | had_text & np.array([reason is not None for *_, reason in found], bool)
            known += int(is_known.sum())
            yield table.filter(pa.array(~is_known))

    for number, window in enumerate(windows(new_rows() if new_rows_only else rows)):
        pq.write_table(window, scratch / f"{number:09}.rows")
    return known


def _in_another_precision(parts: dict[Path, Path], *, of: set[Path]) -> dict[Path, Path]:
    """The windows whose predictions have another precision than those of the windows `of`."""
    found = {
        window: set(pq.read_table(part, columns=[PRECISION])[PRECISION].to_pylist()) for window, part in parts.items()
    }
    wanted = {None}.union(*(found[window] for window in of))
    return {window: part for window, part in parts.items() if len(wanted) > 1 and not found[window] <= wanted}


def _parts(scratch: Path, manifest: dict[str, Any], schema: pa.Schema) -> dict[Path, Path]:
    """For each window of rows the file of its predictions, named by all that they depend on."""
    parts = {}
    for window in sorted(scratch.glob("*.rows")):
        content = [manifest["seal"], schema.names, pq.read_table(window).to_pydict()]
        parts[window] = scratch / f"{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]}.parquet"
    return parts
