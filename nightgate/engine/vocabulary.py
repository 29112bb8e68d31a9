"""Train with the word embeddings that the data uses, about a fifth of a multilingual vocabulary, and export all.

vocabulary, reason = trim(model, np.unique(ids))
ids = vocabulary.remap(ids)
...
with vocabulary.restored():
    model.save_pretrained(folder)   # stock configuration, stock tokenizer, full vocabulary
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LAST_PADDING_ID = 1000
"""Rows up to the padding's keep their ids; a table with a greater padding id is not trimmed."""


class TrimmedVocabulary:
    """A word-embedding module with the rows `kept`, and the original table for the export; made by `trim`.

    The model's configuration keeps the full size.
    """

    def __init__(self, module: nn.Embedding, kept: NDArray[np.int64]) -> None:
        self.kept = kept
        """Original ids of the rows, sorted, int64 [kept]."""
        self.table = module.weight.detach().cpu()
        """The original rows, [vocabulary, width], on the CPU."""
        self._module = module
        self._index = torch.from_numpy(kept)
        self._new_id = np.full(len(self.table), -1, dtype=np.int32)
        self._new_id[kept] = np.arange(len(kept), dtype=np.int32)
        rows = module.weight.detach()[self._index.to(module.weight.device)]
        self._set_weight(nn.Parameter(rows, requires_grad=module.weight.requires_grad))

    def remap(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Rows of the trimmed table for original ids, all of which were kept; any shape."""
        rows: NDArray[np.int32] = self._new_id[ids]
        assert rows.min(initial=0) >= 0, "an id whose row was not kept"
        return rows

    def full_table(self, decay: float = 1.0) -> Tensor:
        """All rows, [vocabulary, width], on the CPU: kept ones as trained, the others times `decay` (exact at 1)."""
        table = self.table.clone() if decay == 1.0 else self.table * decay
        return table.index_copy_(0, self._index, self._module.weight.detach().to(table))

    @contextmanager
    def restored(self, decay: float = 1.0) -> Iterator[None]:
        """Give the model its full table within the block, and the same trimmed parameter after it."""
        trimmed = self._module.weight
        table = self.full_table(decay).to(trimmed.device)
        self._set_weight(nn.Parameter(table, requires_grad=trimmed.requires_grad))
        try:
            yield
        finally:
            self._set_weight(trimmed)

    @cached_property
    def digest(self) -> str:
        """First 16 hexadecimal digits of the original table's SHA-256."""
        return hashlib.sha256(self.table.contiguous().view(torch.uint8).numpy().data).hexdigest()[:16]

    def _set_weight(self, weight: Tensor) -> None:
        self._module.weight = weight
        self._module.num_embeddings = len(weight)


def trim(model: Any, used: NDArray[np.int64]) -> tuple[TrimmedVocabulary | None, str]:
    """Keep the rows of the ids `used`, and those up to the padding id, from which RoBERTa's positions count.

    Returns:
        The vocabulary and how much is kept, or None and why the model is left as it is.
    """
    module = model.get_input_embeddings()
    if type(module) is not nn.Embedding:
        return None, f"the word embeddings are a {type(module).__name__}"
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return None, "the word embeddings are normalised, scaled or sparse"
    names = [name for name, weight in model.named_parameters(remove_duplicate=False) if weight is module.weight]
    if len(names) > 1:
        return None, f"the word embeddings are tied: {' and '.join(names)}"
    paddings = (module.padding_idx, getattr(model.config, "pad_token_id", None))
    padding = max((id_ for id_ in paddings if id_ is not None), default=-1)
    if padding > LAST_PADDING_ID:
        return None, f"the padding id {padding} is over {LAST_PADDING_ID}"
    kept = np.union1d(used, np.arange(padding + 1)).astype(np.int64)
    rows = module.num_embeddings
    assert kept[0] >= 0
    assert kept[-1] < rows
    if len(kept) == rows:
        return None, f"all {rows} words are in use"
    return TrimmedVocabulary(module, kept), f"{len(kept)} of {rows} words are in use"
