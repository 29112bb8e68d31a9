"""Score trained models on rows of a snapshot in the pipeline's precision, all models of a job in the same one."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nightgate.config.pipeline import Pipeline
from nightgate.cpu_threads import pick_threads
from nightgate.durable_files import write_whole
from nightgate.engine import devices, forward
from nightgate.engine.base_models import labels_of, load_trained
from nightgate.engine.devices import Picked
from nightgate.engine.encoding import Encoded, encode
from nightgate.errors import ModelError
from nightgate.models.classifier import Classifier
from nightgate.models.serving_check import columns_by_name
from nightgate.training.epoch_metrics import EpochMetrics
from nightgate.training.protocol import (
    PROBABILITIES,
    TEXTS,
    MetricValue,
    PredictJob,
    Progress,
    ScoreJob,
    ScoreResult,
)

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
    """Logits [rows, labels] in the order of `encoded`, packed or padded as in training, in float32.

    `on_batch(rows done, rows)` is called after each batch.
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
    """Write `logits` and `labels` as npz, atomically.

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
    """Score each model of a job and write the files of its `ScoreResult`.

    Columns of `logits` are in the order of the pipeline's labels, whatever the order in a model's configuration. Where
    one model needs float32, all are computed in it, so that a comparison has one precision.

    Raises:
        ModelError: a model is missing, damaged, or has other labels.
        SnapshotError: the snapshot or the golden rows are missing or altered.
    """
    import pandas as pd

    from nightgate.data.golden_rows import golden_rows
    from nightgate.data.snapshots import open_snapshot

    pipeline = Pipeline.model_validate(job.pipeline)
    threads, why = pick_threads()
    torch.set_num_threads(threads)
    log.debug("%s", why)
    on_progress(Progress("load", detail="reading the snapshot"))
    snapshot, wanted = open_snapshot(job.snapshot), ["text", "label"]
    places: dict[str, NDArray[np.intp] | None] = {job.split: None}
    if job.places is not None:
        places = {split: np.array(at, np.intp) for split, at in job.places.items()}
    sets = {"": columns(pd.concat([snapshot.rows(split, wanted, at=at) for split, at in places.items()]))}
    if job.golden is not None:
        sets[".golden"] = columns(golden_rows(job.golden, pipeline.data.label_names, ["text", "label"]))
    # Each text once: a golden row may be a test row as well.
    unique = list(dict.fromkeys(text for texts, _ in sets.values() for text in texts))
    index = {text: row for row, text in enumerate(unique)}
    served, served_labels = sets[".golden" if job.golden is not None else ""]
    serve = [index[text] for text in served[: job.serve]]
    scored, picked = _in_one_precision(pipeline, job, unique, serve, on_progress)
    written: dict[str, dict[str, Path]] = {kind: {} for kind in ("", ".golden", ".serve")}
    metrics: tuple[MetricValue, ...] = ()
    for name, one in scored.items():
        for kind, (texts, labels) in sets.items():
            of_rows = one.logits[[index[text] for text in texts]]
            written[kind][name] = write_predictions(job.out / f"{name}{kind}.npz", of_rows, labels)
            if name == "candidate" and not kind and pipeline.training.metrics:
                own = EpochMetrics(len(pipeline.data.label_names), job.out / "evaluate", pipeline.training.metrics)
                metrics = own.own(labels, of_rows.argmax(axis=1).astype(np.int64))
        if job.serve:
            written[".serve"][name] = write_predictions(
                job.out / f"{name}.serve.npz", one.serve, served_labels[: job.serve]
            )
    log.info("scored in %s", picked.reason)
    return ScoreResult(
        written=written[""],
        golden=written[".golden"],
        max_length={name: one.max_length for name, one in scored.items()},
        precision=picked.precision,
        serve=written[".serve"],
        metrics=metrics,
    )


def open_for_prediction(job: PredictJob, on_progress: Callable[[Progress], None]) -> Callable[[], None]:
    """Load the job's version; what is returned predicts the texts that the job's folder holds now.

    Raises:
        ModelError: the version is missing, damaged or cannot be loaded.
    """
    on_progress(Progress("load", detail="loading the version"))
    torch.set_num_threads(pick_threads()[0])
    classifier = Classifier.open(job.version)
    done = 0

    def predict() -> None:
        nonlocal done
        texts = json.loads((job.out / TEXTS).read_text(encoding="utf-8"))
        began = time.monotonic()

        def on_batch(here: int, _: int) -> None:
            rate = here / max(time.monotonic() - began, 1e-9)
            on_progress(
                Progress(
                    "evaluate",
                    detail="predicting",
                    done=done + here,
                    total=job.texts,
                    examples_per_second=rate,
                    eta_seconds=(job.texts - done - here) / rate,
                    step_seconds=job.batch_size / rate,
                )
            )

        found = classifier.probabilities(texts, job.batch_size, on_batch)
        done += len(texts)
        np.savez(job.out / PROBABILITIES, probabilities=found, precision=classifier.precision)

    return predict


class _Scored(NamedTuple):
    """A model's logits, columns in the order of the pipeline's labels."""

    logits: Logits
    serve: Logits
    """Of the texts to serve alone, in float32."""
    max_length: int
    picked: Picked


def _in_one_precision(
    pipeline: Pipeline, job: ScoreJob, texts: list[str], serve: list[int], on_progress: Callable[[Progress], None]
) -> tuple[dict[str, _Scored], Picked]:
    """All models by name, and their precision.

    Args:
        serve: places in `texts` of those to serve.
    """
    picked = devices.pick(pipeline.training.precision)
    while True:
        scored: dict[str, _Scored] = {}
        for name, folder in job.models.items():
            scored[name] = one = _score(pipeline, name, folder, texts, serve, picked, on_progress)
            if one.picked.precision != picked.precision:
                picked = one.picked
                break
        else:
            return scored, picked


def _score(
    pipeline: Pipeline,
    name: str,
    folder: Path,
    texts: list[str],
    serve: list[int],
    picked: Picked,
    on_progress: Callable[[Progress], None],
) -> _Scored:
    on_progress(Progress("load", detail=f"loading the {name}"))
    loaded = load_trained(folder, named=f"the {name}")
    own_columns = _columns_for(pipeline.data.label_names, labels_of(loaded.model), name, folder)

    def on_chunk(done: int, total: int) -> None:
        on_progress(Progress("load", detail="tokenising", done=done, total=total))

    encoded = encode(loaded.tokenizer, texts, loaded.max_length, on_chunk)
    batch_size = pipeline.training.eval_batch_size
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

    model = loaded.model.to(picked.device)
    chosen = forward.choose(model, encoded, picked)
    log.debug("%s", chosen.reason)
    logits = forward.run(chosen, encoded, batch_size, on_batch)
    if chosen.picked.precision == "fp32":
        exact = logits[serve]
    else:
        served = encode(loaded.tokenizer, [texts[place] for place in serve], loaded.max_length)
        exact = logits_of(model, served, batch_size=batch_size)
    return _Scored(logits[:, own_columns], exact[:, own_columns], loaded.max_length, chosen.picked)


def _columns_for(label_names: Sequence[str], own: list[str], name: str, folder: Path) -> list[int]:
    columns = columns_by_name(own, label_names)
    if columns is None:
        raise ModelError(
            f"the {name} in {folder} has the labels {own}, the pipeline {list(label_names)}",
            next_step="train a version with the new labels, then `nightgate promote PIPELINE VERSION --reason TEXT`",
        )
    return columns
