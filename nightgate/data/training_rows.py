"""Which rows of a snapshot are trained on, chosen by their numbers before any text is read; and what is too few."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nightgate.config.pipeline import Pipeline
from nightgate.config.values import duration
from nightgate.data.columns import Columns, take
from nightgate.data.deltas import TAKEN, Chain
from nightgate.data.rules import SPLITS, given_splits
from nightgate.data.snapshots import Snapshot, facts_of
from nightgate.errors import DataError
from nightgate.sources.source_table import Quarantined, quarantine_summary

log = logging.getLogger(__name__)


def training_rows(snapshot: Snapshot, pipeline: Pipeline, data_until: datetime) -> pd.DataFrame:
    """The train split after `train_window`, `max_train_rows` and `keep`, sorted by fingerprint.

    Raises:
        DataError: no rows are left, or rows of one class only.
    """
    return snapshot.rows("train", at=training_positions(snapshot, pipeline, data_until))


def training_positions(snapshot: Snapshot, pipeline: Pipeline, data_until: datetime) -> NDArray[np.intp]:
    """The places of these rows within the train split, ascending.

    `newest` sorts by time, then by a hash of seed and text; `random` sorts by that hash alone, so that the choice is
    the same on any machine and changes little when rows arrive.

    Raises:
        DataError: as `training_rows`.
    """
    columns = ["text_key", "label", *(["time"] if "time" in snapshot.columns else [])]
    frame = snapshot.rows("train", columns)
    if pipeline.data.train_window:
        frame = frame[frame["time"] >= window_start(pipeline, data_until)]
    limit = pipeline.training.max_train_rows
    if limit and len(frame) > limit:
        hashes = _hashed(frame["text_key"].to_numpy(), pipeline.training.seed)
        order = frame.assign(hash=hashes).sort_values("hash", kind="stable")
        if pipeline.training.keep == "newest" and "time" in frame:
            order = order.sort_values("time", ascending=False, kind="stable")
        frame = frame.loc[order.index[:limit].sort_values()]
    require_trainable(dict(Counter(frame["label"].tolist())), pipeline)
    return frame.index.to_numpy(np.intp)


def window_start(pipeline: Pipeline, data_until: datetime) -> pd.Timestamp | None:
    """The time from which on rows are trained on; None for all."""
    window = duration(pipeline.data.train_window)
    return None if window is None else pd.Timestamp(data_until - window)


def require_trainable(counts: Mapping[int, int], pipeline: Pipeline) -> None:
    """Refuse training rows of fewer than two labels.

    Args:
        counts: rows by class index.

    Raises:
        DataError: there are none, or rows of one class only.
    """
    names = pipeline.data.label_names
    present = {label: count for label, count in counts.items() if count}
    if not present:
        raise DataError(
            f"pipeline {pipeline.name}: no training rows are left within train_window {pipeline.data.train_window!r}",
            next_step="widen data.train_window, or check that the source still gets new rows",
        )
    if len(present) == 1:
        [(label, count)] = present.items()
        raise DataError(
            f"pipeline {pipeline.name}: all {count:,} training rows have the label {names[label]!r}",
            next_step="add rows of the other labels, check data.label and data.labels, or raise max_train_rows or "
            "train_window, which can also leave one label",
        )
    absent = [name for index, name in enumerate(names) if index not in present]
    if absent:
        log.warning("labels without a training row: %s", ", ".join(absent))


def require_usable(taken: int, quarantined: Sequence[Quarantined], future: int, pipeline: Pipeline) -> None:
    """Refuse fewer rows than there are labels.

    Args:
        taken: rows of the snapshot.
        future: rows of the source that are later than the night.

    Raises:
        DataError: there are fewer.
    """
    num_classes = len(pipeline.data.label_names)
    if taken >= num_classes:
        return
    if taken:
        problem = f"{taken} usable rows with different texts for {num_classes} labels"
        next_step = "add rows, or name fewer labels in data.labels"
    elif quarantined:
        problem = f"none of {len(quarantined):,} rows is usable"
        next_step = "check text, label, labels, time and split in the pipeline file against the source"
    elif future:
        problem = f"all {future:,} rows are later than the night's data limit"
        next_step = "run a later night, or check data.time and data.timezone"
    else:
        problem = "the source has no rows"
        next_step = "check data.source: the files may hold nothing but a header"
    raise DataError(f"pipeline {pipeline.name}: {problem}{quarantine_summary(quarantined)}", next_step=next_step)


def empty_split(by_split: NDArray[np.int64], rows: Columns, chain: Chain, pipeline: Pipeline) -> DataError:
    """The error for a split without rows.

    Args:
        by_split: rows of each split.
        rows: rows of the index that hold; `chain` has their texts.
    """
    counts = dict(zip(SPLITS, by_split.tolist(), strict=True))
    empty = [split for split, count in counts.items() if not count]
    found = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    message = f"pipeline {pipeline.name}: the {' and the '.join(empty)} split is empty ({found} rows)"
    if given_splits(pipeline):
        next_step = (
            "add rows of that split to the source, or remove split.column or data.source.splits to split all rows "
            "by hash"
        )
    elif pipeline.data.group:
        taken = take(rows, rows["state"] == TAKEN)
        _, first, sizes = np.unique(taken["group_key"], return_index=True, return_counts=True)
        largest = int(sizes.argmax())
        name = facts_of(chain.texts, taken["text_at"][first[[largest]]], ["group"])["group"][0].as_py()
        message += f"; {len(sizes):,} groups, the largest ({name!r}) has {sizes[largest]:,} rows"
        next_step = "group by a column with more and smaller groups, or remove data.group"
    else:
        next_step = "add rows (a few hundred are a start), or raise split.validation and split.test"
    return DataError(message, next_step=next_step)


def _hashed(keys: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    mixed = keys ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed
