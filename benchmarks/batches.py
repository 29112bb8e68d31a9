"""Which rows a round takes: batches that together are as long, and as padded, as an average batch of the whole epoch.

A round has two steps, because nine rounds of five variants must end within minutes, and the cost of a random batch
varies by a fifth. Of many draws the rounds take those whose tokens and padded tokens are closest to the epoch's means,
which favours no side: what is left to vary from round to round is the machine.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.workload import BATCH, Rows, Workload

DRAWS = 20_000


def rounds(workload: Workload, grouped: bool, count: int, steps: int, seed: int) -> list[list[Rows]]:
    """`count` rounds of `steps` batches each; every process that asks with the same arguments gets the same.

    Args:
        grouped: by length, in the order that the Trainer's own sampler makes; otherwise the order is random.
    """
    lengths = workload.lengths
    rng = np.random.default_rng([seed, steps])
    order = rng.permutation(len(lengths))
    if grouped:
        generator = torch.Generator().manual_seed(seed)
        order = np.array(list(LengthGroupedSampler(BATCH, lengths=lengths.tolist(), generator=generator)))
    taken = order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)
    costs = np.stack([lengths[taken].sum(axis=1), padded_tokens(lengths[taken])], axis=1).astype(float)
    drawn = rng.integers(0, len(taken), (DRAWS, steps))
    distance = np.abs((costs / costs.mean(axis=0))[drawn].mean(axis=1) - 1).max(axis=1)
    return [[taken[batch] for batch in batches] for batches in drawn[np.argsort(distance)[:count]]]


def padded_tokens(lengths: Rows) -> Rows:
    """Tokens of each batch [batches, rows] when all its rows are as long as its longest."""
    found: Rows = lengths.max(axis=1) * lengths.shape[1]
    return found
