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

from nightgate.base_models import labels_of, load_trained
from nightgate.config import Pipeline
from nightgate.devices import pick, pick_threads
from nightgate.encoding import Encoded, encode
from nightgate.errors import ModelError
from nightgate.files import write_whole
from nightgate.jobs import Progress, ScoreJob

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Logits = NDArray[np.float32]


def logits_of(
    model: Any,
    encoded: Encoded,
    *,
    batch_size: int,
    device: torch.device,
    on_batch: Callable[[int, int], None] | None = None,
) -> Logits:
    """Logits [rows, labels] in the order of `encoded`; `on_batch(rows done, rows)` is called after each batch.

    Rows are taken by length, longest first: little padding, and a lack of memory shows at once.
    """
    if not len(encoded):
        return np.zeros((0, int(model.config.num_labels)), np.float32)
    order = np.argsort(-encoded.lengths, kind="stable")
    parts: list[torch.Tensor] = []
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            inputs = {name: values.to(device, non_blocking=True) for name, values in encoded.batch(rows).items()}
            parts.append(model(**inputs).logits.float())
            if on_batch is not None:
                on_batch(start + len(rows), len(order))
        found = torch.cat(parts).cpu().numpy()
    logits = np.empty_like(found)
    logits[order] = found
    return logits


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


def score_models(job: ScoreJob, on_progress: Callable[[Progress], None]) -> dict[str, Path]:
    """Write `<out>/<name>.npz` for each model of the job, in the order of `snapshot.rows(job.split)`.

    Columns of `logits` are the pipeline's labels in its order, whatever order a model's own configuration has.

    Raises:
        ModelError: a model is missing, damaged, or knows other labels.
        SnapshotError: the snapshot is missing or altered.
    """
    from nightgate.snapshots import open_snapshot

    pipeline = Pipeline.model_validate(job.pipeline)
    threads, why = pick_threads()
    torch.set_num_threads(threads)
    device, _, _ = pick("fp32")
    log.info("scoring in fp32 on %s with %s", device, why)
    on_progress(Progress("load", detail="reading the snapshot"))
    texts, labels = columns(open_snapshot(job.snapshot).rows(job.split, ["text", "label"]))
    written: dict[str, Path] = {}
    for name, folder in job.models.items():
        on_progress(Progress("load", detail=f"loading the {name}"))
        loaded = load_trained(folder, named=f"the {name}")
        own_columns = _columns_for(pipeline.data.label_names, labels_of(loaded.model), name, folder)
        encoded = encode(loaded.tokenizer, texts, loaded.max_length, _tokenising(on_progress))
        model = loaded.model.to(device)
        began = time.monotonic()

        def on_batch(done: int, total: int, name: str = name, began: float = began) -> None:
            rate = done / max(time.monotonic() - began, 1e-9)
            on_progress(
                Progress(
                    "evaluate",
                    detail=f"scoring the {name}",
                    done=done,
                    total=total,
                    examples_per_second=rate,
                    eta_seconds=(total - done) / rate,
                    step_seconds=pipeline.training.eval_batch_size / rate,
                )
            )

        logits = logits_of(
            model, encoded, batch_size=pipeline.training.eval_batch_size, device=device, on_batch=on_batch
        )
        written[name] = write_predictions(job.out / f"{name}.npz", logits[:, own_columns], labels)
        del model, loaded
    return written


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
