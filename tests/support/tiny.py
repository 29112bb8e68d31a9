"""A tiny real base model (two BERT layers, seeded random weights, a tokenizer of its own) and rows to train on."""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nightgate.config.pipeline import Pipeline
    from nightgate.training.protocol import TrainJob

_WORDS = """
the a an and or but not no very this that it is was i my we they he she in on of for to with as at so too all
one two three four five star stars great good fine okay bad poor awful terrible excellent love loved hate hated
like liked perfect broken works broke fits size small large soft cheap quality colour color dress shirt shoes
pan lamp phone product price delivery late fast returned return again never always would recommend buy bought
happy disappointed average
"""


def write_tiny_model(
    folder: Path, *, num_hidden_layers: int = 2, hidden_size: int = 32, dropout: float = 0.1, seed: int = 0
) -> Path:
    """Write a BERT without a head, and its tokenizer, to `folder`; return `folder`."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *_WORDS.split(), *characters, *(f"##{c}" for c in characters)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    # As in all-MiniLM-L6-v2: code that relies on the file's own truncation and padding always gets 24 tokens.
    tokenizer.enable_truncation(24)
    tokenizer.enable_padding(length=24, pad_id=0, pad_token="[PAD]")
    folder.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=128,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)

    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=2,
            intermediate_size=2 * hidden_size,
            max_position_embeddings=128,
            # BERT's 0.02 is for hundreds of dimensions: with it so small a model learns slowly.
            initializer_range=0.15,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )
    torch.random.set_rng_state(state)
    model.save_pretrained(folder)
    return folder


def write_tiny_reviews(path: Path, rows: int = 200, seed: int = 0) -> Path:
    """Write a CSV of synthetic reviews with id, text and stars (1 to 3), which the words mostly predict."""
    import csv

    import numpy as np

    rng = np.random.default_rng(seed)
    tone = {1: "bad awful terrible hate broken returned", 2: "okay fine average", 3: "great love perfect excellent"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "stars"])
        for number in range(rows):
            stars = int(rng.integers(1, 4))
            felt = stars if rng.random() < 0.85 else int(rng.integers(1, 4))
            words = [*rng.choice(_WORDS.split()[:20], int(rng.integers(3, 12))), *rng.choice(tone[felt].split(), 2)]
            writer.writerow([number, f"{' '.join(rng.permutation(words))} {number}", stars])
    return path


def tiny_pipeline(folder: Path, *, rows: int = 200, **training: object) -> Pipeline:
    """A pipeline of synthetic reviews and the tiny model, both written below `folder`, with fields of `[training]`."""
    from nightgate.pipeline_files import check_pipeline

    reviews = write_tiny_reviews(folder / "reviews.csv", rows)
    base = folder / "base"
    recipe = {"base_model": str(base), "epochs": 3, "learning_rate": 3e-3, "max_length": 32, **training}
    if not base.exists() and recipe["base_model"] == str(base):
        write_tiny_model(base)
    data = {
        "source": {"kind": "files", "paths": [str(reviews)]},
        "id": "id",
        "label": "stars",
        "labels": {"1": "bad", "2": "middling", "3": "good"},
    }
    split = {"validation": 0.2, "test": 0.1}
    return check_pipeline({"name": "tiny", "data": data, "split": split, "training": recipe}, "tiny")


def tiny_job(folder: Path, *, attempt: int = 1, run: str = "run", rows: int = 200, **training: object) -> TrainJob:
    """A job of `tiny_pipeline`, with its snapshot; jobs with another `run` share the snapshot."""
    from datetime import UTC, datetime

    from nightgate.data.refresh import refresh
    from nightgate.home import open_home
    from nightgate.schedule import tonight
    from nightgate.training.protocol import TrainJob

    pipeline = tiny_pipeline(folder, rows=rows, **training)
    night = tonight(pipeline.schedule, datetime(2026, 1, 5, tzinfo=UTC))
    home = open_home(folder / "home")
    snapshot = refresh(pipeline, night, home).snapshot
    return TrainJob(
        run_dir=home.runs / run,
        attempt=attempt,
        snapshot=snapshot.path,
        pipeline=pipeline.record(),
        data_until=night.data_until.isoformat(),
    )
