"""A base model of the published one's form is loaded, packed, trimmed, trained and exported like the stock model.

Its padding ids differ: 1 in the tokenizer, 0 in the model, whose row 0 is that of each text's first token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nightgate.config.sources import SampleSource
from nightgate.config.training import Training
from nightgate.engine import forward
from nightgate.engine.base_models import LoadedModel, load_classifier, load_trained
from nightgate.engine.devices import Picked
from nightgate.engine.encoding import Encoded, encode
from nightgate.engine.step import Engine
from nightgate.sources.sample import sample_reviews
from tests.support import reviews
from tests.support.seed_model import MODEL_PAD, SPARE_ROWS, TOKENIZER_PAD, TOKENS, write_seed_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.process,
]

LABELS = ("1", "2", "3", "4", "5")
STEPS, BATCH = 12, 8
ODD = (
    "",
    "<s> spelled out </s> with <pad> in it",
    "Schön, aber zu groß.",
    "很好 😀",
    "ＦＵＬＬ  width\tand\nlines",
    "x" * 400,
)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rows = sample_reviews(SampleSource(kind="sample", rows_per_day=40, days=4), reviews.NIGHT.data_until)
    return [*(str(text) for text in rows["text"][: STEPS * BATCH - len(ODD)]), *ODD]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    return write_seed_model(tmp_path_factory.mktemp("seed") / "base", texts)


def load(folder: Path, dtype: torch.dtype = torch.float64) -> LoadedModel:
    torch.manual_seed(1)
    loaded = load_classifier(folder, LABELS, named="the base model", max_length=64, dropout=0.0)
    loaded.model.to(dtype)
    return loaded


def engine_of(loaded: LoadedModel, train: Encoded) -> Engine:
    picked = Picked(torch.device("cpu"), torch.float32, "the test")
    return Engine(loaded, Training(learning_rate=1e-3, batch_size=BATCH), picked, STEPS, train)


def batches() -> list[Any]:
    return list(np.random.default_rng(5).permutation(STEPS * BATCH).reshape(STEPS, BATCH))


LABELS_OF_ROWS = np.random.default_rng(6).integers(0, len(LABELS), STEPS * BATCH)


def test_the_folder_has_the_published_form(folder: Path) -> None:
    loaded = load(folder)
    embedding = loaded.model.get_input_embeddings()
    assert loaded.model.config.model_type == "bert"
    assert (embedding.num_embeddings, len(loaded.tokenizer)) == (TOKENS + SPARE_ROWS, TOKENS)
    assert (loaded.tokenizer.pad_token_id, loaded.model.config.pad_token_id) == (TOKENIZER_PAD, MODEL_PAD)
    assert embedding.padding_idx == loaded.tokenizer.cls_token_id == 0
    # A BERT body counts positions from 0 whatever its padding id is: none of the 512 is lost.
    assert load_classifier(folder, LABELS, named="the base model", max_length=512).max_length == 512


def test_tokens_are_those_of_sentencepiece_at_the_ids_of_xlm_r(folder: Path, texts: list[str]) -> None:
    import sentencepiece

    loaded, pieces = load(folder), sentencepiece.SentencePieceProcessor(str(folder / "sentencepiece.bpe.model"))
    plain = [text for text in texts if "<" not in text and len(text) < 200]
    encoded = encode(loaded.tokenizer, plain, 512)
    for row, text in enumerate(plain):
        # XLM-R counts from 1 and calls its unknown token 3; equally likely splits may come in another order.
        expected = [0, *(piece + 1 if piece else 3 for piece in pieces.encode(text)), 2]
        found = encoded.ids[encoded.offsets[row] : encoded.offsets[row + 1]].tolist()
        assert sorted(found) == sorted(expected), text
    assert encoded.type_ids is None


def test_packed_logits_are_those_of_plain_transformers(folder: Path, texts: list[str]) -> None:
    loaded = load(folder)
    encoded = encode(loaded.tokenizer, texts, loaded.max_length)
    chosen = forward.choose(loaded.model, encoded)
    assert chosen.kind == "packed", chosen.reason
    inputs = loaded.tokenizer(texts, truncation=True, max_length=64, padding=True, return_tensors="pt")
    assert TOKENIZER_PAD in inputs["input_ids"][:, -1]
    with torch.inference_mode():
        stock = loaded.model.eval()(**inputs).logits
        for path in (chosen, forward.choose(loaded.model, encoded, pack=False)):
            found = path.logits(encoded, np.arange(len(texts)))
            torch.testing.assert_close(found, stock, rtol=0, atol=1e-12)


def test_training_equals_the_stock_loop_and_the_first_token_s_row_never_changes(
    folder: Path, texts: list[str], tmp_path: Path
) -> None:
    stock, ours = load(folder), load(folder)
    before = stock.model.get_input_embeddings().weight.detach().clone()
    expected = _stock_losses(stock, texts)
    encoded = encode(ours.tokenizer, texts, ours.max_length)
    engine = engine_of(ours, encoded)
    assert engine.kind == "packed", engine.reason
    assert engine.vocabulary is not None
    assert len(engine.vocabulary.kept) < TOKENS / 2
    found = [float(engine.step(rows, LABELS_OF_ROWS[rows])) for rows in batches()]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)

    engine.export(tmp_path / "model")
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float64)
    for name, tensor in stock.model.state_dict().items():
        torch.testing.assert_close(opened.state_dict()[name], tensor, rtol=0, atol=1e-10, msg=name)
    after = opened.get_input_embeddings().weight
    used = np.setdiff1d(np.unique(encoded.ids), [MODEL_PAD])
    untouched = np.setdiff1d(np.arange(len(after)), used)
    assert MODEL_PAD in encoded.ids
    assert torch.equal(after[untouched], before[untouched])
    assert (after[used] != before[used]).any(dim=1).all()


def test_the_exported_folder_gives_the_engine_s_logits_in_plain_transformers(
    folder: Path, texts: list[str], tmp_path: Path
) -> None:
    loaded = load(folder, torch.float32)
    encoded = encode(loaded.tokenizer, texts, loaded.max_length)
    engine = engine_of(loaded, encoded)
    for rows in batches():
        engine.step(rows, LABELS_OF_ROWS[rows])
    ours = torch.from_numpy(engine.logits(encoded, batch_size=BATCH))
    engine.export(tmp_path / "model")

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert (tokenizer.pad_token_id, model.config.pad_token_id) == (TOKENIZER_PAD, MODEL_PAD)
    assert model.config.vocab_size == TOKENS + SPARE_ROWS
    with torch.inference_mode():
        plain = model(**tokenizer(texts, truncation=True, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(plain, ours, rtol=0, atol=1e-5)
    again = load_trained(tmp_path / "model", named="version 1")
    assert again.max_length == 64
    assert torch.equal(again.model.get_input_embeddings().weight, model.get_input_embeddings().weight)


def _stock_losses(loaded: LoadedModel, texts: list[str]) -> list[float]:
    """Padded batches by the tokenizer's own call, the stock forward, clipping, AdamW and the linear schedule."""
    model = loaded.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for number, rows in enumerate(batches()):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - number / STEPS)
        chosen = [texts[row] for row in rows]
        inputs = loaded.tokenizer(chosen, truncation=True, max_length=64, padding=True, return_tensors="pt")
        loss = functional.cross_entropy(model(**inputs).logits, torch.from_numpy(LABELS_OF_ROWS[rows]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
