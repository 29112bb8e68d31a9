"""Generated rows for the benchmark of the refresh: as long as product reviews and as compressible.

234 characters a text on average, 0.49 bytes a character by zstd: 0.39 and 0.72 for two public sets of reviews.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

LABELS = ("1", "2", "3", "4", "5")
WORDS, PHRASES, PHRASES_OF_A_TEXT = 20_000, 40_000, 7
DUPLICATES, NEAR, UNUSABLE = 0.01, 0.01, 0.002
"""Shares of exact copies, of copies in capitals, and of rows without a label."""
BATCH = 8_192


def rows(first: int, count: int, since: datetime, until: datetime) -> pa.Table:
    """Rows number `first` and following; the same numbers and times give the same rows."""
    rng = np.random.default_rng(first)
    phrases = _phrases()
    parts: list[Any] = [phrases.take(pa.array(rng.integers(0, PHRASES, count))) for _ in range(PHRASES_OF_A_TEXT)]
    picks = pc.binary_join_element_wise(*parts, ". ")
    copied = rng.random(count)
    source = pa.array(np.where(copied < DUPLICATES + NEAR, rng.permutation(count), np.arange(count)))
    texts = picks.take(source)
    near = pa.array((copied >= DUPLICATES) & (copied < DUPLICATES + NEAR))
    texts = pc.if_else(near, pc.utf8_upper(texts), texts)
    stars = pa.array(rng.integers(1, 6, count), pa.int64(), mask=rng.random(count) < UNUSABLE)
    seconds = (until - since) / timedelta(seconds=1)
    times = np.datetime64(since.replace(tzinfo=None), "us") + np.sort(rng.random(count) * seconds * 1e6).astype(
        "m8[us]"
    )
    products = pa.array(["boots", "shirts", "trousers"]).take(pa.array(rng.integers(0, 3, count)))
    ids = pa.array([f"r{number:010d}" for number in range(first, first + count)])
    columns = {"id": ids, "text": texts, "stars": stars, "product": products, "time": pa.array(times)}
    return pa.table(columns)


@cache
def _phrases() -> pa.StringArray:
    """Phrases of five words, which are as unevenly frequent as in a language."""
    rng = np.random.default_rng(0)
    letters = np.array(list("aaabcdeeeefghiiklmnnoooprrssttuuvwy"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(WORDS)])
    frequency = np.arange(1, WORDS + 1) ** -0.7
    chosen = rng.choice(words, (PHRASES, 5), p=frequency / frequency.sum())
    return pa.array([" ".join(phrase) for phrase in chosen])


def write(table: pa.Table, path: Path) -> None:
    """Write a Parquet file as sources often are: zstd, row groups of 128k rows."""
    pq.write_table(table, path, compression="zstd", row_group_size=131_072)


def copy(files: list[Path], target: Path) -> int:
    """Copy rows batch by batch, which is the least that a snapshot of them can cost; returns the bytes written."""
    schema = pq.read_schema(files[0])
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches(BATCH):
                writer.write_batch(batch, row_group_size=BATCH)
    return target.stat().st_size
