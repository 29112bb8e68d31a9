"""Texts as token ids, and batches of them, packed or padded to their longest text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nightgate.engine.attention import Layout
from nightgate.engine.packing import PackedBatch

CHUNK = 2000
"""Texts per call of the tokenizer: about 0.2 s between two reports of progress."""


@dataclass(frozen=True)
class Encoded:
    """Concatenated token ids of rows; row k is `ids[offsets[k]:offsets[k + 1]]`."""

    ids: NDArray[np.int32]
    type_ids: NDArray[np.int8] | None
    """None where the model takes no token types."""
    offsets: NDArray[np.int64]
    pad_id: int
    pad_type_id: int
    pad_left: bool
    max_length: int
    """Limit of a row's tokens."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.offsets)

    def packed(self, rows: NDArray[np.int64], device: torch.device) -> PackedBatch:
        """A packed batch of `rows`, in the order given."""
        lengths = self.lengths[rows]
        layout = Layout(lengths, device)
        token = np.arange(layout.tokens) + np.repeat(self.offsets[rows] - layout.starts[:-1], lengths)
        ids = torch.from_numpy(self.ids[token].astype(np.int64)).to(device)
        types = None if self.type_ids is None else torch.from_numpy(self.type_ids[token].astype(np.int64)).to(device)
        return PackedBatch(ids, types, layout)

    def batch(self, rows: NDArray[np.int64], width_step: int = 1) -> dict[str, torch.Tensor]:
        """A padded batch: the model's inputs for `rows`, each int64 [rows, longest of these rows].

        The width is rounded up to a multiple of `width_step`, but not beyond `max_length`.
        """
        starts, lengths = self.offsets[rows], self.lengths[rows]
        width = int(lengths.max())
        width = max(width, min(-(-width // width_step) * width_step, self.max_length))
        column = np.arange(width)[None, :]
        if self.pad_left:
            column = column - (width - lengths[:, None])
        mask = (column >= 0) & (column < lengths[:, None])
        source = np.where(mask, starts[:, None] + column, 0)
        inputs = {
            "input_ids": np.where(mask, self.ids[source], self.pad_id).astype(np.int64),
            "attention_mask": mask.astype(np.int64),
        }
        if self.type_ids is not None:
            inputs["token_type_ids"] = np.where(mask, self.type_ids[source], self.pad_type_id).astype(np.int64)
        return {name: torch.from_numpy(values) for name, values in inputs.items()}


def encode(
    tokenizer: Any, texts: Sequence[str], max_length: int, on_chunk: Callable[[int, int], None] | None = None
) -> Encoded:
    """Tokenise with special tokens, cut at `max_length` tokens; calls `on_chunk(done, total)` after each chunk.

    Truncation and padding that a `tokenizer.json` may set are switched off for good.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    with_types = "token_type_ids" in tokenizer.model_input_names
    rows: list[NDArray[np.int32]] = []
    types: list[NDArray[np.int8]] = []
    if backend is not None:
        backend.no_padding()
        backend.enable_truncation(
            max_length, strategy="longest_first", direction=getattr(tokenizer, "truncation_side", "right")
        )
    for start in range(0, len(texts), CHUNK):
        chunk = [str(text) for text in texts[start : start + CHUNK]]
        if backend is not None:
            encodings = backend.encode_batch_fast(chunk)
            rows.extend(np.array(encoding.ids, dtype=np.int32) for encoding in encodings)
            if with_types:
                types.extend(np.array(encoding.type_ids, dtype=np.int8) for encoding in encodings)
        else:
            found = tokenizer(chunk, truncation=True, max_length=max_length, padding=False)
            rows.extend(np.array(ids, dtype=np.int32) for ids in found["input_ids"])
            if with_types:
                types.extend(np.array(ids, dtype=np.int8) for ids in found["token_type_ids"])
        if on_chunk is not None:
            on_chunk(min(start + CHUNK, len(texts)), len(texts))
    if backend is not None:
        backend.no_truncation()
    return Encoded(
        ids=np.concatenate(rows) if rows else np.zeros(0, np.int32),
        type_ids=(np.concatenate(types) if types else np.zeros(0, np.int8)) if with_types else None,
        offsets=np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
        pad_id=int(tokenizer.pad_token_id),
        pad_type_id=int(getattr(tokenizer, "pad_token_type_id", 0) or 0),
        pad_left=tokenizer.padding_side == "left",
        max_length=max_length,
    )
