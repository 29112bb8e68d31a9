"""A trimmed vocabulary computes what the full one does, and the full one comes back on export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from nightgate.engine.vocabulary import LAST_PADDING_ID, TrimmedVocabulary, trim

pytestmark = pytest.mark.process

VOCABULARY = 120
TEXTS = np.array([[2, 50, 90, 50, 3, 0], [2, 17, 3, 0, 0, 0]])
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def bert(**changes: Any) -> Any:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SHAPE | changes))


def roberta() -> Any:
    torch.manual_seed(0)
    return RobertaForSequenceClassification(RobertaConfig(**SHAPE | {"pad_token_id": 1}))


def words(model: Any) -> Tensor:
    weight: Tensor = model.get_input_embeddings().weight
    return weight


def trimmed(model: Any, used: np.ndarray[Any, Any] = TEXTS) -> TrimmedVocabulary:
    vocabulary, reason = trim(model, np.unique(used))
    assert vocabulary is not None, reason
    return vocabulary


def loss_of(model: Any, ids: np.ndarray[Any, Any], padding: int) -> Tensor:
    inputs = torch.from_numpy(ids.astype(np.int64))
    loss: Tensor = model(input_ids=inputs, attention_mask=inputs != padding, labels=torch.tensor([0, 1])).loss
    return loss


@pytest.mark.parametrize(("make", "padding"), [(bert, 0), (roberta, 1)])
def test_loss_and_gradients_are_those_of_the_full_table(make: Any, padding: int) -> None:
    texts = np.where(TEXTS == 0, padding, TEXTS)
    full, small = make(), make()
    vocabulary = trimmed(small, texts)
    ids = vocabulary.remap(texts.astype(np.int32))
    assert ids.dtype == np.int32
    assert (ids == padding).tolist() == (texts == padding).tolist()
    losses = loss_of(full, texts, padding), loss_of(small, ids, padding)
    assert losses[0].item() == losses[1].item()
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
    gradient = words(full).grad
    assert gradient is not None
    torch.testing.assert_close(words(small).grad, gradient[torch.from_numpy(vocabulary.kept)], rtol=0, atol=0)
    assert not gradient[padding].any()


def test_rows_up_to_the_padding_are_kept_and_the_configuration_is_not_touched() -> None:
    model = roberta()
    vocabulary, reason = trim(model, np.array([40, 9, 9]))
    assert vocabulary is not None
    assert vocabulary.kept.tolist() == [0, 1, 9, 40]
    assert "4 of 120" in reason
    module = model.get_input_embeddings()
    assert (module.num_embeddings, module.padding_idx, model.config.vocab_size) == (4, 1, VOCABULARY)
    assert words(model).shape == (4, 8)


def test_an_id_that_was_not_kept_is_refused() -> None:
    vocabulary = trimmed(bert())
    with pytest.raises(AssertionError, match="not kept"):
        vocabulary.remap(np.array([2, 51], dtype=np.int32))
    assert vocabulary.remap(np.zeros(0, dtype=np.int32)).size == 0


def test_an_export_opened_by_plain_transformers_has_all_rows_and_the_trained_ones_trained(tmp_path: Path) -> None:
    model = bert()
    before = words(model).detach().clone()
    vocabulary = trimmed(model)
    parameter = words(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    loss_of(model, vocabulary.remap(TEXTS.astype(np.int32)), 0).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    with vocabulary.restored():
        assert model.get_input_embeddings().num_embeddings == VOCABULARY
        model.save_pretrained(tmp_path)
    assert words(model) is parameter

    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    after = words(opened).detach()
    other = np.setdiff1d(np.arange(VOCABULARY), vocabulary.kept)
    assert torch.equal(after[other], before[other])
    trained = np.setdiff1d(vocabulary.kept, [0, 1])
    assert (after[trained] != before[trained]).any(dim=1).all()
    losses = loss_of(opened, TEXTS, 0), loss_of(model, vocabulary.remap(TEXTS.astype(np.int32)), 0)
    assert losses[0].item() == losses[1].item()


def test_rows_that_were_not_kept_are_multiplied_by_the_decay() -> None:
    model = bert()
    before = words(model).detach().clone()
    vocabulary = trimmed(model)
    table = vocabulary.full_table(0.5)
    kept = torch.zeros(VOCABULARY, dtype=torch.bool)
    kept[torch.from_numpy(vocabulary.kept)] = True
    assert torch.equal(table[kept], before[kept])
    assert torch.equal(table[~kept], before[~kept] / 2)
    assert torch.equal(vocabulary.full_table(), before)


def test_the_trimmed_parameter_comes_back_when_the_export_fails() -> None:
    model = bert()
    vocabulary = trimmed(model)
    parameter = words(model)

    def fail() -> None:
        with vocabulary.restored():
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert words(model) is parameter


def test_the_digest_depends_on_the_original_table_alone() -> None:
    first, second = bert(), bert()
    one, two = trimmed(first), trimmed(second, np.array([5]))
    with torch.no_grad():
        words(first).zero_()
    assert one.digest == two.digest
    assert len(one.digest) == 16
    with torch.no_grad():
        words(third := bert())[100] += 1
    assert trimmed(third).digest != one.digest


def test_a_table_that_cannot_be_trimmed_stays_and_the_reason_is_returned() -> None:
    used = np.unique(TEXTS)

    def reason(model: Any, used: np.ndarray[Any, Any] = used) -> str:
        before = words(model)
        vocabulary, reason = trim(model, used)
        assert vocabulary is None
        assert words(model) is before
        return reason

    tied = bert()
    tied.decoder = nn.Linear(8, VOCABULARY, bias=False)
    tied.decoder.weight = words(tied)
    assert "bert.embeddings.word_embeddings.weight and decoder.weight" in reason(tied)

    class Scaled(nn.Embedding):
        pass

    scaled = bert()
    scaled.set_input_embeddings(Scaled(VOCABULARY, 8))
    assert "Scaled" in reason(scaled)

    late = bert(vocab_size=LAST_PADDING_ID + 2, pad_token_id=LAST_PADDING_ID + 1)
    assert "padding id 1001" in reason(late)
    assert "all 120" in reason(bert(), np.arange(VOCABULARY))
