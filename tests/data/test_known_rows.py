"""Rows that are read again are found as often as the index has them, however many batches they come in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from nightgate.data.columns import INDEX
from nightgate.data.deltas import Chain, new_delta
from nightgate.data.reading import KnownRows

PARTS = {1, 2}


@pytest.mark.parametrize("num_batches", [1, 3, 40])
def test_each_row_of_the_index_is_found_once(num_batches: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(num_batches)
    # Some facts of one row, some of several, in parts that are read again and in one that is not.
    index = {
        "facts": rng.choice(rng.integers(1, 2**63, 900, np.uint64), 2_000),
        "part": rng.integers(0, 3, 2_000).astype(np.int32),
    }
    chain = Chain()
    for rows in np.array_split(np.arange(2_000), 2):
        with new_delta(tmp_path, len(chain.deltas) + 1, pa.schema([("text", pa.string())])) as draft:
            columns = {name: np.zeros(len(rows), kind) for name, kind in INDEX.items()}
            draft.finish(chain, 1, columns | {name: column[rows] for name, column in index.items()}, np.empty(0))
        assert draft.delta is not None
        chain = Chain((*chain.deltas, draft.delta))
    read = rng.permutation(np.concatenate([index["facts"], index["facts"][:500], rng.integers(1, 9, 50, np.uint64)]))
    with chain.rows() as stored:
        known, found = KnownRows(stored, PARTS), []
        for batch in np.array_split(read, num_batches):
            found.append(known.find(batch, 2))
        missing, moved, part = known.missing(), known.moved(), stored["part"]

    of_parts = np.isin(index["part"], list(PARTS))
    left = {fact: int((index["facts"][of_parts] == fact).sum()) for fact in read.tolist()}
    expected = []
    for fact in read.tolist():
        expected.append(left[fact] > 0)
        left[fact] -= expected[-1]
    assert np.concatenate(found).tolist() == expected
    assert of_parts.sum() - missing.sum() == sum(expected)
    assert not missing[~of_parts].any()
    # Rows that were found in another part are in that one now.
    assert moved.tolist() == (of_parts & ~missing & (index["part"] == 1)).tolist()
    assert (part == np.where(moved, 2, index["part"])).all()
