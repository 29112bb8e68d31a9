"""A training that goes on from a version: which rows it learns, by which recipe, and what its line has learnt then.

    learnt = read_learnt(version)                                   # of the version that it goes on from
    at = draw(rows, learnt, replay=1.0, least=16, seed=(42, 19723))  # places of the new rows and of old ones
    recipe = continued_recipe(pipeline.training)                    # one pass at a tenth of the rate

Every version has the keys and labels of all rows that it and the versions it goes on from were trained on, in a file of
its own: neither their files nor their snapshots are needed to know them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nightgate.config.training import Training
from nightgate.errors import ModelError, first_line, storage_errors
from nightgate.models.version_folder import LEARNT_FILE

if TYPE_CHECKING:
    from nightgate.data.snapshots import Snapshot

_ON_DISK = pa.schema([("text_key", pa.uint64()), ("label", pa.int32()), ("time", pa.timestamp("us", tz="UTC"))])

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class LabelledKeys:
    """Rows as the keys of their texts with their class indices: `text_key` and `label` of a snapshot.

    A text that was learnt with several labels is there with each, the newest last.
    """

    keys: NDArray[np.uint64]
    labels: NDArray[np.int64]
    times: NDArray[np.int64] | None = None
    """In microseconds; None where rows have none."""

    def __len__(self) -> int:
        return len(self.keys)

    def at(self, places: NDArray[np.intp]) -> LabelledKeys:
        return LabelledKeys(self.keys[places], self.labels[places], None if self.times is None else self.times[places])

    def within(self, others: LabelledKeys) -> Mask:
        """Which rows the others have with the same label, their newest, shape [rows]."""
        if not len(others):
            return np.zeros(len(self), bool)
        order = np.argsort(others.keys, kind="stable")
        at = order[np.maximum(np.searchsorted(others.keys, self.keys, side="right", sorter=order) - 1, 0)]
        found: Mask = (others.keys[at] == self.keys) & (others.labels[at] == self.labels)
        return found

    def joined(self, newer: LabelledKeys) -> LabelledKeys:
        """The rows of both; one that was corrected stays with its old label, too, which `lost` goes on counting."""
        added = newer.at(np.flatnonzero(~newer.within(self)))
        times = None if self.times is None or added.times is None else np.concatenate([self.times, added.times])
        return LabelledKeys(np.concatenate([self.keys, added.keys]), np.concatenate([self.labels, added.labels]), times)


def draw(
    available: LabelledKeys, learnt: LabelledKeys, *, replay: float, least: int, seed: Sequence[int]
) -> NDArray[np.intp]:
    """Places of the rows to learn among those that are available, ascending: all new ones and a sample of old ones.

    Args:
        available: the rows that a full training would learn. A row is old if it was learnt with this label.
        replay: old rows for each new one, drawn uniformly.
        least: rows to learn, new or old, where there are so many: those of one step.
        seed: the same seed and rows give the same places.
    """
    is_old = available.within(learnt)
    new, old = np.flatnonzero(~is_old), np.flatnonzero(is_old)
    num_old = min(len(old), max(round(replay * len(new)), least - len(new)))
    drawn = np.random.default_rng(seed).choice(old, num_old, replace=False, shuffle=False)
    return np.sort(np.concatenate([new, drawn]))


def continued_recipe(training: Training) -> Training:
    """One pass at a fraction of the rate, whose schedule starts anew; nothing is chosen on validation."""
    return training.model_copy(
        update={
            "epochs": 1,
            "learning_rate": training.learning_rate * training.continued_rate,
            "early_stopping_patience": 0,
        }
    )


def labelled_keys(snapshot: Snapshot, places: NDArray[np.intp] | None = None) -> LabelledKeys:
    """The training rows of a snapshot, or those at these places among them.

    Raises:
        SnapshotError: a file cannot be read.
    """
    with_time = ["time"] if "time" in snapshot.columns else []
    frame = snapshot.rows("train", ["text_key", "label", *with_time], at=places)
    times = frame["time"].to_numpy("datetime64[us]").astype(np.int64) if with_time else None
    return LabelledKeys(frame["text_key"].to_numpy(), frame["label"].to_numpy(np.int64), times)


def lost(learnt: LabelledKeys, held: LabelledKeys) -> int:
    """Rows learnt that are not held any more, or with another label, also if that was learnt since.

    Those that are older than any row held don't count: they left a source that keeps its newest rows only.
    """
    gone = ~learnt.within(held)
    if learnt.times is not None and held.times is not None and len(held):
        gone &= learnt.times >= held.times.min()
    return int(np.count_nonzero(gone))


def write_learnt(folder: Path, learnt: LabelledKeys) -> None:
    """Write what a line has learnt into the folder of its newest model.

    Raises:
        StorageError: the disk is full or read-only.
    """
    rows = learnt.at(np.argsort(learnt.keys, kind="stable"))
    times = pa.nulls(len(rows)) if rows.times is None else rows.times
    table = pa.table({"text_key": rows.keys, "label": rows.labels, "time": times}).cast(_ON_DISK)
    with storage_errors(folder):
        pq.write_table(table, folder / LEARNT_FILE, compression="zstd")


def read_learnt(folder: Path) -> LabelledKeys:
    """What the line of the version in this folder has learnt.

    Raises:
        ModelError: the file is missing, as in a version of an earlier release, or damaged.
    """
    path = folder / LEARNT_FILE
    try:
        table = pq.read_table(path)
        times = None if table["time"].null_count else table["time"].cast(pa.int64()).to_numpy()
        return LabelledKeys(table["text_key"].to_numpy(), table["label"].to_numpy().astype(np.int64), times)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ModelError(
            f"{path} does not say which rows the model has learnt: {first_line(error)}",
            next_step="train in full once: nightgate run PIPELINE --set training.start_from=base",
        ) from error
