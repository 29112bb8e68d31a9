"""Inputs of a training: the model with a head for the pipeline's labels, and the rows as token ids."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from nightgate.config.pipeline import Pipeline
from nightgate.engine import base_model_folder, base_models
from nightgate.engine.base_models import LoadedModel
from nightgate.engine.encoding import Encoded, encode
from nightgate.errors import DataError, ModelError
from nightgate.training.continued import LabelledKeys, draw, labelled_keys, read_learnt
from nightgate.training.protocol import Phase, TrainJob
from nightgate.training.scoring import columns

log = logging.getLogger(__name__)


class Report(Protocol):
    """Callback for progress, given the fields of `Progress`."""

    def __call__(self, phase: Phase, **facts: Any) -> None: ...


@dataclass(frozen=True)
class Prepared:
    loaded: LoadedModel
    train: Encoded
    train_labels: NDArray[np.int64]
    """Class index of each row, [rows]."""
    class_weights: NDArray[np.float64] | None
    """Of each class in the training loss, [labels]; None: rows count alike."""
    learnt: LabelledKeys
    """What the line of the model has learnt after this training."""
    validation: Encoded
    validation_labels: NDArray[np.int64]


def prepare(job: TrainJob, pipeline: Pipeline, report: Report) -> Prepared:
    """Read the snapshot, load the model, tokenise.

    Raises:
        DataError: there are no training or no validation rows.
        ModelError: the base model cannot be found, loaded or used, or the version to go on from has other labels.
    """
    from nightgate.data.snapshots import open_snapshot
    from nightgate.data.training_rows import training_positions

    report("load", detail="reading the snapshot")
    snapshot = open_snapshot(job.snapshot)
    data_until = datetime.fromisoformat(job.data_until)
    places = training_positions(snapshot, pipeline, data_until)
    available = learnt = labelled_keys(snapshot, places)
    if job.start_from is not None:
        before, recipe = read_learnt(job.start_from), pipeline.training
        seed = (recipe.seed, int(data_until.timestamp()))
        drawn = draw(available, before, replay=recipe.replay, least=recipe.batch_size, seed=seed)
        places, learnt = places[drawn], before.joined(available.at(drawn))
    train_texts, train_labels = columns(snapshot.rows("train", ["text", "label"], at=places))
    validation_texts, validation_labels = columns(snapshot.rows("validation", ["text", "label"]))
    for split, labels in (("training", train_labels), ("validation", validation_labels)):
        if not len(labels):
            raise DataError(
                f"the snapshot {job.snapshot} holds no {split} rows",
                next_step="give the source more rows, or change split or data.train_window",
            )
    loaded = _load_model(job, pipeline, report)

    def tokens(texts: list[str]) -> Encoded:
        def on_chunk(done: int, total: int) -> None:
            report("load", detail="tokenising", done=done, total=total)

        return encode(loaded.tokenizer, texts, loaded.max_length, on_chunk)

    names = pipeline.data.label_names
    # Of all rows, because those of a night that goes on are few.
    weights = balanced(available.labels, len(names)) if pipeline.training.class_weight == "balanced" else None
    if weights is not None:
        shown = (f"{name!r} {weight:.3g}" for name, weight in zip(names, weights, strict=True))
        log.info("weights of the classes in the training loss: %s", ", ".join(shown))
    train, validation = tokens(train_texts), tokens(validation_texts)
    return Prepared(loaded, train, train_labels, weights, learnt, validation, validation_labels)


def balanced(labels: NDArray[np.int64], num_labels: int) -> NDArray[np.float64]:
    """Weight of each class by which all weigh the same, as in scikit-learn; 0 for a class without rows."""
    counts = np.bincount(labels, minlength=num_labels)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts, weights, 0.0)


def seed_epoch(seed: int, epoch: int, rank: int = 0) -> np.random.Generator:
    """Seed torch, numpy and random for an epoch (0: the new head) and return the generator of its row order.

    The order is the same in every process, dropout differs by rank.
    """
    mixed = int(np.random.SeedSequence([seed, epoch, *([rank] if rank else [])]).generate_state(1)[0])
    torch.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)
    return np.random.default_rng([seed, epoch])


def _load_model(job: TrainJob, pipeline: Pipeline, report: Report) -> LoadedModel:
    recipe = pipeline.training

    def on_download(what: str, done: int, total: int) -> None:
        report("load", detail=what, done=done, total=total)

    if job.start_from is not None:
        folder, named = job.start_from, "the version to go on from"
        _check_labels(folder, pipeline)
    else:
        report("load", detail=f"finding {recipe.base_model}")
        folder = base_model_folder.resolve(recipe.base_model, recipe.base_model_revision, on_download)
        named = f"base_model {recipe.base_model!r}"
    report("load", detail="loading the model")
    seed_epoch(recipe.seed, 0)
    loaded = base_models.load_classifier(
        folder,
        pipeline.data.label_names,
        named=named,
        max_length=recipe.max_length,
        dropout=None if recipe.dropout == "model" else recipe.dropout,
    )
    log.debug("%s: %s, texts cut at %d tokens", named, type(loaded.model).__name__, loaded.max_length)
    return loaded


def _check_labels(folder: Path, pipeline: Pipeline) -> None:
    own, wanted = base_models.labels_in(folder), list(pipeline.data.label_names)
    if own != wanted:
        raise ModelError(
            f"the model in {folder} has the labels {own}, the pipeline {wanted}",
            next_step="train in full: --set training.start_from=base",
        )
