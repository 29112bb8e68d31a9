"""What a snapshot is made of: rows by label and by slice, and how long its texts are. For a report, side by side.

Reads the columns that it needs in batches, so that a million rows cost seconds and no memory; texts are measured, never
kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightgate.errors import SnapshotError
from nightgate.snapshots import ROWS_FILE, open_snapshot

_BATCH = 65_536
_LONGEST = 100_000
"""Characters from which on texts are all as long as this to us."""


def length_edges() -> tuple[int, ...]:
    """Characters at which a bin of the length distribution begins, and last its end: twelve bins to a power of ten."""
    return tuple(sorted({round(10 ** (step / 12)) for step in range(61)}))


@dataclass(frozen=True)
class SnapshotShares:
    snapshot_id: str
    rows: int
    labels: dict[str, int]
    """Rows by label, in the order of the pipeline's labels."""
    slices: dict[str, dict[str, int]]
    """Rows by value of each slice column, most frequent first."""
    lengths: tuple[int, ...]
    """Rows by length of the text in characters, in the bins of `length_edges`."""
    median_length: int
    long_length: int
    """95 % of the texts are no longer."""


def read_shares(folder: Path, *, all_slices: Sequence[str] | None = None) -> SnapshotShares:
    """Count the rows of all splits of the snapshot in `folder`.

    Args:
        all_slices: names of slice columns; those that the snapshot lacks are left out. None: all that it has.

    Raises:
        SnapshotError: it is not there, or cannot be read.
    """
    snapshot = open_snapshot(folder, verify=False)
    manifest = snapshot.manifest
    names = list(manifest.get("slices", [])) if all_slices is None else list(all_slices)
    counted: dict[str, Counter[str]] = {}
    lengths = np.zeros(_LONGEST + 1, dtype=np.int64)
    try:
        with pq.ParquetFile(snapshot.path / ROWS_FILE) as file:
            columns = {name: f"slice_{name}" for name in names if f"slice_{name}" in file.schema_arrow.names}
            counted = {name: Counter() for name in columns}
            for batch in _batches(file, ["text", *columns.values()]):
                characters = pc.utf8_length(batch.column("text")).to_numpy(zero_copy_only=False)
                lengths += np.bincount(np.minimum(characters, _LONGEST), minlength=_LONGEST + 1)
                for name, column in columns.items():
                    found = pc.value_counts(batch.column(column))
                    values, counts = found.field("values").to_pylist(), found.field("counts").to_pylist()
                    counted[name].update(dict(zip(values, counts, strict=True)))
    except (OSError, pa.ArrowException) as error:
        raise SnapshotError(f"{snapshot.path / ROWS_FILE} cannot be read: {error}") from error
    label_counts: dict[str, dict[str, int]] = manifest.get("label_counts", {})
    labels = {
        str(name): sum(counts.get(name, 0) for counts in label_counts.values())
        for name in manifest.get("label_names", [])
    }
    edges = length_edges()
    # The last bin takes what is longer still.
    places = np.minimum(np.searchsorted(edges, np.arange(_LONGEST + 1), side="right") - 1, len(edges) - 2)
    binned = np.bincount(np.maximum(places, 0), weights=lengths, minlength=len(edges) - 1)
    return SnapshotShares(
        snapshot_id=snapshot.id,
        rows=int(lengths.sum()),
        labels=labels,
        slices={name: dict(counts.most_common()) for name, counts in counted.items()},
        lengths=tuple(int(count) for count in binned),
        median_length=_quantile(lengths, 0.5),
        long_length=_quantile(lengths, 0.95),
    )


def _batches(file: Any, columns: list[str]) -> Iterator[Any]:
    yield from file.iter_batches(batch_size=_BATCH, columns=columns)


def _quantile(counts: np.ndarray[Any, np.dtype[np.int64]], share: float) -> int:
    """The smallest index up to which `share` of all counts lie; 0 where there are none."""
    total = int(counts.sum())
    return int(np.searchsorted(np.cumsum(counts), share * total)) if total else 0
