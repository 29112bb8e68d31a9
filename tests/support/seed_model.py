"""A small model of the published base model's exact form.

microsoft/Multilingual-MiniLM-L12-H384 is a BERT body (padding id 0, 250,037 rows) with the tokenizer of XLM-R (a
SentencePiece file, padding id 1, 250,002 tokens). Its folder has config.json, pytorch_model.bin and
sentencepiece.bpe.model, and AutoTokenizer cannot open it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

TOKENS = 2000
"""Tokens of the tokenizer; most of them are in no review, as in a multilingual vocabulary."""
SPARE_ROWS = 35
"""Rows of the word table beyond the tokenizer's tokens, as in the published model."""
TOKENIZER_PAD, MODEL_PAD = 1, 0


def write_seed_model(
    folder: Path,
    texts: Iterable[str],
    *,
    hidden_size: int = 32,
    num_hidden_layers: int = 2,
    initializer_range: float = 0.15,
    seed: int = 0,
) -> Path:
    """Write the model, with a tokenizer trained on `texts` and on random words; return `folder`."""
    import sentencepiece
    import torch
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    foreign = (" ".join("".join(rng.choices(syllables, k=3)) for _ in range(8)) for _ in range(1000))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, *foreign]),
        model_prefix=str(folder / "sentencepiece.bpe"),
        # XLM-R adds <pad> and <mask> to the pieces.
        vocab_size=TOKENS - 2,
        model_type="unigram",
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "sentencepiece.bpe.vocab").unlink()
    body = BertConfig(
        vocab_size=TOKENS + SPARE_ROWS,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=2,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=512,
        initializer_range=initializer_range,
        pad_token_id=MODEL_PAD,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.save(BertModel(body).state_dict(), folder / "pytorch_model.bin")
    config = {**body.to_diff_dict(), "architectures": ["BertModel"], "tokenizer_class": "XLMRobertaTokenizer"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
