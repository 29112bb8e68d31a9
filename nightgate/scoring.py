"""Forward passes over rows: logits in the order of the rows, always computed in float32.

Whatever precision trained a model, it is evaluated as plain `transformers` will run it for its users.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    log.info("%s", chosen.reason)
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

    Columns of `logits` are the pipeline's labels in its order, whatever order a model's own configuration has.

    Raises:
        ModelError: a model is missing, damaged, or knows other labels.
        SnapshotError: the snapshot is missing or altered.
    """
    from nightgate.snapshots import open_snapshot

    pipeline = Pipeline.model_validate(job.pipeline)
    threads, why = devices.pick_threads()
    torch.set_num_threads(threads)
    device, _, _ = devices.pick("fp32")
    log.info("scoring in fp32 on %s with %s", device, why)
    on_progress(Progress("load", detail="reading the snapshot"))
    texts, labels = columns(open_snapshot(job.snapshot).rows(job.split, ["text", "label"]))
    written: dict[str, Path] = {}
    reuse: dict[str, Reuse] = {}
    for name, folder in job.models.items():
        logits, reuse[name] = _score(job, pipeline, name, folder, texts, device, on_progress)
        written[name] = write_predictions(job.out / f"{name}.npz", logits, labels)
    return ScoreResult(
        written=written,
        reused={name: of_model.reused for name, of_model in reuse.items()},
        recomputed={name: of_model.recomputed for name, of_model in reuse.items()},
        differing={name: of_model.differing for name, of_model in reuse.items()},
    )


def _score(
    job: ScoreJob,
    pipeline: Pipeline,
    name: str,
    folder: Path,
    texts: list[str],
    device: torch.device,
    on_progress: Callable[[Progress], None],
) -> tuple[Logits, Reuse]:
    """Logits [rows, labels], columns as the pipeline has its labels."""
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
        return compute(np.arange(len(texts))), Reuse(rows=len(texts))
    scored = prediction_cache.Scored(
        folder, tokenizer, loaded.max_length, pipeline.data.label_names, devices.describe(device)
    )
    cache = prediction_cache.PredictionCache(job.cache, pipeline.name, scored.key())
    if name == "champion":
        logits, reuse = cache.complete(texts, compute)
    else:
        # The candidate's own evidence is computed in full; what is kept of it serves the nights in which it reigns.
        logits, reuse = compute(np.arange(len(texts))), Reuse(rows=len(texts))
    cache.keep(texts, logits)
    return logits, reuse


def _tokenising(on_progress: Callable[[Progress], None]) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(Progress("load", detail="tokenising", done=done, total=total))


def _columns_for(label_names: Sequence[str], own: list[str], name: str, folder: Path) -> list[int]:
    if own == [f"LABEL_{index}" for index in range(len(label_names))]:
        # A folder that carries no names: by position.
        return list(range(len(label_names)))
    if sorted(own) != sorted(label_names):
        raise ModelError(
            f"the {name} in {folder} knows the labels {own}, the pipeline has {list(label_names)}",
            next_step="train a new version for the new labels, and promote it by hand",
        )
    return [own.index(label) for label in label_names]
