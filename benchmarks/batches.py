"""Which rows a round takes: batches that together are as long, and as padded, as an average batch of the whole epoch.

A round has two or three steps, because nine rounds of seven variants must end within minutes, and the cost of a random
batch varies by a fifth. Drawing rounds whose tokens and padded tokens are within 2 % of the epoch's means takes that
noise out without favouring a side: what is left to vary from round to round is the machine.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from benchmarks.workload import BATCH, Rows, Workload

TOLERANCE = 0.02
CANDIDATES = 20_000

Order = Literal["random", "grouped"]


def rounds(workload: Workload, table: str, order: Order, count: int, steps: int, seed: int) -> list[list[Rows]]:
    """`count` rounds of `steps` batches each; every process that asks with the same arguments gets the same.

    'random' is a random order of all rows of the table, 'grouped' the order that the Trainer's own sampler makes when
    it groups by length.
    """
    first, last = workload.tables[table]
    lengths = workload.lengths[first:last]
    rng = np.random.default_rng([seed, steps])
    taken = _grouped(lengths, seed) if order == "grouped" else rng.permutation(len(lengths))
    taken = taken[: len(taken) // BATCH * BATCH].reshape(-1, BATCH)
    chosen = _representative(lengths[taken], count, steps, rng)
    return [[first + taken[batch] for batch in batches] for batches in chosen]


def padded_tokens(lengths: Rows) -> Rows:
    """Tokens of each batch [batches, rows] when all its rows are as long as its longest."""
    found: Rows = lengths.max(axis=1) * lengths.shape[1]
    return found


def _representative(lengths: Rows, count: int, steps: int, rng: np.random.Generator) -> Rows:
    """Numbers of batches, [count, steps]."""
    costs = np.stack([lengths.sum(axis=1), padded_tokens(lengths)], axis=1).astype(float)
    relative = costs / costs.mean(axis=0)
    drawn = rng.integers(0, len(lengths), (CANDIDATES, steps))
    distance = np.abs(relative[drawn].mean(axis=1) - 1).max(axis=1)
    close = np.flatnonzero(distance <= TOLERANCE)
    if len(close) < count:
        close = np.argsort(distance)[:count]
    return drawn[close[:count]]


def _grouped(lengths: Rows, seed: int) -> Rows:
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    generator = torch.Generator().manual_seed(seed)
    return np.array(list(LengthGroupedSampler(BATCH, lengths=lengths.tolist(), generator=generator)), dtype=np.int64)
