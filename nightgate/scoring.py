"""Forward passes over rows: logits in the order of the rows, always computed in float32.

Whatever precision trained a model, it is evaluated as plain `transformers` will run it for its users.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nightgate import devices, forward, prediction_cache
from nightgate.base_models import labels_of, load_trained
from nightgate.config import Pipeline
from nightgate.encoding import Encoded
from nightgate.errors import ModelError
from nightgate.files import write_whole
from nightgate.gate import Reuse
from nightgate.jobs import Progress, ScoreJob, ScoreResult
from nightgate.serving import columns_by_name
from nightgate.token_cache import encode_cached, tokenizer_hash

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Logits = NDArray[np.float32]


def logits_of(
    model: Any,
    encoded: Encoded,
    *,
    batch_size: int,
    on_batch: Callable[[int, int], None] | None = None,
) -> Logits:
    """Logits [rows, labels] in the order of `encoded`; `on_batch(rows done, rows)` is called after each batch.

    The path, packed or padded, is chosen as for training; rows are taken longest first.
    """
    chosen = forward.choose(model, encoded)
    log.debug("%s", chosen.reason)
    return forward.run(chosen, encoded, batch_size, on_batch)


def mean_cross_entropy(logits: Logits, labels: NDArray[np.int64]) -> float:
    """Mean over rows of -log softmax(logits)[label]; NaN or infinite when a logit is."""
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = wide - wide.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(shifted).sum(axis=1))
        return float((log_sum - shifted[np.arange(len(labels)), labels]).mean())


def write_predictions(path: Path, logits: Logits, labels: NDArray[np.int64]) -> Path:
    """Write `logits` and `labels` as npz, whole or not at all.

    Raises:
        StorageError: the disk is full or read-only.
    """
    buffer = io.BytesIO()
    np.savez(buffer, logits=logits.astype(np.float32), labels=labels.astype(np.int64))
    write_whole(path, buffer.getvalue())
    return path


def columns(frame: pd.DataFrame) -> tuple[list[str], NDArray[np.int64]]:
    """Texts and class indices of a snapshot's rows."""
    return frame["text"].astype(str).tolist(), frame["label"].to_numpy(dtype=np.int64)


def score_models(job: ScoreJob, on_progress: Callable[[Progress], None]) -> ScoreResult:
    """Write `<out>/<name>.npz` for each model of the job, in the order of `snapshot.rows(job.split)`.

    With golden rows `<out>/<name>.golden.npz` too, in theirs. Columns of `logits` are the pipeline's labels in its
    order, whatever order a model's own configuration has. Logits that are not finite are written like others.

    Raises:
        ModelError: a model is missing, damaged, or knows other labels.
        SnapshotError: the snapshot or the golden rows are missing or altered.
    """
    from nightgate.golden import golden_rows
    from nightgate.snapshots import open_snapshot

    pipeline = Pipeline.model_validate(job.pipeline)
    threads, why = devices.pick_threads()
    torch.set_num_threads(threads)
    device, _, _ = devices.pick("fp32")
    log.info("scoring in fp32 on %s", device)
    log.debug("%s", why)
    on_progress(Progress("load", detail="reading the snapshot"))
    sets = {"": columns(open_snapshot(job.snapshot).rows(job.split, ["text", "label"]))}
    if job.golden is not None:
        sets[".golden"] = columns(golden_rows(job.golden, pipeline.data.label_names, ["text", "label"]))
    # A golden row may be a test row as well.
    different = list(dict.fromkeys(text for texts, _ in sets.values() for text in texts))
    place = {text: row for row, text in enumerate(different)}
    written: dict[str, dict[str, Path]] = {kind: {} for kind in ("", ".golden")}
    scored: dict[str, _Scored] = {}
    for name, folder in job.models.items():
        scored[name] = _score(job, pipeline, name, folder, different, device, on_progress)
        for kind, (texts, labels) in sets.items():
            logits = scored[name].logits[[place[text] for text in texts]]
            written[kind][name] = write_predictions(job.out / f"{name}{kind}.npz", logits, labels)
    return ScoreResult(
        written=written[""],
        golden=written[".golden"],
        rows=len(different),
        max_length={name: of_model.max_length for name, of_model in scored.items()},
        reused={name: of_model.reuse.reused for name, of_model in scored.items()},
        recomputed={name: of_model.reuse.recomputed for name, of_model in scored.items()},
        differing={name: of_model.reuse.differing for name, of_model in scored.items()},
    )


class _Scored(NamedTuple):
    logits: Logits
    """[rows, labels], columns as the pipeline has its labels."""
    max_length: int
    reuse: Reuse


def _score(
    job: ScoreJob,
    pipeline: Pipeline,
    name: str,
    folder: Path,
    texts: list[str],
    device: torch.device,
    on_progress: Callable[[Progress], None],
) -> _Scored:
    on_progress(Progress("load", detail=f"loading the {name}"))
    loaded = load_trained(folder, named=f"the {name}")
    own_columns = _columns_for(pipeline.data.label_names, labels_of(loaded.model), name, folder)
    encoded = encode_cached(
        loaded.tokenizer,
        texts,
        loaded.max_length,
        _tokenising(on_progress),
        cache=job.cache,
        name=f"{pipeline.name}-{job.split}",
    )
    tokenizer = None if job.cache is None else tokenizer_hash(loaded.tokenizer)
    model = loaded.model.to(device)
    batch_size = pipeline.training.eval_batch_size

    def compute(rows: NDArray[np.int64]) -> Logits:
        began = time.monotonic()

        def on_batch(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - began, 1e-9)
            on_progress(
                Progress(
                    "evaluate",
                    detail=f"scoring the {name}",
                    done=done,
                    total=total,
                    examples_per_second=rate,
                    eta_seconds=(total - done) / rate,
                    step_seconds=batch_size / rate,
                )
            )

        some = encoded.select(rows) if len(rows) < len(encoded) else encoded
        return logits_of(model, some, batch_size=batch_size, on_batch=on_batch)[:, own_columns]

    if job.cache is None or tokenizer is None:
        return _Scored(compute(np.arange(len(texts))), loaded.max_length, Reuse(rows=len(texts)))
    scored = prediction_cache.Scored(
        folder, tokenizer, loaded.max_length, pipeline.data.label_names, devices.describe(device)
    )
    cache = prediction_cache.PredictionCache(job.cache, pipeline.name, scored.key())
    if name == "candidate":
        # Its own evidence is computed in full; what is kept of it serves the nights in which it reigns.
        logits, reuse = compute(np.arange(len(texts))), Reuse(rows=len(texts))
    else:
        logits, reuse = cache.complete(texts, compute)
    cache.keep(texts, logits)
    return _Scored(logits, loaded.max_length, reuse)


def _tokenising(on_progress: Callable[[Progress], None]) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(Progress("load", detail="tokenising", done=done, total=total))


def _columns_for(label_names: Sequence[str], own: list[str], name: str, folder: Path) -> list[int]:
    columns = columns_by_name(own, label_names)
    if columns is None:
        raise ModelError(
            f"the {name} in {folder} knows the labels {own}, the pipeline has {list(label_names)}",
            next_step="train a new version for the new labels, and promote it by hand",
        )
    return columns
